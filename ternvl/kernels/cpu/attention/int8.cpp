// Attention over keys and values in bytes, in blocks of 16 positions, read where they lie.
//
// A block of one key head holds, for head size D (a multiple of 16):
//     keys    [D / 4][16][4]   unsigned, 128 above their value: a vector is four dimensions of each of 16 positions
//     values  [16 / 4][D][4]   signed: a vector is four positions of each of 16 dimensions
//     scales  [2][16] float    what 1 stands for in each position's key, and value
// Queries become signed bytes with one scale a row. Scores are exact sums of bytes, scaled. Softmax runs online over
// tiles of 64 positions, aligned to absolute positions. Within a tile a weight is relative to the tile's largest. Weights
// times the scales of their values become bytes from 0 to 255, which is the largest of the scales that the row sees, so a
// weighted sum is exact again, scaled and added in order. A row's arithmetic follows from its position alone, and not
// from how rows are cut into chunks, items and threads.
//
// Names: G query heads share a key head and are rows side by side.
#include <new>
#include <vector>

#include "attention/float32_tile.h"
#include "rows.h"

namespace {

constexpr int BLOCK = 16, BLOCKS = TILE / BLOCK;
constexpr int MOST_ROWS = 56;  // of an item
#if defined(__AVX512F__)
constexpr int R = 7;
#else
constexpr int R = 2;
#endif

constexpr int64_t rounded(int64_t size) { return (size + 63) / 64 * 64; }

struct Problem {
  const float* q;
  const uint8_t* cache;
  float* out;
  const int32_t *tables, *query_starts, *lengths;
  int64_t q_stride, out_stride, table_width, num_sequences, num_blocks, num_tokens;
  int heads, key_heads, d;
  bool is_causal;

  int group() const { return heads / key_heads; }
  int64_t block_bytes() const { return 2 * BLOCK * d + 2 * BLOCK * 4; }
  const uint8_t* block(const int32_t* table, int64_t index, int key_head) const {
    return cache + (int64_t(table[index]) * key_heads + key_head) * block_bytes();
  }
};

struct Item {
  const int32_t* table;
  int64_t first_row;
  int key_head, num_queries, position, length;  // position of the first query; positions of the sequence in all

  int seen_by(const Problem& problem, int query) const { return problem.is_causal ? position + query + 1 : length; }
};

constexpr int PADDED_ROWS = (MOST_ROWS + LANES - 1) / LANES * LANES;

struct Scratch {
  float *scores, *sums, *max, *weights, *row_scales, *factors, *tile_max, *tile_factors;
  int32_t* totals;
  uint8_t *q, *p;

  static int64_t size(int d) { return PADDED_ROWS * (4 * (TILE + d + LANES + 6) + d + TILE) + 4096; }

  Scratch(char* memory, int d) {
    const auto take = [&](int64_t count) {
      float* taken = reinterpret_cast<float*>(memory);
      memory += (4 * count + 63) / 64 * 64;
      return taken;
    };
    scores = take(MOST_ROWS * TILE), sums = take(MOST_ROWS * d), weights = take(MOST_ROWS * LANES);
    max = take(PADDED_ROWS), row_scales = take(MOST_ROWS), factors = take(PADDED_ROWS);
    tile_max = take(PADDED_ROWS), tile_factors = take(PADDED_ROWS);
    totals = reinterpret_cast<int32_t*>(take(MOST_ROWS));
    q = reinterpret_cast<uint8_t*>(take(MOST_ROWS * d / 4 + 32));
    p = reinterpret_cast<uint8_t*>(take(MOST_ROWS * TILE / 4 + 32));
  }
};

// What rows share in a tile: the scales of its values, 0 where the item sees none, and of the first n + 1 the largest,
// from which weights in bytes come and to which their sums go back.
struct ValueScales {
  alignas(64) float scales[TILE];
  float to_bytes[TILE], from_bytes[TILE];

  ValueScales(const float* const* blocks, int count) {
    float largest = 0;
    for (int i = 0; i < TILE; ++i) {
      scales[i] = i < count ? blocks[i / BLOCK][i % BLOCK] : 0;
      largest = std::max(largest, scales[i]);
      to_bytes[i] = largest > 0 ? 255.0f / largest : 0.0f;
      from_bytes[i] = largest / 255.0f;
    }
  }
};

// Scores of ROWS rows with the 16 keys of each of B blocks.
template <int ROWS, int B>
void score_blocks(const Scratch& s, int row, int d, const uint8_t* const* keys, float* to) {
  IVec sums[ROWS][B * N];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < B * N; ++n) sums[r][n] = broadcast(-128 * s.totals[row + r]);
  for (int i = 0; i < d / 4; ++i) {
    IVec key[B * N];
#pragma GCC unroll 8
    for (int n = 0; n < B * N; ++n) key[n] = load_bytes(keys[n / N] + i * 64 + n % N * W * 4);
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

// 2 ** x for x <= 0, to 5e-5, which is little beside a byte; exact for whole numbers, and 0 below 2 ** -125.
inline Vec rough_exp2(Vec x) {
  const Vec magic = broadcast(12582912.0f);  // 1.5 * 2 ** 23: the sum's last bits are the nearest whole number
  const Vec shifted = x + magic, f = x - (shifted - magic);
  Vec y = broadcast(9.6181291e-3f);
  for (float c : {5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f}) y = fma(y, f, broadcast(c));
  const Vec scaled = reinterpret_cast<Vec>(reinterpret_cast<UVec>(y) + (reinterpret_cast<UVec>(shifted) << 23));
  return x < broadcast(-125.0f) ? Vec{} : scaled;
}

// The largest of a row's first `count` scores; what follows up to a whole vector becomes -inf.
void find_largest(const Scratch& s, int row, int count) {
  float* scores = s.scores + row * TILE;
  const int vectors = (count + LANES - 1) / LANES * N;
  for (int i = count; i < vectors * W; ++i) scores[i] = -INFINITY;
  Vec top = load(scores);
  for (int i = 1; i < vectors; ++i) {
    const Vec x = load(scores + i * W);
    top = x > top ? x : top;
  }
  s.tile_max[row] = ::max(top);
}

// The factors of rows for what was before, and for the tile.
void scale_rows(const Scratch& s, int first, int rows) {
  for (int row = first / W * W; row < rows; row += W) {
    const Vec before = load(s.max + row), here = load(s.tile_max + row), now = here > before ? here : before;
    store(s.factors + row, exp2(before - now));
    store(s.tile_factors + row, exp2(here - now));
    store(s.max + row, now);
  }
}

// A row's first `count` scores become bytes of weights, the others 0; adds to the sums of its weights.
void soften(const Scratch& s, int row, int count, const ValueScales& values) {
  const float* scores = s.scores + row * TILE;
  const int vectors = (count + LANES - 1) / LANES * N;
  const Vec largest = broadcast(s.tile_max[row]), to_bytes = broadcast(values.to_bytes[count - 1]);
  uint8_t* bytes = s.p + row * TILE;
  Vec total[N] = {};
  for (int i = 0; i < vectors; ++i) {
    const Vec weight = rough_exp2(load(scores + i * W) - largest);
    total[i % N] += weight;
    const IVec whole = round(weight * load(values.scales + i * W) * to_bytes);
#if defined(__AVX512F__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes + i * W), _mm512_cvtepi32_epi8((__m512i)whole));
#else
    for (int j = 0; j < W; ++j) bytes[i * W + j] = uint8_t(whole[j]);
#endif
  }
  std::fill(bytes + vectors * W, bytes + TILE, uint8_t(0));
  float* weights = s.weights + row * LANES;
  const Vec factor = broadcast(s.factors[row]), own = broadcast(s.tile_factors[row]);
  for (int n = 0; n < N; ++n) store(weights + n * W, fma(load(weights + n * W), factor, total[n] * own));
  s.tile_factors[row] *= values.from_bytes[count - 1];
}

// V vectors of the weighted sums of ROWS rows over the first `blocks` blocks of a tile, rescaled and added to what was
// before.
template <int ROWS, int V>
void weigh_columns(const Scratch& s, int row, int d, int column, int blocks, const uint8_t* const* values) {
  IVec sums[ROWS][V] = {};
  for (int b = 0; b < blocks; ++b)
    for (int i = 0; i < BLOCK / 4; ++i) {
      IVec value[V];
#pragma GCC unroll 8
      for (int n = 0; n < V; ++n) value[n] = load_bytes(values[b] + (i * d + column) * 4 + n * W * 4);
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r) {
        const Unsigned weight(broadcast_bytes(s.p + (row + r) * TILE + b * BLOCK + i * 4));
#pragma GCC unroll 8
        for (int n = 0; n < V; ++n) sums[r][n] = dot(sums[r][n], weight, Signed(value[n]));
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

void attend_tile(const Problem& problem, const Item& item, int start, const Scratch& s) {
  const int group = problem.group(), d = problem.d, rows = item.num_queries * group;
  const int end = std::min(start + TILE, item.seen_by(problem, item.num_queries - 1)), count = end - start;
  const int blocks = (count + BLOCK - 1) / BLOCK;
  const uint8_t *keys[BLOCKS], *values[BLOCKS];
  const float* value_scales[BLOCKS];
  for (int b = 0; b < blocks; ++b) {
    keys[b] = problem.block(item.table, start / BLOCK + b, item.key_head), values[b] = keys[b] + BLOCK * d;
    value_scales[b] = reinterpret_cast<const float*>(keys[b] + 2 * BLOCK * d) + BLOCK;
  }
  // The first row that sees anything of what is from a position on.
  const auto first_to_see = [&](int p) { return problem.is_causal ? std::max(0, p - item.position) * group : 0; };
  for (int b = 0; b < blocks; b += 2) {
    const auto& score = blocks - b >= 2 ? SCORE_TWO : SCORE_BLOCK;
    by_rows(first_to_see(start + b * BLOCK), rows, [&](int row, int some) {
      score[some - 1](s, row, d, keys + b, s.scores + row * TILE + b * BLOCK);
    });
  }
  const ValueScales scales(value_scales, count);
  const int first = first_to_see(start);
  const auto seen_by = [&](int row) { return std::min(count, item.seen_by(problem, row / group) - start); };
  for (int row = first; row < rows; ++row) find_largest(s, row, seen_by(row));
  scale_rows(s, first, rows);
  for (int row = first; row < rows; ++row) soften(s, row, seen_by(row), scales);
  by_rows(first, rows, [&](int row, int some) { WEIGH_TILE[some - 1](s, row, d, blocks, values); });
}

void load_queries(const Problem& problem, const Item& item, const Scratch& s) {
  const int group = problem.group(), d = problem.d;
  const float scale = 1.4426950408889634 / std::sqrt(double(d));  // weights are powers of two
  for (int row = 0; row < item.num_queries * group; ++row) {
    const float* q = problem.q + (item.first_row + row / group) * problem.q_stride +
                     (int64_t(item.key_head) * group + row % group) * d;
    uint8_t* bytes = s.q + row * d;
    s.row_scales[row] = quantise(q, d, 0, bytes) * scale;
    s.totals[row] = total_of(bytes, d);
  }
  std::fill_n(s.tile_max, PADDED_ROWS, -INFINITY);
  std::fill_n(s.max, PADDED_ROWS, -INFINITY);
  std::fill_n(s.weights, MOST_ROWS * LANES, 0.0f);
  std::fill_n(s.sums, MOST_ROWS * d, 0.0f);
}

void attend(const Problem& problem, const Item& item, const Scratch& s) {
  const int group = problem.group(), d = problem.d;
  load_queries(problem, item, s);
  for (int start = 0; start < item.seen_by(problem, item.num_queries - 1); start += TILE)
    attend_tile(problem, item, start, s);
  for (int row = 0; row < item.num_queries * group; ++row) {
    Vec weights{};
    for (int n = 0; n < N; ++n) weights += load(s.weights + row * LANES + n * W);
    const float weight = sum(weights);
    float* out = problem.out + (item.first_row + row / group) * problem.out_stride +
                 (int64_t(item.key_head) * group + row % group) * d;
    for (int i = 0; i < d; ++i) out[i] = s.sums[row * d + i] / weight + 0.0f;
  }
}

std::vector<Item> items_of(const Problem& problem) {
  std::vector<Item> items;
  const int most = std::max(1, MOST_ROWS / problem.group());
  for (int64_t sequence = 0; sequence < problem.num_sequences; ++sequence) {
    const int64_t start = problem.query_starts[sequence];
    const int n = problem.query_starts[sequence + 1] - start, length = problem.lengths[sequence];
    const int32_t* table = problem.tables + sequence * problem.table_width;
    for (int head = 0; head < problem.key_heads; ++head)
      for (int first = 0; first < n; first += most)
        items.push_back({table, start + first, head, std::min(most, n - first), length - n + first, length});
  }
  return items;
}

bool is_sound(const Problem& problem) {
  const int32_t* starts = problem.query_starts;
  if (starts[0] != 0 || starts[problem.num_sequences] != problem.num_tokens) return false;
  for (int64_t s = 0; s < problem.num_sequences; ++s) {
    const int n = starts[s + 1] - starts[s], length = problem.lengths[s];
    const int64_t used = (int64_t(length) + BLOCK - 1) / BLOCK;
    if (n < 0 || n > length || used > problem.table_width) return false;
    const int32_t* table = problem.tables + s * problem.table_width;
    if (!std::all_of(table, table + used, [&](int32_t block) { return block >= 0 && block < problem.num_blocks; }))
      return false;
  }
  return true;
}

// Writes one position's key and value.
void write_position(uint8_t* block, int d, int offset, const float* key, const float* value) {
  alignas(64) uint8_t bytes[1024 + 64];
  float* scales = reinterpret_cast<float*>(block + 2 * BLOCK * d);
  scales[offset] = quantise(key, d, 128, bytes);
  for (int i = 0; i < d; i += 4) std::copy_n(bytes + i, 4, block + (i / 4 * BLOCK + offset) * 4);
  scales[BLOCK + offset] = quantise(value, d, 0, bytes);
  for (int i = 0; i < d; ++i) block[BLOCK * d + (offset / 4 * d + i) * 4 + offset % 4] = bytes[i];
}

// Writes four positions' keys and values from `offset` on, a multiple of 4.
void write_four(uint8_t* block, int d, int offset, const float* const* keys, const float* const* values) {
  alignas(64) uint8_t bytes[4][1024 + 64];
  float* scales = reinterpret_cast<float*>(block + 2 * BLOCK * d);
  int32_t* to = reinterpret_cast<int32_t*>(block) + offset;
  for (int j = 0; j < 4; ++j) {
    scales[offset + j] = quantise(keys[j], d, 128, bytes[0]);
    for (int i = 0; i < d / 4; ++i) std::copy_n(bytes[0] + 4 * i, 4, reinterpret_cast<uint8_t*>(to + i * BLOCK + j));
  }
  for (int j = 0; j < 4; ++j) scales[BLOCK + offset + j] = quantise(values[j], d, 0, bytes[j]);
  uint32_t* wide = reinterpret_cast<uint32_t*>(block + BLOCK * d + offset * d);
  for (int i = 0; i < d; ++i)
    wide[i] = bytes[0][i] | uint32_t(bytes[1][i]) << 8 | uint32_t(bytes[2][i]) << 16 | uint32_t(bytes[3][i]) << 24;
}

// One head of one tile: its keys and values become bytes in `memory`, then each patch attends over all. qkv and out are
// at the head's first element.
void attend_head(const float* qkv, int64_t stride, int length, int d, float* out, int64_t out_stride, char* memory) {
  const int blocks = (length + BLOCK - 1) / BLOCK;
  const float *keys = qkv + stride / 3, *values = keys + stride / 3;
  float* mean = reinterpret_cast<float*>(memory);
  float* centred = mean + d;
  int32_t* table = reinterpret_cast<int32_t*>(centred + 4 * d);
  uint8_t* cache = reinterpret_cast<uint8_t*>(memory) + rounded(4 * (5 * d + blocks));
  const int32_t starts[2] = {0, length};
  const Problem problem{qkv, cache,  out,    table, starts, starts + 1, stride, out_stride,
                        blocks, 1, blocks, length, 1, 1, d, false};
  std::fill_n(mean, d, 0.0f);
  for (int64_t t = 0; t < length; ++t)
    for (int i = 0; i < d; ++i) mean[i] += keys[t * stride + i];
  for (int i = 0; i < d; ++i) mean[i] /= float(length);
  for (int b = 0; b < blocks; ++b) table[b] = b;
  for (int64_t t = 0; t < length; t += 4) {
    const int count = int(std::min<int64_t>(4, length - t));
    const float *four_keys[4], *four_values[4];
    for (int j = 0; j < count; ++j) {
      four_keys[j] = centred + j * d, four_values[j] = values + (t + j) * stride;
      for (int i = 0; i < d; ++i) centred[j * d + i] = keys[(t + j) * stride + i] - mean[i];
    }
    uint8_t* block = cache + t / BLOCK * problem.block_bytes();
    if (count == 4) {
      write_four(block, d, int(t % BLOCK), four_keys, four_values);
      continue;
    }
    for (int j = 0; j < count; ++j) write_position(block, d, int(t % BLOCK) + j, four_keys[j], four_values[j]);
  }
  const Scratch scratch(reinterpret_cast<char*>(cache) + rounded(blocks * problem.block_bytes()), d);
  for (const Item& item : items_of(problem)) attend(problem, item, scratch);
}

}  // namespace

// q [T, heads, d] -> out of the same shape, over a cache [blocks, key heads, block bytes]; d is a multiple of 16 up to
// 1024. Returns whether the tables and lengths were sound; nothing is computed where they are not.
EXPORT bool ternvl_attention_int8(const float* q, int64_t q_stride, const uint8_t* cache, const int32_t* tables,
                                  int64_t table_width, const int32_t* query_starts, const int32_t* lengths,
                                  int64_t num_sequences, int64_t num_blocks, int64_t num_tokens, int heads,
                                  int key_heads, int d, bool is_causal, float* out, int num_threads) {
  const Problem problem{q,           cache,         out,        tables,     query_starts, lengths,   q_stride, heads * d,
                        table_width, num_sequences, num_blocks, num_tokens, heads,        key_heads, d,        is_causal};
  if (heads / key_heads > MOST_ROWS || !is_sound(problem)) return false;
  const std::vector<Item> items = items_of(problem);
  static thread_local Workspace workspace;
  const int64_t own = rounded(Scratch::size(d)), count = items.size();
  const int team = int(std::max<int64_t>(1, std::min<int64_t>(num_threads, count)));
  char* memory = workspace.get(own * team);
#pragma omp parallel num_threads(team) if (team > 1)
  {
    const Scratch scratch(memory + own * thread_index(), d);
#pragma omp for schedule(dynamic, 1) nowait
    for (int64_t i = count - 1; i >= 0; --i) attend(problem, items[i], scratch);  // the longest first
  }
  return true;
}

// Puts k and v [T, key heads, d] at slots [T]. Returns whether all slots are there; nothing is written where they are not.
EXPORT bool ternvl_write_kv_int8(uint8_t* cache, const int64_t* slots, const float* k, int64_t k_stride, const float* v,
                                 int64_t v_stride, int64_t num_tokens, int64_t num_blocks, int key_heads, int d,
                                 int num_threads) {
  const int64_t num_slots = num_blocks * BLOCK, block_bytes = 2 * BLOCK * d + 2 * BLOCK * 4;
  if (!std::all_of(slots, slots + num_tokens, [&](int64_t slot) { return slot >= 0 && slot < num_slots; }))
    return false;
  const int team = num_tokens * key_heads < 64 ? 1 : num_threads;
#pragma omp parallel for num_threads(team) schedule(static) if (team > 1)
  for (int64_t t = 0; t < num_tokens; ++t)
    for (int head = 0; head < key_heads; ++head)
      write_position(cache + (slots[t] / BLOCK * key_heads + head) * block_bytes, d, slots[t] % BLOCK,
                     k + t * k_stride + int64_t(head) * d, v + t * v_stride + int64_t(head) * d);
  return true;
}

// Attention among the patches of each tile: qkv [tiles, length, 3, heads, d] -> out [tiles, length, heads, d]. Keys lose
// their mean over the patches first.
EXPORT void ternvl_tile_attention(const float* qkv, int64_t num_tiles, int64_t length, int heads, int d, float* out,
                                  int num_threads) {
  static thread_local Workspace workspace;
  const int64_t blocks = (length + BLOCK - 1) / BLOCK, width = int64_t(heads) * d;
  const int64_t own = rounded(4 * (5 * d + blocks)) + rounded(blocks * (2 * BLOCK * d + 2 * BLOCK * 4)) +
                      rounded(Scratch::size(d));
  char* memory = workspace.get(own * num_threads);
#pragma omp parallel for num_threads(num_threads) schedule(dynamic, 1) if (num_threads > 1)
  for (int64_t i = 0; i < num_tiles * heads; ++i) {
    const int64_t first = i / heads * length, head = i % heads;
    attend_head(qkv + first * 3 * width + head * d, 3 * width, int(length), d, out + first * width + head * d, width,
                memory + own * thread_index());
  }
}
