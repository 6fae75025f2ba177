// What the tiles with weights of 4 bits share, whatever the scales of their groups are.
//
// A group of 32 inputs of a panel of 16 outputs has four runs of 64 bytes. Byte 4 c + i of run j holds input 8 j + i of
// output c in its lower half and input 8 j + 4 + i in its upper half, as a number from 0 to 15.
#pragma once

#include "product/quantised.h"

namespace {

constexpr int GROUP = 32, RUN = 64, RUNS = 4;

#if defined(__AVX512F__)
constexpr int MR = 6;
#elif defined(__AVX2__) || defined(__aarch64__)
constexpr int MR = 2;
#else
constexpr int MR = 1;
#endif

// Adds a group's products to `sums`, for R rows by P panels. `b` are the runs of the first panel, which are `stride`
// bytes before those of the next one; `a` are the bytes of the rows, which move on by the group.
template <int R, int P>
inline void add_products(IVec (&sums)[R][P * NV], const uint8_t* b, int64_t stride, const uint8_t*& a) {
  for (int j = 0; j < RUNS; ++j, a += 8 * R) {
    IVec low[P * NV], high[P * NV];
#pragma GCC unroll 8
    for (int v = 0; v < P * NV; ++v) {
      const IVec both = load_bytes(b + (v / NV) * stride + j * RUN + (v % NV) * W * 4);
      low[v] = both & 0x0f0f0f0f, high[v] = (both >> 4) & 0x0f0f0f0f;
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Signed first(broadcast_bytes(a + 4 * r)), second(broadcast_bytes(a + 4 * (R + r)));
#pragma GCC unroll 8
      for (int v = 0; v < P * NV; ++v)
        sums[r][v] = dot(dot(sums[r][v], Unsigned(low[v]), first), Unsigned(high[v]), second);
    }
  }
}

// Scales the totals of all groups by the rows' scales, adds the bias, and writes them.
template <int R, int P>
inline void complete(const Finish& finish, const Rows& rows, int64_t row, int64_t panel, Vec (&values)[R][P * NV]) {
  const Stage& stage = finish.stage;
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const Vec row_scale = broadcast(rows.scales[row + r]);
    for (int v = 0; v < P * NV; ++v) {
      const Vec bias = stage.bias ? load(stage.bias + panel * NR + v * W) : Vec{};
      values[r][v] = fma(values[r][v], row_scale, bias);
    }
  }
  finish.write<P>(row, R, panel, values[0]);
}

}  // namespace
