// Runs the kernels over buffers of exact size, in odd sizes, with one thread and two. Built with sanitizers, which end
// the program at the first access out of bounds and at the first undefined operation.
//
//     driver          runs everything
//     driver NAME     runs everything with the buffer NAME one element too short: it must fail
#include <cstdio>
#include <initializer_list>

#include "made.h"

namespace {

void require(bool is_true, const char* what) {
  if (is_true) return;
  std::fprintf(stderr, "driver: %s\n", what);
  std::exit(2);
}

constexpr int SIZES[] = {1, 2, 3, 5, 7, 16, 31, 33, 64, 100};
constexpr int ROWS[] = {1, 2, 5, 7, 15, 31};

void rows_and_elements() {
  for (int64_t n : {1, 2, 3, 5, 7, 31, 33, 1025, 20001}) {
    const Buffer<float> x("map.x", n), y("map.y", n);
    ternvl_gelu(x.data(), y.data(), n, 2);
    ternvl_read(x.data(), n, 2);
  }
  for (int64_t tokens : {1, 3, 33})
    for (int d : {2, 6, 64}) {
      const Buffer<float> x("rotate.x", tokens * 3 * d), cos("rotate.cos", tokens * d), sin("rotate.sin", tokens * d);
      ternvl_rotate(x.data(), 3 * d, cos.data(), sin.data(), tokens, 3, d, 2);
    }
  for (int64_t m : {1, 3, 17})
    for (int64_t k : {1, 3, 7, 16, 33, 1024, 1025, 2100}) {
      const int64_t stride = k + 1;
      const Buffer<float> x("rms_norm.x", m * k), weight("rms_norm.weight", k), out("rms_norm.out", m * k);
      ternvl_rms_norm(x.data(), m, k, weight.data(), 1e-6f, out.data(), 2);
      const Buffer<float> rows("largest.x", (m - 1) * stride + k), values("largest.values", m);
      const Buffer<int64_t> indices("largest.indices", m);
      ternvl_largest(rows.data(), m, k, stride, values.data(), indices.data(), 2);
    }
}

template <typename T>
void linear(int64_t n, int64_t k, int64_t m, int threads) {
  const int64_t panels = panels_of(n), ldx = k + 3;
  const Buffer<T> weight("linear.weight", n * k), packed("linear.panels", panels * k * NR);
  const Buffer<float> x("linear.x", (m - 1) * ldx + k), bias("linear.bias", n), y("linear.y", m * n);
  if constexpr (sizeof(T) == 2) weight.under(0x3f80);  // bfloat16 below 1
  ternvl_pack_linear(weight.data(), sizeof(T), n, k, packed.data(), threads);
  ternvl_linear(x.data(), m, k, ldx, packed.data(), sizeof(T), n, bias.data(), y.data(), threads);
}

// Runs a stage with and without a residual, in place, and in parts.
void run(const Stage& stage, int64_t m, int threads) {
  const int64_t outputs = stage.after == SWIGLU ? stage.n / 2 : stage.n, ldx = stage.k + 1;
  const Buffer<float> x("stage.x", (m - 1) * ldx + stage.k), residual("stage.residual", m * outputs);
  const Buffer<float> y("stage.y", m * outputs), plain("stage.plain", m * stage.n), rows("stage.rows", m * stage.k);
  const auto run = [&](const float* residual, float* y, int64_t ldy, bool is_plain) {
    ternvl_stage(&stage, x.data(), m, ldx, nullptr, nullptr, residual, y, ldy, threads, is_plain);
  };
  run(nullptr, y.data(), outputs, false);
  run(residual.data(), residual.data(), outputs, false);  // in place
  run(nullptr, plain.data(), stage.n, true);
  if (stage.before != NO_NORM) ternvl_stage_inputs(&stage, x.data(), m, ldx, rows.data(), threads);
}

void stage(int64_t n, int64_t k, Format format, Before before, After after, bool has_more, int threads) {
  const Made made(n, k, format, before, after, has_more, threads);
  for (int64_t m : ROWS) run(made.stage, m, threads);
}

void products() {
  for (int64_t n : SIZES)
    for (int64_t k : {1, 3, 7, 32, 33, 100, 1025}) {
      const int threads = 1 + (n + k) % 2;
      linear<float>(n, k, 1 + n % 13, threads);
      linear<uint16_t>(n, k, 1 + k % 13, threads);
    }
  int turn = 0;
  for (int64_t n : SIZES)
    for (int64_t k : SIZES)
      for (Format format : {FLOAT32, BFLOAT16, INT8, INT4, AFFINE4})
        for (After after : {NOTHING, GELU, SWIGLU}) {
          if (after == SWIGLU && n % 2) continue;
          const Before before = Before(++turn % 3);
          stage(n, k, format, before, after, turn % 2, 1 + turn / 2 % 2);
        }
  for (Format format : {FLOAT32, BFLOAT16, INT8, INT4, AFFINE4}) stage(34, 1025, format, LAYER_NORM, SWIGLU, true, 2);
  for (Format format : {INT8, INT4, AFFINE4})  // more rows than the sums of which wait at a time
    run(Made(17, 40, format, NO_NORM, NOTHING, true, 1).stage, 250, 1);
}

void attention(int64_t length, int64_t queries, int key_heads, int group, int d, int block_size, int threads) {
  const Sequences s(length, queries, block_size);
  const int heads = key_heads * group;
  const int64_t size = s.blocks * key_heads * block_size * d, stride = (heads + 2 * key_heads) * d;
  const int64_t rows = (length + 1) * key_heads * d;
  const Buffer<float> keys("attention.keys", size), values("attention.values", size), k("attention.k", rows);
  const Buffer<float> v("attention.v", rows), q("attention.q", (s.tokens - 1) * stride + heads * d);
  const Buffer<float> out("attention.out", s.tokens * heads * d);
  require(ternvl_write_kv(keys.data(), values.data(), s.slots.data(), k.data(), key_heads * d, v.data(), key_heads * d,
                          length + 1, s.blocks, key_heads, d, block_size, threads),
          "keys and values were not written");
  const Problem problem = s.problem(q.data(), stride, out.data(), heads, key_heads, d);
  require(ternvl_paged_attention(&problem, keys.data(), values.data(), threads), "nothing was attended to");
  s.slots[0] = s.blocks * block_size;
  require(!ternvl_write_kv(keys.data(), values.data(), s.slots.data(), k.data(), key_heads * d, v.data(), key_heads * d,
                           length + 1, s.blocks, key_heads, d, block_size, threads),
          "a slot that does not exist was written");
}

void attention_int8(int64_t length, int64_t queries, int key_heads, int group, int d, bool causal, int threads) {
  const Sequences s(length, queries, 16);
  const int heads = key_heads * group;
  const int64_t stride = (heads + 2 * key_heads) * d, rows = (length + 1) * key_heads * d;
  const Buffer<uint8_t> cache("attention_int8.cache", s.blocks * key_heads * (32 * d + 128));
  const Buffer<float> k("attention_int8.k", rows), v("attention_int8.v", rows);
  const Buffer<float> q("attention_int8.q", (s.tokens - 1) * stride + heads * d);
  const Buffer<float> out("attention_int8.out", s.tokens * heads * d);
  require(ternvl_write_kv_int8(cache.data(), s.slots.data(), k.data(), key_heads * d, v.data(), key_heads * d,
                               length + 1, s.blocks, key_heads, d, threads),
          "keys and values were not written in 8 bits");
  const Problem problem = s.problem(q.data(), stride, out.data(), heads, key_heads, d);
  require(ternvl_attention_int8(&problem, cache.data(), causal, threads), "nothing was attended to in 8 bits");
  s.tables[0] = int32_t(s.blocks);
  require(!ternvl_attention_int8(&problem, cache.data(), causal, threads), "a block that does not exist was read");
}

void tile_attention(int64_t tiles, int64_t length, int heads, int d, int threads) {
  const Buffer<float> qkv("tile_attention.qkv", tiles * length * 3 * heads * d);
  const Buffer<float> out("tile_attention.out", tiles * length * heads * d);
  ternvl_tile_attention(qkv.data(), tiles, length, heads, d, out.data(), threads);
}

// An adapter for some of m rows, added to outputs behind which there is other memory.
template <typename T>
void lora_add(int64_t n, int64_t k, int64_t rank, int64_t m, int threads) {
  const MadeAdapter<T> made(n, k, rank);
  const int64_t ldx = k + 1, ldo = n + 2;
  const Buffer<float> x("lora_add.x", (m - 1) * ldx + k), out("lora_add.out", (m - 1) * ldo + n);
  const Segment segments[] = {{0, 0, 1}, {1, m > 1 ? 1 : 0, m}, {7, 0, 1}};
  const Adapters adapters{segments, 3, 1};
  ternvl_lora_add(&made.added, &adapters, x.data(), m, ldx, k, out.data(), n, ldo, threads);
}

void lora_adds() {
  for (int64_t n : {2, 16, 33, 300})
    for (int64_t k : {1, 7, 33})
      for (int64_t rank : {1, 3, 16, 17}) {
        const int64_t m = 1 + (n + k + rank) % 5;
        lora_add<float>(n, k, rank, m, 1 + m % 2);
        lora_add<uint16_t>(n, k, rank, m, 1 + m % 2);
        lora_add<int8_t>(n, k, rank, m, 1 + m % 2);
      }
}

// Two layers over a sequence of `length` tokens and one of a single token, whose keys and values are all new.
template <typename T>
void decode(int64_t length, Format format, bool is_int8, int threads) {
  constexpr int HEADS = 6, KEY_HEADS = 2, D = 16, HIDDEN = 33, INNER = 31;
  const Sequences s(length, length, 16);
  const Made qkv((HEADS + 2 * KEY_HEADS) * D, HIDDEN, format, RMS_NORM, NOTHING, true, threads);
  const Made o(HIDDEN, HEADS * D, format, NO_NORM, NOTHING, false, threads);
  const Made gate_up(2 * INNER, HIDDEN, format, RMS_NORM, SWIGLU, false, threads);
  const Made down(HIDDEN, INNER, format, NO_NORM, NOTHING, false, threads);
  const Layer layer{&qkv.stage, &o.stage, &gate_up.stage, &down.stage}, layers[] = {layer, layer};
  const int64_t floats = s.blocks * KEY_HEADS * 16 * D, bytes = s.blocks * KEY_HEADS * (32 * D + 128);
  const Buffer<float> keys("decode.keys", 2 * floats), values("decode.values", 2 * floats);
  const Buffer<uint8_t> cache("decode.cache", 2 * bytes);
  const Buffer<float> cos("decode.cos", s.tokens * D), sin("decode.sin", s.tokens * D);
  const Buffer<float> x("decode.x", s.tokens * HIDDEN);
  const Decoder decoder{layers, 2, HEADS, KEY_HEADS, D};
  const Cache held = is_int8 ? Cache{nullptr, nullptr, cache.data(), bytes, s.blocks, 16}
                             : Cache{keys.data(), values.data(), nullptr, floats, s.blocks, 16};
  const Step step{s.slots.data(), s.tables.data(), s.starts.data(), s.lengths.data(), cos.data(), sin.data(),
                  s.tokens,       2,               s.width};
  require(ternvl_decode(&decoder, &held, &step, nullptr, x.data(), threads), "nothing was decoded");
  const MadeAdapter<T> to_qkv(qkv.stage.n, HIDDEN, 3), to_o(HIDDEN, HEADS * D, 16), to_down(HIDDEN, INNER, 17);
  const MadeAdapter<T> to_gate_up(2 * INNER, HIDDEN, 1);
  const AddedToLayer some[] = {{to_qkv.added, to_o.added, to_gate_up.added, to_down.added}, {{}, to_o.added, {}, {}}};
  const Segment segments[] = {{0, 0, 1}, {1, length > 1 ? 1 : 0, s.tokens}, {7, 0, 1}};
  const AddedToDecoder added{some, {segments, 3, 1}};
  require(ternvl_decode(&decoder, &held, &step, &added, x.data(), threads), "nothing was decoded with adapters");
  s.slots[0] = -1;
  require(!ternvl_decode(&decoder, &held, &step, nullptr, x.data(), threads), "a slot that does not exist was written");
}

void decodes() {
  for (int64_t length : {1, 2, 3, 17, 33})
    for (Format format : {FLOAT32, BFLOAT16, INT8, INT4})
      for (bool is_int8 : {false, true}) {
        decode<float>(length, format, is_int8, 1 + length % 2);
        decode<uint16_t>(length, format, is_int8, 1 + length % 2);
        decode<int8_t>(length, format, is_int8, 1 + length % 2);
      }
}

void attentions() {
  for (int64_t length : {1, 2, 3, 5, 7, 31, 33, 64, 130, 1025}) {
    const int64_t some = length > 200 ? 3 : length;
    for (int threads : {1, 2}) {
      for (int d : {1, 5, 16, 33}) attention(length, some, 2, 3, d, 7, threads);
      attention(length, some, 1, 7, 64, 16, threads);
      attention(length, 1, 1, 2, 32, 32, threads);
      for (int d : {16, 48, 64}) {
        attention_int8(length, some, 2, 3, d, true, threads);
        attention_int8(length, some, 1, 1, d, false, threads);
      }
      attention_int8(length, 1, 1, 7, 64, true, threads);
      if (length <= 200) tile_attention(2, length, 1, 64, threads);
      if (length <= 200) tile_attention(1, length, 3, 48, threads);
    }
  }
  tile_attention(1, 1025, 1, 16, 2);
  attention(2100, 2, 1, 2, 16, 16, 4);  // more threads than items: partitions are shared
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) short_buffer = argv[1];
  rows_and_elements();
  products();
  attentions();
  lora_adds();
  decodes();
  std::puts("all kernels ran");
}
