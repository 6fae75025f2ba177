// Products of many rows where no instruction adds four products of bytes to a lane (VNNI does).
//
// There a product of bytes takes several instructions, of which some prepare the weights. So the weights of one or two
// panels are prepared once for many rows, DEPTH inputs at a time, which stay in the first-level cache. Sums of rows wait
// in memory from one run of inputs to the next. Every sum is what the tiles for few rows compute, to the bit.
#pragma once

#include "product/quantised.h"

namespace {

#if defined(__AVX512F__)
constexpr int WIDE = 12;  // rows of a tile
#elif defined(__AVX2__)
constexpr int WIDE = 6;
#elif defined(__ARM_FEATURE_MATMUL_INT8)
constexpr int WIDE = 6;
#elif defined(__aarch64__)
constexpr int WIDE = 3;
#else
constexpr int WIDE = 2;
#endif
constexpr int64_t DEPTH = 256;      // inputs whose weights are prepared at a time
constexpr int64_t NUM_BLOCKS = 40;  // blocks of rows whose sums wait at a time: few enough for the second-level cache

// `Format` is like `Product` of `run_stage`, and has
//   Sum                      what waits: int32_t or float
//   WEIGHTS                  bytes of DEPTH prepared inputs of a panel
//   prepare(stage, rows, panel, inputs, to)
//   add<R>(stage, rows, row, panel, inputs, weights, sums)
//   value(stage, sums, column)      a vector of sums, scaled by what belongs to the outputs
template <typename Format>
struct WideProduct : Format {
  using Sum = typename Format::Sum;
  static constexpr int64_t MOST = WIDE;

  static int64_t scratch(const Rows&) { return 2 * Format::WEIGHTS + NUM_BLOCKS * WIDE * 2 * NR * int64_t(sizeof(Sum)); }

  template <int... I>
  static constexpr auto adders(std::integer_sequence<int, I...>) {
    return std::array{Format::template add<I + 1>...};
  }

  static void compute(const Finish& finish, const Rows& rows, int64_t panel, int count, char* scratch) {
    constexpr auto ADD = adders(std::make_integer_sequence<int, WIDE>());
    const Stage& stage = finish.stage;
    Sum* sums = reinterpret_cast<Sum*>(scratch + 2 * Format::WEIGHTS);
    for (int64_t first = 0; first < rows.num_blocks(); first += NUM_BLOCKS) {
      const int64_t last = std::min(first + NUM_BLOCKS, rows.num_blocks()), start = rows.block(first).first;
      std::fill_n(sums, (rows.block(last - 1).last - start) * count * NR, Sum(0));
      for (int64_t input = 0; input < rows.steps * 4; input += DEPTH) {
        const Range inputs{input, std::min(input + DEPTH, rows.steps * 4)};
        for (int p = 0; p < count; ++p)
          Format::prepare(stage, rows, panel + p, inputs, scratch + p * Format::WEIGHTS);
        for (int64_t i = first; i < last; ++i) {
          const Range block = rows.block(i);
          for (int p = 0; p < count; ++p)
            ADD[block.size() - 1](stage, rows, block.first, panel + p, inputs, scratch + p * Format::WEIGHTS,
                                  sums + ((block.first - start) * count + p * block.size()) * NR);
        }
      }
      for (int64_t i = first; i < last; ++i) {
        const Range block = rows.block(i);
        const Sum* from = sums + (block.first - start) * count * NR;
        count == 2 ? complete<2>(finish, rows, block, panel, from) : complete<1>(finish, rows, block, panel, from);
      }
    }
  }

  // `sums` are [P][rows][NR].
  template <int P>
  static void complete(const Finish& finish, const Rows& rows, Range block, int64_t panel, const Sum* sums) {
    const Stage& stage = finish.stage;
    Vec values[WIDE][P * NV];
    for (int64_t r = 0; r < block.size(); ++r) {
      const Vec row_scale = broadcast(rows.scales[block.first + r]);
      for (int v = 0; v < P * NV; ++v) {
        const int64_t column = panel * NR + v * W;
        const Vec bias = stage.bias ? load(stage.bias + column) : Vec{};
        const Sum* from = sums + (v / NV * block.size() + r) * NR + v % NV * W;
        values[r][v] = fma(Format::value(stage, from, column), row_scale, bias);
      }
    }
    finish.write<P>(block.first, int(block.size()), panel, values[0]);
  }
};

}  // namespace
