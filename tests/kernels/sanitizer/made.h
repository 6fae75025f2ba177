// Stages, sequences and adapters of random numbers, with the memory that they point to.
#pragma once

#include "attention/attention.h"
#include "buffer.h"
#include "kernels.h"
#include "lora/lora.h"
#include "stage/decoder.h"
#include "stage/stage.h"

namespace {

// A stage and the memory that it points to. With `has_more` it has a bias, and its inputs are smoothed and mixed if its
// weights are quantised.
struct Made {
  bool is_float;
  int64_t padded, groups, floats;
  Buffer<float> scales, bias, smoothing, norm_weight, norm_bias, weight, float_panels;
  Buffer<int32_t> offsets;
  Buffer<int8_t> whole, int8_panels;
  Buffer<uint16_t> shorts, short_panels;
  Buffer<uint8_t> int4_panels, affine4_panels;
  Stage stage;

  Made(int64_t n, int64_t k, Format format, Before before, After after, bool has_more, int threads)
      : is_float(format == FLOAT32 || format == BFLOAT16),
        padded(NR * (after == SWIGLU ? 2 * panels_of(n / 2) : panels_of(n))), groups((k + 31) / 32),
        floats(panels_of(n) * NR * k), scales("stage.scales", padded), bias("stage.bias", is_float ? n : padded),
        smoothing("stage.smoothing", k), norm_weight("stage.norm_weight", k), norm_bias("stage.norm_bias", k),
        weight("stage.weight", n * k), float_panels("stage.float_panels", floats), offsets("stage.offsets", padded),
        whole("stage.whole", padded * k), int8_panels("stage.int8_panels", padded * ((k + 3) / 4 * 4)),
        shorts("stage.shorts", is_float ? n * k : padded * groups), short_panels("stage.short_panels", floats),
        int4_panels("stage.int4_panels", padded / NR * groups * 288),
        affine4_panels("stage.affine4_panels", padded / NR * groups * 384), stage() {
    stage.n = n, stage.k = k, stage.eps = 1e-6f, stage.format = format, stage.before = before, stage.after = after;
    shorts.under(0x3f80);
    if (format == FLOAT32) ternvl_pack_linear(weight.data(), 4, n, k, float_panels.data(), threads);
    if (format == BFLOAT16) ternvl_pack_linear(shorts.data(), 2, n, k, short_panels.data(), threads);
    if (format == INT8) ternvl_pack_int8(whole.data(), padded, k, int8_panels.data(), offsets.data(), threads);
    if (format == INT4) {
      whole.under(16);
      for (int64_t i = 0; i < padded * k; ++i) whole[i] = int8_t(whole[i] - 8);
      ternvl_pack_int4(whole.data(), shorts.data(), padded, k, int4_panels.data(), threads);
    }
    const void* panels[] = {float_panels.data(), short_panels.data(), int8_panels.data(), int4_panels.data(),
                             affine4_panels.data()};
    stage.panels = panels[format];
    stage.scales = format == INT8 ? scales.data() : nullptr;
    stage.offsets = format == INT8 ? offsets.data() : nullptr;
    stage.bias = has_more ? bias.data() : nullptr;
    stage.smoothing = has_more && !is_float ? smoothing.data() : nullptr;
    stage.mixed = !has_more || is_float || k % 16 ? 0 : k % 64 ? 16 : 64;
    stage.norm_weight = before != NO_NORM ? norm_weight.data() : nullptr;
    stage.norm_bias = before == LAYER_NORM ? norm_bias.data() : nullptr;
  }
};

// Two sequences: one of `length` positions with `queries` queries, and one of a single position.
struct Sequences {
  int64_t length, queries, block_size, width, blocks, tokens;
  Buffer<int32_t> tables, starts, lengths;
  Buffer<int64_t> slots;

  Sequences(int64_t length, int64_t queries, int64_t block_size)
      : length(length), queries(queries), block_size(block_size), width((length + block_size - 1) / block_size),
        blocks(width + 1), tokens(queries + 1), tables("tables", 2 * width), starts("starts", 3), lengths("lengths", 2),
        slots("slots", length + 1) {
    for (int64_t i = 0; i < width; ++i) tables[i] = int32_t(width - i), tables[width + i] = -1;
    tables[width] = 0;
    starts[0] = 0, starts[1] = int32_t(queries), starts[2] = int32_t(tokens);
    lengths[0] = int32_t(length), lengths[1] = 1;
    for (int64_t i = 0; i < length; ++i) slots[i] = tables[i / block_size] * block_size + i % block_size;
    slots[length] = 0;
  }

  Problem problem(const float* q, int64_t stride, float* out, int heads, int key_heads, int d) const {
    return {q,     out, tables.data(), starts.data(), lengths.data(), stride, int64_t(heads) * d,
            width, 2,   blocks,        tokens,        heads,          key_heads, d, int(block_size)};
  }
};

// An adapter that adds to all but the first output of a stage. The slot before its own is empty.
template <typename T>
struct MadeAdapter {
  Buffer<T> a, b;
  Buffer<float> scales, to;
  Entry table[2];
  Job job;
  Added added;

  static int64_t size(int64_t rows, int64_t k) { return panels_of(rows) * NR * (sizeof(T) == 1 ? (k + 3) / 4 * 4 : k); }

  MadeAdapter(int64_t n, int64_t k, int64_t rank)
      : a("lora.a", panels_of(rank) * NR * k), b("lora.b", size(n - 1, rank)),
        scales("lora.scales", panels_of(rank) * NR), to("lora.to", n - 1), table(), job{table, 2, 1, to.data()},
        added{&job, 1} {
    table[1] = {a.data(), b.data(), scales.data(), sizeof(T), rank, n - 1, 0};
    if constexpr (sizeof(T) == 2) a.under(0x3f80), b.under(0x3f80);
  }
};

}  // namespace
