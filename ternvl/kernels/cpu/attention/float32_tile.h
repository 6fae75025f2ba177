// The arithmetic of attention over float32 within a tile: scores, weights and weighted sums.
#pragma once

#include <algorithm>
#include <array>
#include <utility>

#include "attention/attention.h"

namespace {

constexpr int GROUPS = TILE / LANES;
#if defined(__aarch64__)
constexpr int ROWS = 6;  // as many rows of N sums as fit into the registers
#else
constexpr int ROWS = W == 16 ? 12 : W == 8 ? 6 : 2;
#endif

// Keys [D, key_stride] and values [LANES, width] of each group of LANES positions.
struct Tile {
  const float *keys[GROUPS], *values[GROUPS];
  int64_t key_stride;
};

// Scores of R rows with LANES keys: q [R, d], keys [d, stride] -> scores [R, TILE]. The next keys are prefetched,
// because the processor cannot foresee in which block they are.
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

// The weighted sums of values of R rows: multiplies them by the rows' factors, then adds weights [R, TILE] times the
// first `count` values.
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

// Calls work(first, count) for runs of at most ROWS rows, of sizes as equal as possible.
template <typename Work>
void by_rows(int rows, Work work) {
  for (int done = 0; done < rows;) {
    const int left = rows - done, runs = (left + ROWS - 1) / ROWS, count = (left + runs - 1) / runs;
    work(done, count);
    done += count;
  }
}

// Turns a row's first `count` scores into weights; returns the factor of what was summed before.
float soften(float* scores, int count, float* max, float* weights) {
  const int vectors = (count + LANES - 1) / LANES * N;
  const float before = *max;
  *max = std::max(before, largest_score(scores, count));
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
