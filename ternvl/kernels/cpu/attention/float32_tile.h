// The parts of paged attention that know of rows and tiles alone: scores, weights and weighted sums.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "simd.h"

namespace {

constexpr int LANES = 16;  // keys side by side; the width of panels of values, too
constexpr int N = LANES / W;
constexpr int TILE = 64;
constexpr int GROUPS = TILE / LANES;
constexpr int ROWS = W == 16 ? 12 : W == 8 ? 6 : 2;  // as many rows of N sums as the registers hold

// Keys [D, stride] and values [LANES, width] of each LANES positions.
struct Tile {
  const float *keys[GROUPS], *values[GROUPS];
  int64_t key_stride;
};

// 2 ** x for x <= 0, exact for whole numbers; the relative error is below 1.5e-7, results below 2 ** -125 are 0.
inline Vec exp2(Vec x) {
  const Vec magic = broadcast(12582912.0f);  // 1.5 * 2 ** 23: the sum's last bits are the nearest whole number
  const Vec shifted = x + magic;
  const Vec f = x - (shifted - magic);
  Vec y = broadcast(1.5353362e-4f);
  for (float c : {1.3398875e-3f, 9.6184369e-3f, 5.5503324e-2f, 2.4022648e-1f, 6.9314718e-1f, 1.0f})
    y = fma(y, f, broadcast(c));
  const Vec scaled = reinterpret_cast<Vec>(reinterpret_cast<UVec>(y) + (reinterpret_cast<UVec>(shifted) << 23));
  return x < broadcast(-125.0f) ? Vec{} : scaled;
}

inline float exp2(float x) { return exp2(broadcast(x))[0]; }

// Scores of R rows with LANES keys: q [R, d], keys [d, stride] -> scores [R, TILE]. The next keys are on their way
// meanwhile: the processor does not foresee in which block they are.
template <int R>
void score(const float* q, int d, const float* keys, const float* next_keys, int64_t stride, float* scores) {
  Vec sum[R][N] = {};
  for (int i = 0; i < d; ++i) {
    __builtin_prefetch(next_keys + i * stride);
    Vec key[N];
    for (int n = 0; n < N; ++n) key[n] = load(keys + i * stride + n * W);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec x = broadcast(q[r * d + i]);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sum[r][n] = fma(x, key[n], sum[r][n]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) store(scores + r * TILE + n * W, sum[r][n]);
}

// R rows' sums of values: rescaled by their factors, then weights [R, TILE] times the first `count` values added.
template <int R>
void weigh(const float* weights, const Tile& tile, const Tile& next, int count, const float* factors, float* sums,
           int width) {
  for (int column = 0; column < width; column += LANES) {
    Vec sum[R][N];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) sum[r][n] = load(sums + r * width + column + n * W) * factors[r];
    for (int g = 0; g * LANES < count; ++g) {
      const float *values = tile.values[g] + column, *next_values = next.values[g] + column;
      const float* weight = weights + g * LANES;
      const int here = std::min(LANES, count - g * LANES);
      for (int i = 0; i < here; ++i) {
        __builtin_prefetch(next_values + int64_t(i) * width);
        Vec value[N];
        for (int n = 0; n < N; ++n) value[n] = load(values + int64_t(i) * width + n * W);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const Vec w = broadcast(weight[r * TILE + i]);
#pragma GCC unroll 4
          for (int n = 0; n < N; ++n) sum[r][n] = fma(w, value[n], sum[r][n]);
        }
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) store(sums + r * width + column + n * W, sum[r][n]);
  }
}

template <int... R>
constexpr auto scores_of(std::integer_sequence<int, R...>) {
  return std::array{score<R + 1>...};
}

template <int... R>
constexpr auto weighs_of(std::integer_sequence<int, R...>) {
  return std::array{weigh<R + 1>...};
}

constexpr auto SCORE = scores_of(std::make_integer_sequence<int, ROWS>());
constexpr auto WEIGH = weighs_of(std::make_integer_sequence<int, ROWS>());

// Calls work(first, count) for runs of at most ROWS rows, as even as can be.
template <typename Work>
void by_rows(int rows, Work work) {
  for (int done = 0; done < rows;) {
    const int left = rows - done, runs = (left + ROWS - 1) / ROWS, count = (left + runs - 1) / runs;
    work(done, count);
    done += count;
  }
}

// A row's first `count` scores become weights; returns the factor for what was summed before.
float soften(float* scores, int count, float* max, float* weights) {
  const int vectors = (count + LANES - 1) / LANES * N;
  std::fill(scores + count, scores + vectors * W, -INFINITY);
  Vec top = load(scores);
  for (int i = 1; i < vectors; ++i) {
    const Vec x = load(scores + i * W);
    top = x > top ? x : top;
  }
  const float before = *max;
  *max = std::max(before, ::max(top));
  const float factor = exp2(before - *max);
  Vec sum[N];
  for (int n = 0; n < N; ++n) sum[n] = load(weights + n * W) * factor;
  const Vec offset = broadcast(*max);
  for (int i = 0; i < vectors; i += N)
    for (int n = 0; n < N; ++n) {
      const Vec weight = exp2(load(scores + (i + n) * W) - offset);
      store(scores + (i + n) * W, weight);
      sum[n] += weight;
    }
  for (int n = 0; n < N; ++n) store(weights + n * W, sum[n]);
  return factor;
}

}  // namespace
