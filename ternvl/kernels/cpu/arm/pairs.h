// Products of many rows with weights of 8 bits by SMMLA, which multiplies two rows by two outputs, eight inputs deep: 64
// multiplications and additions in an instruction, where SDOT and USDOT have 32.
//
// The format is one of WideProduct (product/wide.h). Two neighbouring steps of four inputs are interleaved, so that a
// vector has eight inputs of two outputs, or of two rows. Inputs are signed, so there are no offsets.
#pragma once

#include "product/wide.h"

namespace {

constexpr int64_t MANY_ROWS = 8;  // from which preparing weights should pay; it was never measured

struct Paired {
  using Sum = int32_t;
  static constexpr int ZERO = 0, GROUP = 4, UNIT = 4;
  static constexpr bool TOTALS = false;
  static constexpr int64_t WEIGHTS = DEPTH * NR;
  static constexpr int COLUMNS = NR / 2;  // pairs of outputs
  static_assert(DEPTH % 8 == 0);

  static void store(const uint8_t* four, uint8_t* to) { std::memcpy(to, four, 4); }

  // The first halves of two vectors of four times four bytes, interleaved, and their second halves.
  static int32x4_t first(IVec a, IVec b) { return vzip1q_s32((int32x4_t)a, (int32x4_t)b); }
  static int32x4_t second(IVec a, IVec b) { return vzip2q_s32((int32x4_t)a, (int32x4_t)b); }

  // The last of an odd number of steps is paired with zeros.
  static void prepare(const Stage& stage, const Rows& rows, int64_t panel, Range inputs, char* to) {
    const int8_t* from = static_cast<const int8_t*>(stage.panels) + (panel * rows.steps * 4 + inputs.first) * NR;
    int32_t* pairs = reinterpret_cast<int32_t*>(to);
    for (int64_t left = inputs.size() / 4; left > 0; left -= 2, from += 8 * NR)
      for (int v = 0; v < NV; ++v, pairs += 2 * W) {
        const IVec one = load_bytes(from + v * W * 4), two = left > 1 ? load_bytes(from + (NV + v) * W * 4) : IVec{};
        vst1q_s32(pairs, first(one, two)), vst1q_s32(pairs + W, second(one, two));
      }
  }

  // Eight inputs of two rows, which are `next` bytes apart from the first four inputs to the others.
  static int8x16_t two_rows(const uint8_t* x, int64_t next) {
    const uint32x2_t one = vreinterpret_u32_u8(vld1_u8(x)), two = vreinterpret_u32_u8(vld1_u8(x + next));
    return vreinterpretq_s8_u32(vzip1q_u32(vcombine_u32(one, one), vcombine_u32(two, two)));
  }

  // The same of one row, twice.
  static int8x16_t one_row(const uint8_t* x, int64_t next) {
    uint32_t one, two;
    std::memcpy(&one, x, 4), std::memcpy(&two, x + next, 4);
    return vreinterpretq_s8_u32(vzip1q_u32(vdupq_n_u32(one), vdupq_n_u32(two)));
  }

  template <int R>
  static void add(const Stage&, const Rows& rows, int64_t row, int64_t, Range inputs, const char* weights,
                  int32_t* sums) {
    const uint8_t* x = rows.at(row) + inputs.first / 4 * R * UNIT;
    const int8_t* pairs = reinterpret_cast<const int8_t*>(weights);
    int32x4_t total[(R + 1) / 2][COLUMNS];
    const auto other = [](int r) { return r + 1 < R ? r + 1 : r; };  // of an odd number of rows the last is taken twice
#pragma GCC unroll 8
    for (int r = 0; r < R; r += 2)
#pragma GCC unroll 8
      for (int c = 0; c < COLUMNS; ++c)
        total[r / 2][c] = vcombine_s32(vld1_s32(sums + r * NR + 2 * c), vld1_s32(sums + other(r) * NR + 2 * c));
    for (int64_t left = inputs.size() / 4; left > 0; left -= 2, x += 2 * R * UNIT) {
      const int64_t next = left > 1 ? R * UNIT : 0;
      int8x16_t input[(R + 1) / 2];
#pragma GCC unroll 8
      for (int r = 0; r < R; r += 2)
        input[r / 2] = r + 1 < R ? two_rows(x + r * UNIT, next) : one_row(x + r * UNIT, next);
#pragma GCC unroll 8
      for (int c = 0; c < COLUMNS; ++c, pairs += 16) {
        int8x16_t own = vld1q_s8(pairs);
        keep(own);  // one after the other, because there is no room for all of them
#pragma GCC unroll 8
        for (int r = 0; r < R; r += 2)
          total[r / 2][c] = vmmlaq_s32(total[r / 2][c], input[r / 2], own), keep(total[r / 2][c]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r += 2)
#pragma GCC unroll 8
      for (int c = 0; c < COLUMNS; ++c) {
        vst1_s32(sums + r * NR + 2 * c, vget_low_s32(total[r / 2][c]));
        if (r + 1 < R) vst1_s32(sums + (r + 1) * NR + 2 * c, vget_high_s32(total[r / 2][c]));
      }
  }

  static Vec value(const Stage& stage, const int32_t* sums, int64_t column) {
    return to_float(load_bytes(sums)) * load(stage.scales + column);
  }
};

}  // namespace
