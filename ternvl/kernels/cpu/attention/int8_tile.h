// The arithmetic of attention over bytes within a tile: scores, weights and weighted sums.
#pragma once

#include <array>
#include <utility>

#include "attention/attention.h"
#include "attention/int8_cache.h"
#include "rows.h"
#include "work.h"

namespace {

constexpr int BLOCKS = TILE / BLOCK;
constexpr int MOST_ROWS = 56;  // rows of an item
constexpr int PADDED_ROWS = (MOST_ROWS + LANES - 1) / LANES * LANES;
#if defined(__AVX512F__)
constexpr int R = 7;  // rows of a tile of registers
#else
constexpr int R = 2;
#endif

// What a thread keeps of the rows of an item.
struct Scratch {
  float *scores, *sums, *max, *weights, *row_scales, *factors, *tile_max, *tile_factors;
  int32_t *totals, *weight_totals;
  uint8_t *q, *p;

  static int64_t size(int d) { return PADDED_ROWS * (4 * (TILE + d + LANES + 7) + d + TILE) + 4096; }

  Scratch(char* memory, int d) {
    const auto take = [&](int64_t count) {
      float* taken = reinterpret_cast<float*>(memory);
      memory += rounded(4 * count);
      return taken;
    };
    scores = take(MOST_ROWS * TILE), sums = take(MOST_ROWS * d), weights = take(MOST_ROWS * LANES);
    max = take(PADDED_ROWS), row_scales = take(MOST_ROWS), factors = take(PADDED_ROWS);
    tile_max = take(PADDED_ROWS), tile_factors = take(PADDED_ROWS);
    totals = reinterpret_cast<int32_t*>(take(MOST_ROWS));
    weight_totals = reinterpret_cast<int32_t*>(take(MOST_ROWS));
    q = reinterpret_cast<uint8_t*>(take(MOST_ROWS * d / 4 + 32));
    p = reinterpret_cast<uint8_t*>(take(MOST_ROWS * TILE / 4 + 32));
  }
};

// What the rows of a tile share: the scales of its values, which are 0 behind the last position, and of those that a
// row sees the factors to weights in bytes and back, which follow from the largest.
struct ValueScales {
  alignas(64) float scales[TILE];
  float to_bytes = 0, from_bytes = 0;

  ValueScales(const float* const* blocks, int count) {
    for (int i = 0; i < TILE; ++i) scales[i] = i < count ? blocks[i / BLOCK][i % BLOCK] : 0;
  }

  // Makes the factors those of the first `count` positions, which later rows do not see fewer of.
  void see(int count) {
    if (count == seen) return;
    for (; seen < count; ++seen) largest = std::max(largest, scales[seen]);
    to_bytes = largest > 0 ? 255.0f / largest : 0.0f;
    from_bytes = largest / 255.0f;
  }

 private:
  int seen = 0;
  float largest = 0;
};

// Scores of ROWS rows with the 16 keys of each of B blocks.
template <int ROWS, int B>
void score_blocks(const Scratch& s, int row, int d, const uint8_t* const* keys, float* to) {
  IVec sums[ROWS][B * N];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < B * N; ++n) sums[r][n] = broadcast(-OFFSET * s.totals[row + r]);
  for (int i = 0; i < d / 4; ++i) {
    IVec key[B * N];
#pragma GCC unroll 8
    for (int n = 0; n < B * N; ++n) key[n] = lowered(load_bytes(keys[n / N] + i * 64 + n % N * W * 4));
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const Signed x(broadcast_bytes(s.q + (row + r) * d + i * 4));
#pragma GCC unroll 8
      for (int n = 0; n < B * N; ++n) sums[r][n] = dot(sums[r][n], Unsigned(key[n]), x);
    }
  }
#pragma GCC unroll 8
  for (int n = 0; n < B * N; ++n) {
    const Vec scale = load(reinterpret_cast<const float*>(keys[n / N] + 2 * BLOCK * d) + n % N * W);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r)
      store(to + r * TILE + n * W, to_float(sums[r][n]) * scale * broadcast(s.row_scales[row + r]));
  }
}

// 2^x for x <= 0 with a relative error of 5e-5, which is small beside the rounding to a byte. It is exact for whole
// numbers, and 2^-125 for all that are less, which becomes the byte 0.
inline Vec rough_exp2(Vec x) {
  x = at_least(broadcast(-125.0f), x);
#if defined(__AVX512F__)
  const Vec n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const Vec magic = broadcast(12582912.0f), shifted = x + magic, n = shifted - magic;  // as in `exp2`
#endif
  const Vec f = x - n;
  Vec y = broadcast(9.6181291e-3f);
  for (float c : {5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f}) y = fma(y, f, broadcast(c));
#if defined(__AVX512F__)
  return _mm512_scalef_ps(y, n);
#else
  return reinterpret_cast<Vec>(reinterpret_cast<UVec>(y) + (reinterpret_cast<UVec>(shifted) << 23));
#endif
}

// Computes the factors of rows from `first` on, for what was summed before and for this tile.
void scale_rows(const Scratch& s, int first, int rows) {
  for (int row = first / W * W; row < rows; row += W) {
    const Vec before = load(s.max + row), here = load(s.tile_max + row), now = here > before ? here : before;
    store(s.factors + row, exp2(before - now));
    store(s.tile_factors + row, exp2(here - now));
    store(s.max + row, now);
  }
}

// Turns a row's first `count` scores into weights in bytes, the others into 0, and adds to the sums of its weights. The
// number of vectors of a whole tile, which almost all are, is known to the compiler.
template <bool IS_WHOLE>
void soften(const Scratch& s, int row, int count, ValueScales& values) {
  const float* scores = s.scores + row * TILE;
  const int vectors = IS_WHOLE ? TILE / W : (count + LANES - 1) / LANES * N;
  values.see(count);
  const Vec largest = broadcast(s.tile_max[row]), to_bytes = broadcast(values.to_bytes);
  uint8_t* bytes = s.p + row * TILE;
  Vec total[N] = {};
#pragma GCC unroll 8
  for (int i = 0; i < vectors; ++i) {
    const Vec weight = rough_exp2(load(scores + i * W) - largest);
    total[i % N] += weight;
    store_bytes(bytes + i * W, round_to_byte(weight * load(values.scales + i * W) * to_bytes));
  }
  if (!IS_WHOLE) std::fill(bytes + vectors * W, bytes + TILE, uint8_t(0));
  if (RAISED) s.weight_totals[row] = total_unsigned(bytes, TILE);
  float* weights = s.weights + row * LANES;
  const Vec factor = broadcast(s.factors[row]), own = broadcast(s.tile_factors[row]);
  for (int n = 0; n < N; ++n) store(weights + n * W, fma(load(weights + n * W), factor, total[n] * own));
  s.tile_factors[row] *= values.from_bytes;
}

// The largest score of a row that sees the whole tile.
inline float largest_of_tile(const float* scores) {
  Vec top = load(scores);
#pragma GCC unroll 16
  for (int i = 1; i < TILE / W; ++i) {
    const Vec x = load(scores + i * W);
    top = x > top ? x : top;
  }
  return max(top);
}

// V vectors of the weighted sums of ROWS rows over the first `blocks` blocks of a tile, scaled and added to the sums of
// earlier tiles.
template <int ROWS, int V>
void weigh_columns(const Scratch& s, int row, int d, int column, int blocks, const uint8_t* const* values) {
  IVec sums[ROWS][V];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < V; ++n) sums[r][n] = RAISED ? broadcast(-RAISED * s.weight_totals[row + r]) : IVec{};
  for (int b = 0; b < blocks; ++b)
    for (int i = 0; i < BLOCK / 4; ++i) {
      IVec value[V];
#pragma GCC unroll 8
      for (int n = 0; n < V; ++n) value[n] = raised(load_bytes(values[b] + (i * d + column) * 4 + n * W * 4));
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r) {
        const Unsigned weight(broadcast_bytes(s.p + (row + r) * TILE + b * BLOCK + i * 4));
#pragma GCC unroll 8
        for (int n = 0; n < V; ++n) sums[r][n] = dot_weights(sums[r][n], weight, Signed(value[n]));
      }
    }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < V; ++n) {
      float* total = s.sums + (row + r) * d + column + n * W;
      const Vec scaled = load(total) * broadcast(s.factors[row + r]);
      store(total, fma(to_float(sums[r][n]), broadcast(s.tile_factors[row + r]), scaled));
    }
}

// All weighted sums of ROWS rows over the first `blocks` blocks of a tile.
template <int ROWS>
void weigh_tile(const Scratch& s, int row, int d, int blocks, const uint8_t* const* values) {
  int column = 0;
  for (; column + 2 * LANES <= d; column += 2 * LANES) weigh_columns<ROWS, 2 * N>(s, row, d, column, blocks, values);
  if (column < d) weigh_columns<ROWS, N>(s, row, d, column, blocks, values);
}

template <int B, int... I>
constexpr auto scorers(std::integer_sequence<int, I...>) {
  return std::array{score_blocks<I + 1, B>...};
}
template <int... I>
constexpr auto weighers(std::integer_sequence<int, I...>) {
  return std::array{weigh_tile<I + 1>...};
}
constexpr auto SCORE_BLOCK = scorers<1>(std::make_integer_sequence<int, R>());
constexpr auto SCORE_TWO = scorers<2>(std::make_integer_sequence<int, R>());
constexpr auto WEIGH_TILE = weighers(std::make_integer_sequence<int, R>());

// Calls work(first, count) for runs of at most R rows from `first` to `last`.
template <typename Work>
void by_rows(int first, int last, Work work) {
  for (; first < last; first += R) work(first, std::min(R, last - first));
}

}  // namespace
