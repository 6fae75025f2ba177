// Calls the kernels with seeded numbers and writes what went in and what came out to a file, for test_arm.py. Rows,
// sequences and tiles are computed in company by two threads, and again alone by one thread, as records "NAME.alone".
//
//     driver FILE
//
// It prints the instruction sets of ARM64 that the CPU has.
//
// A record is a line "case/name type sizes...", then the numbers. The numbers are the same for every instruction set.
#include <cstdio>
#include <initializer_list>
#include <string>
#include <vector>

#include "sanitizer/made.h"

namespace {

FILE* file;
std::string current;  // the case

template <typename T>
void record(const char* name, const T* data, std::initializer_list<int64_t> sizes) {
  const char* type = std::is_same_v<T, float> ? "f4" : std::is_signed_v<T> ? "i" : "u";
  std::fprintf(file, "%s/%s %s", current.c_str(), name, type);
  if (!std::is_same_v<T, float>) std::fprintf(file, "%d", int(sizeof(T)));
  int64_t count = 1;
  for (int64_t size : sizes) std::fprintf(file, " %lld", static_cast<long long>(size)), count *= size;
  std::fputc('\n', file);
  std::fwrite(data, sizeof(T), count, file);
}

void require(bool is_true, const char* what) {
  if (is_true) return;
  std::fprintf(stderr, "driver: %s\n", what);
  std::exit(2);
}

void elements() {
  current = "gelu";
  const Buffer<float> x("x", 1001), y("y", 1001), alone("alone", 1001);
  for (int i = 0; i < 1001; ++i) x[i] *= 8;
  ternvl_gelu(x.data(), y.data(), 1001, 2);
  for (int i = 0; i < 1001; ++i) ternvl_gelu(x.data() + i, alone.data() + i, 1, 1);
  record("x", x.data(), {1001}), record("y", y.data(), {1001}), record("y.alone", alone.data(), {1001});
}

void rotations() {
  current = "rotate";
  constexpr int64_t TOKENS = 33, HEADS = 3, D = 20;
  const Buffer<float> x("x", TOKENS * HEADS * D), cos("cos", TOKENS * D), sin("sin", TOKENS * D);
  const std::vector<float> before(x.data(), x.data() + TOKENS * HEADS * D);
  std::vector<float> alone = before;
  ternvl_rotate(x.data(), HEADS * D, cos.data(), sin.data(), TOKENS, HEADS, D, 2);
  for (int64_t t = 0; t < TOKENS; ++t)
    ternvl_rotate(&alone[t * HEADS * D], HEADS * D, cos.data() + t * D, sin.data() + t * D, 1, HEADS, D, 1);
  record("x", before.data(), {TOKENS, HEADS, D}), record("cos", cos.data(), {TOKENS, D});
  record("sin", sin.data(), {TOKENS, D}), record("y", x.data(), {TOKENS, HEADS, D});
  record("y.alone", alone.data(), {TOKENS, HEADS, D});
}

void rows(int64_t m, int64_t k) {
  current = "rows-" + std::to_string(k);
  const Buffer<float> x("x", m * k), weight("weight", k), y("y", m * k), alone("alone", m * k), values("values", m);
  const Buffer<int64_t> indices("indices", m);
  ternvl_rms_norm(x.data(), m, k, weight.data(), 1e-6f, y.data(), 2);
  for (int64_t i = 0; i < m; ++i)
    ternvl_rms_norm(x.data() + i * k, 1, k, weight.data(), 1e-6f, alone.data() + i * k, 1);
  ternvl_largest(x.data(), m, k, k, values.data(), indices.data(), 2);
  record("x", x.data(), {m, k}), record("weight", weight.data(), {k}), record("y", y.data(), {m, k});
  record("y.alone", alone.data(), {m, k}), record("largest", values.data(), {m});
  record("indices", indices.data(), {m});
}

template <typename T>
void linear(int64_t n, int64_t k, int64_t m) {
  current = "linear-" + std::to_string(8 * sizeof(T)) + "-" + std::to_string(m) + "x" + std::to_string(n);
  const Buffer<T> weight("weight", n * k), packed("panels", panels_of(n) * k * NR);
  const Buffer<float> x("x", m * k), bias("bias", n), y("y", m * n), alone("alone", m * n);
  if constexpr (sizeof(T) == 2) weight.under(0x3f80);
  ternvl_pack_linear(weight.data(), sizeof(T), n, k, packed.data(), 2);
  ternvl_linear(x.data(), m, k, k, packed.data(), sizeof(T), n, bias.data(), y.data(), 2);
  for (int64_t i = 0; i < m; ++i)
    ternvl_linear(x.data() + i * k, 1, k, k, packed.data(), sizeof(T), n, bias.data(), alone.data() + i * n, 1);
  record("weight", weight.data(), {n, k}), record("x", x.data(), {m, k}), record("bias", bias.data(), {n});
  record("y", y.data(), {m, n}), record("y.alone", alone.data(), {m, n});
}

const char* const FORMATS[] = {"float32", "bfloat16", "int8", "int4"};
const char* const BEFORES[] = {"none", "rms", "layer"};
const char* const AFTERS[] = {"nothing", "gelu", "swiglu"};

void stage(int64_t m, int64_t n, int64_t k, Format format, Before before, After after, bool has_more) {
  current = std::string("stage-") + FORMATS[format] + "-" + BEFORES[before] + "-" + AFTERS[after] + "-" +
            std::to_string(m) + (has_more ? "-more" : "");
  const Made made(n, k, format, before, after, has_more, 2);
  const Stage& stage = made.stage;
  const int64_t outputs = after == SWIGLU ? n / 2 : n;
  const Buffer<float> x("x", m * k), y("y", m * outputs), alone("alone", m * outputs), residual("r", m * outputs);
  const Buffer<float> plain("plain", m * n), plain_alone("plain_alone", m * n), normed("normed", m * k);
  const auto run = [&](int64_t row, int64_t count, float* y, float* plain, int threads) {
    const float* more = has_more ? residual.data() + row * outputs : nullptr;
    ternvl_stage(&stage, x.data() + row * k, count, k, nullptr, nullptr, more, y + row * outputs, outputs, threads, false);
    ternvl_stage(&stage, x.data() + row * k, count, k, nullptr, nullptr, nullptr, plain + row * n, n, threads, true);
  };
  run(0, m, y.data(), plain.data(), 2);
  for (int64_t i = 0; i < m; ++i) run(i, 1, alone.data(), plain_alone.data(), 1);
  if (before != NO_NORM) ternvl_stage_inputs(&stage, x.data(), m, k, normed.data(), 2);
  if (format == FLOAT32) record("weight", made.weight.data(), {n, k});
  if (format == BFLOAT16) record("weight", made.shorts.data(), {n, k});
  if (format == INT8 || format == INT4) record("weight", made.whole.data(), {made.padded, k});
  if (format == INT8) record("scales", made.scales.data(), {made.padded});
  if (format == INT4) record("scales", made.shorts.data(), {made.padded, made.groups});
  if (stage.bias) record("bias", stage.bias, {made.is_float ? n : made.padded});
  if (stage.smoothing) record("smoothing", stage.smoothing, {k});
  if (stage.norm_weight) record("norm_weight", stage.norm_weight, {k}), record("normed", normed.data(), {m, k});
  if (stage.norm_bias) record("norm_bias", stage.norm_bias, {k});
  if (has_more) record("residual", residual.data(), {m, outputs});
  record("x", x.data(), {m, k}), record("y", y.data(), {m, outputs}), record("plain", plain.data(), {m, n});
  record("y.alone", alone.data(), {m, outputs}), record("plain.alone", plain_alone.data(), {m, n});
}

void stages() {
  for (Format format : {FLOAT32, BFLOAT16, INT8, INT4}) {
    for (int64_t m : {3, 31})
      for (int64_t k : {33, 300}) stage(m, k == 33 ? 33 : 50, k, format, NO_NORM, NOTHING, false);
    stage(31, 34, 100, format, RMS_NORM, SWIGLU, false);
    stage(31, 33, 100, format, LAYER_NORM, GELU, true);
  }
  for (Format format : {INT8, INT4}) stage(250, 17, 1100, format, NO_NORM, NOTHING, false);
}

// Attends with all queries by two threads, then with the last query of each sequence alone by one.
template <typename Attend>
void attend(const Sequences& s, const Buffer<float>& q, int heads, int key_heads, int d, Attend call) {
  const int64_t stride = int64_t(heads) * d, last = s.queries - 1;
  const Buffer<float> out("out", s.tokens * stride), alone("alone", 2 * stride);
  Problem problem = s.problem(q.data(), stride, out.data(), heads, key_heads, d);
  require(call(problem, 2), "nothing was attended to");
  const int32_t starts[] = {0, 1};
  for (int i : {0, 1}) {
    Problem one = s.problem(q.data() + (i ? s.queries : last) * stride, stride, alone.data() + i * stride, heads,
                            key_heads, d);
    one.tables += i * s.width, one.lengths += i, one.query_starts = starts;
    one.num_sequences = 1, one.num_tokens = 1;
    require(call(one, 1), "nothing was attended to alone");
  }
  std::vector<float> some(out.data() + last * stride, out.data() + s.tokens * stride);
  record("q", q.data(), {s.tokens, heads, d}), record("y", out.data(), {s.tokens, heads, d});
  record("last", some.data(), {2, heads, d}), record("last.alone", alone.data(), {2, heads, d});
  record("tables", s.tables.data(), {2, s.width}), record("starts", s.starts.data(), {3});
  record("lengths", s.lengths.data(), {2});
}

void attention(int64_t length, int64_t queries, int key_heads, int group, int d, int block_size) {
  current = "attention-" + std::to_string(length) + "-" + std::to_string(d);
  const Sequences s(length, queries, block_size);
  const int heads = key_heads * group;
  const int64_t size = s.blocks * key_heads * block_size * d, rows = (length + 1) * key_heads * d;
  const Buffer<float> keys("keys", size), values("values", size), k("k", rows), v("v", rows);
  const Buffer<float> q("q", s.tokens * heads * d);
  require(ternvl_write_kv(keys.data(), values.data(), s.slots.data(), k.data(), key_heads * d, v.data(), key_heads * d,
                          length + 1, s.blocks, key_heads, d, block_size, 2),
          "keys and values were not written");
  record("keys", keys.data(), {s.blocks, key_heads, d, block_size});
  record("values", values.data(), {s.blocks, key_heads, block_size, d});
  attend(s, q, heads, key_heads, d, [&](const Problem& problem, int threads) {
    return ternvl_paged_attention(&problem, keys.data(), values.data(), threads);
  });
}

void attention_int8(int64_t length, int64_t queries, int key_heads, int group, int d, bool causal) {
  current = std::string("attention_int8-") + (causal ? "causal-" : "all-") + std::to_string(length) + "-" + std::to_string(d);
  const Sequences s(length, queries, 16);
  const int heads = key_heads * group;
  const int64_t rows = (length + 1) * key_heads * d, block = 32 * d + 128;
  const Buffer<uint8_t> cache("cache", s.blocks * key_heads * block);
  const Buffer<float> k("k", rows), v("v", rows), q("q", s.tokens * heads * d);
  require(ternvl_write_kv_int8(cache.data(), s.slots.data(), k.data(), key_heads * d, v.data(), key_heads * d,
                               length + 1, s.blocks, key_heads, d, 2),
          "keys and values were not written in 8 bits");
  record("cache", cache.data(), {s.blocks, key_heads, block});
  attend(s, q, heads, key_heads, d, [&](const Problem& problem, int threads) {
    return ternvl_attention_int8(&problem, cache.data(), causal, threads);
  });
}

void tile_attention(int64_t tiles, int64_t length, int heads, int d) {
  current = "tile_attention-" + std::to_string(length);
  const int64_t size = length * heads * d;
  const Buffer<float> qkv("qkv", tiles * 3 * size), y("y", tiles * size), alone("alone", tiles * size);
  ternvl_tile_attention(qkv.data(), tiles, length, heads, d, y.data(), 2);
  for (int64_t i = 0; i < tiles; ++i)
    ternvl_tile_attention(qkv.data() + i * 3 * size, 1, length, heads, d, alone.data() + i * size, 1);
  record("qkv", qkv.data(), {tiles, length, 3, heads, d}), record("y", y.data(), {tiles, length, heads, d});
  record("y.alone", alone.data(), {tiles, length, heads, d});
}

void attentions() {
  for (int64_t length : {1, 5, 130, 1025}) {
    const int64_t queries = length > 200 ? 9 : length;
    attention(length, queries, 2, 3, 33, 7);
    attention(length, queries, 1, 7, 64, 16);
    for (int d : {48, 64}) attention_int8(length, queries, 2, 3, d, true);
    attention_int8(length, queries, 1, 2, 32, false);
  }
  tile_attention(2, 65, 2, 64);
}

// An adapter of matrices without the byte 0, which would stand for -128: quantised matrices hold -127 to 127.
template <typename T>
void lora(int64_t n, int64_t k, int64_t rank, int64_t m) {
  current = "lora-" + std::to_string(8 * sizeof(T)) + "-" + std::to_string(rank);
  const MadeAdapter<T> made(n, k, rank);
  const int64_t size = MadeAdapter<T>::size(n - 1, rank);
  for (int64_t i = 0; sizeof(T) == 1 && i < size; ++i)
    if (!made.b[i]) made.b[i] = 1;
  const Buffer<float> x("x", m * k), out("out", m * n);
  const std::vector<float> before(out.data(), out.data() + m * n);
  std::vector<float> alone = before;
  const Segment segments[] = {{0, 0, 1}, {1, 1, m}}, one{1, 0, 1};
  const Adapters adapters{segments, 2, 1}, only{&one, 1, 1};
  ternvl_lora_add(&made.added, &adapters, x.data(), m, k, k, out.data(), n, n, 2);
  for (int64_t i = 1; i < m; ++i)
    ternvl_lora_add(&made.added, &only, x.data() + i * k, 1, k, k, &alone[i * n], n, n, 1);
  record("a", made.a.data(), {panels_of(rank), k, NR});
  if (sizeof(T) == 1)
    record("b", made.b.data(), {panels_of(n - 1), (rank + 3) / 4, NR, 4});
  else
    record("b", made.b.data(), {panels_of(n - 1), rank, NR});
  record("scales", made.scales.data(), {panels_of(rank) * NR}), record("to", made.to.data(), {n - 1});
  record("x", x.data(), {m, k}), record("before", before.data(), {m, n}), record("y", out.data(), {m, n});
  record("y.alone", alone.data(), {m, n});
}

// Two layers over one sequence of new tokens and a single token, and over the single token alone.
void decode(Format format, bool is_int8) {
  current = std::string("decode-") + FORMATS[format] + (is_int8 ? "-int8" : "-float32");
  constexpr int HEADS = 6, KEY_HEADS = 2, D = 16, HIDDEN = 33, INNER = 31, LENGTH = 17;
  const Sequences s(LENGTH, LENGTH, 16);
  const Made qkv((HEADS + 2 * KEY_HEADS) * D, HIDDEN, format, RMS_NORM, NOTHING, true, 1);
  const Made o(HIDDEN, HEADS * D, format, NO_NORM, NOTHING, false, 1);
  const Made gate_up(2 * INNER, HIDDEN, format, RMS_NORM, SWIGLU, false, 1);
  const Made down(HIDDEN, INNER, format, NO_NORM, NOTHING, false, 1);
  const Layer layer{&qkv.stage, &o.stage, &gate_up.stage, &down.stage}, layers[] = {layer, layer};
  const int64_t floats = s.blocks * KEY_HEADS * 16 * D, bytes = s.blocks * KEY_HEADS * (32 * D + 128);
  const Buffer<float> keys("keys", 2 * floats), values("values", 2 * floats);
  const Buffer<uint8_t> cache("cache", 2 * bytes);
  const Buffer<float> cos("cos", s.tokens * D), sin("sin", s.tokens * D), x("x", s.tokens * HIDDEN);
  const Decoder decoder{layers, 2, HEADS, KEY_HEADS, D};
  const Cache held = is_int8 ? Cache{nullptr, nullptr, cache.data(), bytes, s.blocks, 16}
                             : Cache{keys.data(), values.data(), nullptr, floats, s.blocks, 16};
  std::vector<float> alone(x.data() + LENGTH * HIDDEN, x.data() + s.tokens * HIDDEN);
  const Step step{s.slots.data(), s.tables.data(), s.starts.data(), s.lengths.data(), cos.data(), sin.data(),
                  s.tokens,       2,               s.width};
  require(ternvl_decode(&decoder, &held, &step, nullptr, x.data(), 2), "nothing was decoded");
  const int32_t starts[] = {0, 1};
  const Step one{s.slots.data() + LENGTH, s.tables.data() + s.width, starts, s.lengths.data() + 1,
                 cos.data() + LENGTH * D, sin.data() + LENGTH * D,   1,      1, s.width};
  require(ternvl_decode(&decoder, &held, &one, nullptr, alone.data(), 1), "nothing was decoded alone");
  record("y", x.data(), {s.tokens, HIDDEN}), record("last", x.data() + LENGTH * HIDDEN, {1, HIDDEN});
  record("last.alone", alone.data(), {1, HIDDEN});
}

}  // namespace

int main(int count, char** arguments) {
  require(count == 2, "it takes a file");
  file = std::fopen(arguments[1], "wb");
  require(file, "the file cannot be written");
  elements();
  rotations();
  for (int64_t k : {7, 1025}) rows(5, k);
  linear<float>(33, 100, 13), linear<uint16_t>(33, 100, 13);
  linear<float>(100, 700, 29), linear<uint16_t>(100, 700, 29);
  stages();
  attentions();
  for (int64_t rank : {3, 17}) lora<float>(40, 33, rank, 5), lora<uint16_t>(40, 33, rank, 5), lora<int8_t>(40, 33, rank, 5);
  for (Format format : {FLOAT32, BFLOAT16, INT8, INT4})
    for (bool is_int8 : {false, true}) decode(format, is_int8);
  require(!std::fclose(file), "the file could not be written");
  for (const char* isa : {"neon", "dotprod", "i8mm"})
    if (ternvl_has_isa(isa)) std::printf("%s ", isa);
}
