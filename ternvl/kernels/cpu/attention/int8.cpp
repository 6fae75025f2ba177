// Attention over keys and values in bytes (int8_cache.h), in blocks of 16 positions, read where they are.
//
// Queries are quantised to signed bytes with one scale for each row. Scores are exact sums of products of bytes,
// scaled. Within a tile a weight is relative to the largest weight of the tile. A weight times the scale of its value
// becomes a byte from 0 to 255, where 255 stands for the largest scale that the row sees in the tile. So a weighted sum
// is exact, too; it is scaled, and added in the order of tiles. A row's arithmetic depends on its position alone, and
// not on how rows are cut into chunks, items and threads.
#include <vector>

#include "attention/int8_tile.h"
#include "kernels.h"

namespace {

struct Int8Problem : Problem {
  const uint8_t* cache;
  bool is_causal;

  const uint8_t* block(const int32_t* table, int64_t index, int key_head) const {
    return cache + (int64_t(table[index]) * key_heads + key_head) * block_bytes(head_size);
  }
  // How many positions a query of an item sees.
  int seen_by(const Item& item, int query) const { return is_causal ? item.position + query + 1 : item.length; }
};

// Adds a tile from position `start` on to the sums of all rows of the item.
void attend_tile(const Int8Problem& problem, const Item& item, int start, const Scratch& s) {
  const int group = problem.group(), d = problem.head_size, rows = item.num_queries * group;
  const int end = std::min(start + TILE, problem.seen_by(item, item.num_queries - 1)), count = end - start;
  const int blocks = (count + BLOCK - 1) / BLOCK;
  const uint8_t *keys[BLOCKS], *values[BLOCKS];
  const float* value_scales[BLOCKS];
  for (int b = 0; b < blocks; ++b) {
    keys[b] = problem.block(item.table, start / BLOCK + b, item.key_head), values[b] = keys[b] + BLOCK * d;
    value_scales[b] = reinterpret_cast<const float*>(keys[b] + 2 * BLOCK * d) + BLOCK;
  }
  // The first row that sees position p.
  const auto first_to_see = [&](int p) { return problem.is_causal ? std::max(0, p - item.position) * group : 0; };
  for (int b = 0; b < blocks; b += 2) {
    const auto& score = blocks - b >= 2 ? SCORE_TWO : SCORE_BLOCK;
    by_rows(first_to_see(start + b * BLOCK), rows, [&](int row, int some) {
      score[some - 1](s, row, d, keys + b, s.scores + row * TILE + b * BLOCK);
    });
  }
  ValueScales scales(value_scales, count);
  const int first = first_to_see(start);
  const auto seen_by = [&](int row) { return std::min(count, problem.seen_by(item, row / group) - start); };
  for (int row = first; row < rows; ++row) {
    float* scores = s.scores + row * TILE;
    s.tile_max[row] = seen_by(row) == TILE ? largest_of_tile(scores) : largest_score(scores, seen_by(row));
  }
  scale_rows(s, first, rows);
  for (int row = first; row < rows; ++row)
    (seen_by(row) == TILE ? soften<true> : soften<false>)(s, row, seen_by(row), scales);
  by_rows(first, rows, [&](int row, int some) { WEIGH_TILE[some - 1](s, row, d, blocks, values); });
}

// Prefetches the `d` floats of a later row of a head. Rows of a head are too far apart for the processor to foresee.
inline void expect(const float* row, int d) {
  for (int i = 0; i < d; i += 16) __builtin_prefetch(row + i);
}

constexpr int ROWS_AHEAD = 16;

// Quantises the queries of an item, and clears the sums of its rows.
void load_queries(const Int8Problem& problem, const Item& item, const Scratch& s) {
  const int d = problem.head_size;
  const float scale = score_scale(d);
  const int rows = item.num_queries * problem.group();
  for (int row = 0; row < rows; ++row) {
    if (row + ROWS_AHEAD < rows) expect(query_of(problem, item, row + ROWS_AHEAD), d);
    uint8_t* bytes = s.q + row * d;
    s.row_scales[row] = quantise(query_of(problem, item, row), d, 0, bytes) * scale;
    s.totals[row] = total_of(bytes, d);
  }
  std::fill_n(s.tile_max, PADDED_ROWS, -INFINITY);
  std::fill_n(s.max, PADDED_ROWS, -INFINITY);
  std::fill_n(s.weights, MOST_ROWS * LANES, 0.0f);
  std::fill_n(s.sums, MOST_ROWS * d, 0.0f);
}

// All rows of an item.
void attend(const Int8Problem& problem, const Item& item, const Scratch& s) {
  load_queries(problem, item, s);
  for (int start = 0; start < problem.seen_by(item, item.num_queries - 1); start += TILE)
    attend_tile(problem, item, start, s);
  for (int row = 0; row < item.num_queries * problem.group(); ++row)
    store_result(problem, item, row, s.weights + row * LANES, s.sums + row * problem.head_size);
}

// One head of one tile: quantises its keys and values to a cache in `memory`, then each patch attends to all. qkv and
// out point to the first element of the head.
void attend_head(const float* qkv, int64_t stride, int length, int d, float* out, int64_t out_stride, char* memory) {
  const int blocks = (length + BLOCK - 1) / BLOCK;
  const float *keys = qkv + stride / 3, *values = keys + stride / 3;
  float* mean = reinterpret_cast<float*>(memory);
  float* centred = mean + d;
  int32_t* table = reinterpret_cast<int32_t*>(centred + 4 * d);
  uint8_t* cache = reinterpret_cast<uint8_t*>(memory) + rounded(4 * (5 * d + blocks));
  const int32_t starts[2] = {0, length};
  const Problem call{qkv,    out, table,  starts, starts + 1, stride, out_stride,
                     blocks, 1,   blocks, length, 1,          1,      d,          BLOCK};
  const Int8Problem problem{call, cache, false};
  std::fill_n(mean, d, 0.0f);
  for (int64_t t = 0; t < length; ++t) {
    if (t + ROWS_AHEAD < length) expect(keys + (t + ROWS_AHEAD) * stride, d);
    for (int i = 0; i < d; ++i) mean[i] += keys[t * stride + i];
  }
  for (int i = 0; i < d; ++i) mean[i] /= float(length);
  for (int b = 0; b < blocks; ++b) table[b] = b;
  for (int64_t t = 0; t < length; t += 4) {
    const int count = int(std::min<int64_t>(4, length - t));
    const float *four_keys[4], *four_values[4];
    for (int j = 0; j < count; ++j) {
      four_keys[j] = centred + j * d, four_values[j] = values + (t + j) * stride;
      if (t + j + ROWS_AHEAD < length) expect(four_values[j] + ROWS_AHEAD * stride, d);
      for (int i = 0; i < d; ++i) centred[j * d + i] = keys[(t + j) * stride + i] - mean[i];
    }
    uint8_t* block = cache + t / BLOCK * block_bytes(d);
    if (count == 4) {
      write_four(block, d, int(t % BLOCK), four_keys, four_values);
      continue;
    }
    for (int j = 0; j < count; ++j) write_position(block, d, int(t % BLOCK) + j, four_keys[j], four_values[j]);
  }
  const Scratch scratch(reinterpret_cast<char*>(cache) + rounded(blocks * block_bytes(d)), d);
  for (const Item& item : items_of(problem, MOST_ROWS)) attend(problem, item, scratch);
}

}  // namespace

// q [T, heads, D] -> out of the same shape, over a cache [blocks, key heads, block bytes] with blocks of 16 positions.
// D is a multiple of 16 up to 1024. Without `is_causal` each query sees all positions of its sequence. Returns whether
// the tables and lengths are sound; nothing is computed if they are not.
EXPORT bool ternvl_attention_int8(const Problem* call, const uint8_t* cache, bool is_causal, int num_threads) {
  if (call->group() > MOST_ROWS || !is_sound(*call)) return false;
  const Int8Problem problem{*call, cache, is_causal};
  const int d = problem.head_size;
  const std::vector<Item> items = items_of(problem, MOST_ROWS);
  static thread_local Workspace workspace;
  const int64_t own = rounded(Scratch::size(d)), count = items.size();
  const int team = int(std::max<int64_t>(1, std::min<int64_t>(num_threads, count)));
  char* memory = workspace.get(own * team);
#pragma omp parallel num_threads(team) if (team > 1)
  {
    const Scratch scratch(memory + own * thread_index(), d);
#pragma omp for schedule(dynamic, 1) nowait
    for (int64_t i = count - 1; i >= 0; --i) attend(problem, items[i], scratch);  // the longest items first
  }
  return true;
}

// Attention among the patches of each image tile: qkv [tiles, length, 3, heads, D] -> out [tiles, length, heads, D].
// The mean of the keys over the patches is subtracted from the keys first.
EXPORT void ternvl_tile_attention(const float* qkv, int64_t num_tiles, int64_t length, int heads, int d, float* out,
                                  int num_threads) {
  static thread_local Workspace workspace;
  const int64_t blocks = (length + BLOCK - 1) / BLOCK, width = int64_t(heads) * d;
  const int64_t own = rounded(4 * (5 * d + blocks)) + rounded(blocks * block_bytes(d)) +
                      rounded(Scratch::size(d));
  char* memory = workspace.get(own * num_threads);
#pragma omp parallel for num_threads(num_threads) schedule(dynamic, 1) if (num_threads > 1)
  for (int64_t i = 0; i < num_tiles * heads; ++i) {
    const int64_t first = i / heads * length, head = i % heads;
    attend_head(qkv + first * 3 * width + head * d, 3 * width, int(length), d, out + first * width + head * d, width,
                memory + own * thread_index());
  }
}
