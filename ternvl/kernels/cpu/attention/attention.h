// What attention over float32 (float32.cpp) and attention over bytes (int8.cpp) share: a call, its items of work, and
// the arithmetic of softmax.
//
// A row is one query of one head. The G heads that share a key head are rows side by side, so a key is read once for
// all of them. Softmax runs online over tiles of TILE positions, which are aligned to absolute positions.
//
// Names: T tokens, S sequences, H query heads, D head size.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "simd.h"

// One call of attention. `ternvl/kernels/attention.py` mirrors it.
struct Problem {
  const float* q;               // [T, H, D] with tokens `q_stride` apart
  float* out;                   // [T, H, D] with tokens `out_stride` apart
  const int32_t* tables;        // [S, table_width]: the blocks of each sequence
  const int32_t* query_starts;  // [S + 1]
  const int32_t* lengths;       // [S]: positions, including those of the queries
  int64_t q_stride, out_stride, table_width, num_sequences, num_blocks, num_tokens;
  int32_t heads, key_heads, head_size, block_size;

  int group() const { return heads / key_heads; }
};

namespace {

constexpr int LANES = 16;     // keys side by side, and values side by side
constexpr int N = LANES / W;  // vectors of LANES floats
constexpr int TILE = 64;

// Queries of one sequence that attend over one key head together.
struct Item {
  const int32_t* table;
  int64_t first_row;                            // the first query's token
  int key_head, num_queries, position, length;  // the first query's position; all positions of the sequence

  int end() const { return position + num_queries; }
};

// The items of a call, each with at most `most_rows` rows, or with one query if that is more.
inline std::vector<Item> items_of(const Problem& problem, int most_rows) {
  std::vector<Item> items;
  const int most = std::max(1, most_rows / problem.group());
  for (int64_t s = 0; s < problem.num_sequences; ++s) {
    const int64_t start = problem.query_starts[s];
    const int n = problem.query_starts[s + 1] - start, length = problem.lengths[s];
    const int32_t* table = problem.tables + s * problem.table_width;
    for (int head = 0; head < problem.key_heads; ++head)
      for (int first = 0; first < n; first += most)
        items.push_back({table, start + first, head, std::min(most, n - first), length - n + first, length});
  }
  return items;
}

// Whether the sequences' queries are all rows of q, and all blocks that they need are within the cache.
inline bool is_sound(const Problem& problem) {
  const int32_t* starts = problem.query_starts;
  if (starts[0] != 0 || starts[problem.num_sequences] != problem.num_tokens) return false;
  for (int64_t s = 0; s < problem.num_sequences; ++s) {
    const int n = starts[s + 1] - starts[s], length = problem.lengths[s];
    const int64_t used = (int64_t(length) + problem.block_size - 1) / problem.block_size;
    if (n < 0 || n > length || used > problem.table_width) return false;
    const int32_t* table = problem.tables + s * problem.table_width;
    if (!std::all_of(table, table + used, [&](int32_t block) { return block >= 0 && block < problem.num_blocks; }))
      return false;
  }
  return true;
}

// The query of a row, [D].
inline const float* query_of(const Problem& problem, const Item& item, int row) {
  const int64_t group = problem.group(), head = item.key_head * group + row % group;
  return problem.q + (item.first_row + row / group) * problem.q_stride + head * problem.head_size;
}

// The factor of a score in front of a power of two: log2(e) / sqrt(D).
inline float score_scale(int head_size) { return 1.4426950408889634 / std::sqrt(double(head_size)); }

// 2^x for x <= 0 with a relative error below 1.5e-7. It is exact for whole numbers, and 0 below 2^-125.
inline Vec exp2(Vec x) {
  const Vec magic = broadcast(12582912.0f);  // 1.5 * 2^23: the last bits of the sum are the nearest whole number
  const Vec shifted = x + magic;
  const Vec f = x - (shifted - magic);
  Vec y = broadcast(1.5353362e-4f);
  for (float c : {1.3398875e-3f, 9.6184369e-3f, 5.5503324e-2f, 2.4022648e-1f, 6.9314718e-1f, 1.0f})
    y = fma(y, f, broadcast(c));
  const Vec scaled = reinterpret_cast<Vec>(reinterpret_cast<UVec>(y) + (reinterpret_cast<UVec>(shifted) << 23));
  return x < broadcast(-125.0f) ? Vec{} : scaled;
}

inline float exp2(float x) { return exp2(broadcast(x))[0]; }

// The largest of a row's first `count` scores. The scores behind them, up to a multiple of LANES, become -inf.
inline float largest_score(float* scores, int count) {
  const int vectors = (count + LANES - 1) / LANES * N;
  std::fill(scores + count, scores + vectors * W, -INFINITY);
  Vec top = load(scores);
  for (int i = 1; i < vectors; ++i) {
    const Vec x = load(scores + i * W);
    top = x > top ? x : top;
  }
  return max(top);
}

// Stores the result of a row: the weighted sums of values [D] divided by the sum of weights, which is in LANES parts.
inline void store_result(const Problem& problem, const Item& item, int row, const float* weights, const float* sums) {
  Vec parts{};
  for (int n = 0; n < N; ++n) parts += load(weights + n * W);
  const float weight = sum(parts);
  const int64_t group = problem.group(), head = item.key_head * group + row % group;
  float* out = problem.out + (item.first_row + row / group) * problem.out_stride + head * problem.head_size;
  // The sign of a zero can depend on how rows are cut into items; adding 0 makes it positive.
  for (int i = 0; i < problem.head_size; ++i) out[i] = sums[i] / weight + 0.0f;
}

}  // namespace
