// Attention over keys and values of float32 in blocks, read where they are.
//
// Softmax starts again at every PARTITION positions; partitions are merged in order. A score is one chain of
// multiply-adds over d, a sum of weighted values one chain over the positions of a tile, and a sum of weights one chain
// in each of LANES lanes. So a row's arithmetic depends on its position alone, and not on how rows are cut into chunks,
// items and threads. Positions that a row may not see are not multiplied at all, not even by zero.
#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "attention/float32_tile.h"
#include "kernels.h"
#include "work.h"

namespace {

constexpr int PARTITION = 16 * TILE;
constexpr int ROWS_OF_ITEM = 96;

struct FloatProblem : Problem {
  const float *keys, *values;  // [blocks, key heads, D, block size] and [blocks, key heads, block size, D]

  int width() const { return (head_size + LANES - 1) / LANES * LANES; }  // of a row of sums
  bool in_place() const { return block_size % LANES == 0 && head_size % LANES == 0; }
};

int num_partitions(const Item& item) { return (item.end() + PARTITION - 1) / PARTITION; }

// The state of online softmax for each row: the maximum, the sum of weights in LANES parts, and the weighted sums.
struct State {
  float *max, *weights, *sums;

  static int64_t size(int64_t rows, int width) { return rows * (LANES + LANES + width); }

  State(float* memory, int64_t rows)
      : max(memory), weights(memory + rows * LANES), sums(memory + rows * 2 * LANES) {}

  void clear(int64_t rows, int width) {
    std::fill_n(max, rows, -INFINITY);
    std::fill_n(weights, rows * LANES, 0.0f);
    std::fill_n(sums, rows * width, 0.0f);
  }
};

struct Scratch {
  float *q, *scores, *factors, *keys, *values;
  State partial, total;

  static int64_t size(int64_t rows, int d, int width) {
    return rows * (d + TILE + LANES) + int64_t(TILE) * (d + width) + 2 * State::size(rows, width);
  }

  Scratch(float* memory, int64_t rows, int d, int width)
      : q(memory),
        scores(q + rows * d),
        factors(scores + rows * TILE),
        keys(factors + rows * LANES),
        values(keys + TILE * d),
        partial(values + TILE * width, rows),
        total(partial.max + State::size(rows, width), rows) {}
};

// Finds `count` positions from `start` on. They are copied into order if blocks do not hold whole vectors.
Tile locate(const FloatProblem& problem, const Item& item, int start, int count, Scratch& scratch) {
  Tile tile;
  const int size = problem.block_size, d = problem.head_size, width = problem.width();
  tile.key_stride = problem.in_place() ? size : TILE;
  std::fill_n(tile.keys, GROUPS, scratch.keys);
  std::fill_n(tile.values, GROUPS, scratch.values);
  for (int i = 0; i < count; i += problem.in_place() ? LANES : 1) {
    const int64_t block = item.table[(start + i) / size], offset = (start + i) % size;
    const float* keys = problem.keys + (block * problem.key_heads + item.key_head) * d * size + offset;
    const float* values = problem.values + ((block * problem.key_heads + item.key_head) * size + offset) * d;
    if (problem.in_place()) {
      tile.keys[i / LANES] = keys, tile.values[i / LANES] = values;
      continue;
    }
    tile.keys[i / LANES] = scratch.keys + i / LANES * LANES;
    tile.values[i / LANES] = scratch.values + i / LANES * LANES * width;
    for (int j = 0; j < d; ++j) scratch.keys[j * TILE + i] = keys[int64_t(j) * size];
    std::copy_n(values, d, scratch.values + i * width);
  }
  return tile;
}

void attend_tile(const FloatProblem& problem, const Item& item, int start, const Tile& tile, const Tile& next,
                 Scratch& scratch, State& state) {
  const int group = problem.group(), d = problem.head_size, width = problem.width();
  const int count = std::min(TILE, item.end() - start);
  for (int g = 0; g * LANES < count; ++g) {
    const int first = std::max(0, start + g * LANES - item.position);  // the first query that sees one of these keys
    const float* q = scratch.q + int64_t(first) * group * d;
    float* scores = scratch.scores + first * group * TILE + g * LANES;
    const float* next_keys = g + 1 < GROUPS ? tile.keys[g + 1] : next.keys[0];
    by_rows((item.num_queries - first) * group, [&](int row, int rows) {
      SCORE[rows - 1](q + row * d, d, tile.keys[g], next_keys, tile.key_stride, scores + row * TILE);
    });
  }
  const auto weigh_rows = [&](int first, int rows, int seen) {
    by_rows(rows, [&](int row, int some) {
      row += first;
      WEIGH[some - 1](scratch.scores + row * TILE, tile, next, seen, scratch.factors + row,
                      state.sums + row * width, width);
    });
  };
  const auto seen_by = [&](int query) { return std::min(TILE, item.position + query - start + 1); };
  int query = std::max(0, start - item.position);
  for (int row = query * group; row < item.num_queries * group; ++row)
    scratch.factors[row] =
        soften(scratch.scores + row * TILE, seen_by(row / group), state.max + row, state.weights + row * LANES);
  for (; query < item.num_queries && seen_by(query) < TILE; ++query)
    weigh_rows(query * group, group, seen_by(query));
  weigh_rows(query * group, (item.num_queries - query) * group, TILE);
}

// Copies the item's queries, one row after the other, scaled so that a weight is a power of two.
void load_queries(const FloatProblem& problem, const Item& item, Scratch& scratch) {
  const int d = problem.head_size;
  const float scale = score_scale(d);
  for (int row = 0; row < item.num_queries * problem.group(); ++row) {
    const float* from = query_of(problem, item, row);
    std::transform(from, from + d, scratch.q + row * d, [&](float x) { return x * scale; });
  }
  if (!problem.in_place()) std::fill_n(scratch.values, TILE * problem.width(), 0.0f);
  if (!problem.in_place()) std::fill_n(scratch.keys, TILE * d, 0.0f);
}

void attend_partition(const FloatProblem& problem, const Item& item, int partition, Scratch& scratch, State& state) {
  const int end = std::min((partition + 1) * PARTITION, item.end());
  state.clear(item.num_queries * problem.group(), problem.width());
  const auto tile_at = [&](int start) { return locate(problem, item, start, std::min(TILE, end - start), scratch); };
  Tile next = tile_at(partition * PARTITION);
  for (int start = partition * PARTITION; start < end; start += TILE) {
    const Tile tile = next;
    if (problem.in_place()) {
      if (start + TILE < end) next = tile_at(start + TILE);
      attend_tile(problem, item, start, tile, next, scratch, state);
    } else {
      attend_tile(problem, item, start, tile, tile, scratch, state);
      if (start + TILE < end) next = tile_at(start + TILE);
    }
  }
}

// Adds a partition to the total of those before it.
void merge(const FloatProblem& problem, const Item& item, int partition, const State& partial, State& total) {
  const int group = problem.group(), width = problem.width();
  const auto add = [](float* sum, float factor, const float* more, float factor_of_more, int n) {
    for (int i = 0; i < n; i += W)
      store(sum + i, fma(load(more + i), broadcast(factor_of_more), load(sum + i) * factor));
  };
  const int first = std::max(0, partition * PARTITION - item.position);
  for (int row = first * group; row < item.num_queries * group; ++row) {
    const float max = std::max(total.max[row], partial.max[row]);
    const float factor = exp2(total.max[row] - max), factor_of_more = exp2(partial.max[row] - max);
    total.max[row] = max;
    add(total.weights + row * LANES, factor, partial.weights + row * LANES, factor_of_more, LANES);
    add(total.sums + row * width, factor, partial.sums + row * width, factor_of_more, width);
  }
}

void finish(const FloatProblem& problem, const Item& item, const State& total) {
  for (int row = 0; row < item.num_queries * problem.group(); ++row)
    store_result(problem, item, row, total.weights + row * LANES, total.sums + row * problem.width());
}

// Floats at a multiple of 64 bytes.
class Memory {
 public:
  explicit Memory(int64_t floats) : memory_(new float[floats + LANES]) {}

  float* at(int64_t index) const {
    const auto address = reinterpret_cast<uintptr_t>(memory_.get());
    return memory_.get() + (64 - address % 64) % 64 / sizeof(float) + index;
  }

 private:
  std::unique_ptr<float[]> memory_;
};

// Runs work(i, scratch) for i in [0, n) on at most `threads` threads.
template <typename Work>
void in_parallel(const FloatProblem& problem, int64_t n, int64_t rows, int threads, Work work) {
  const int team = std::max<int64_t>(1, std::min<int64_t>(threads, n));
  const int64_t size = (Scratch::size(rows, problem.head_size, problem.width()) + LANES - 1) / LANES * LANES;
  const Memory memory(team * size);
#pragma omp parallel num_threads(team)
  {
    Scratch scratch(memory.at(thread_index() * size), rows, problem.head_size, problem.width());
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < n; ++i) work(i, scratch);
  }
}

void attend_items(const FloatProblem& problem, const std::vector<Item>& items, int64_t rows, int threads) {
  in_parallel(problem, items.size(), rows, threads, [&](int64_t i, Scratch& scratch) {
    const Item& item = items[i];
    load_queries(problem, item, scratch);
    scratch.total.clear(rows, problem.width());
    for (int partition = 0; partition < num_partitions(item); ++partition) {
      attend_partition(problem, item, partition, scratch, scratch.partial);
      merge(problem, item, partition, scratch.partial, scratch.total);
    }
    finish(problem, item, scratch.total);
  });
}

// For few items with a long past: threads share the partitions, which are then merged in the same order.
void attend_partitions(const FloatProblem& problem, const std::vector<Item>& items, int64_t rows, int threads) {
  std::vector<std::pair<const Item*, int>> units;
  for (const Item& item : items)
    for (int partition = 0; partition < num_partitions(item); ++partition) units.push_back({&item, partition});
  const int64_t size = (State::size(rows, problem.width()) + LANES - 1) / LANES * LANES;
  const Memory memory(units.size() * size);
  in_parallel(problem, units.size(), rows, threads, [&](int64_t i, Scratch& scratch) {
    State state(memory.at(i * size), rows);
    load_queries(problem, *units[i].first, scratch);
    attend_partition(problem, *units[i].first, units[i].second, scratch, state);
  });
  const Memory total_memory(size);
  State total(total_memory.at(0), rows);
  for (size_t i = 0; i < units.size(); ++i) {
    const auto [item, partition] = units[i];
    if (partition == 0) total.clear(rows, problem.width());
    merge(problem, *item, partition, State(memory.at(i * size), rows), total);
    if (partition + 1 == num_partitions(*item)) finish(problem, *item, total);
  }
}

}  // namespace

// Returns whether the tables and lengths are sound; nothing is computed if they are not.
EXPORT bool ternvl_paged_attention(const Problem* call, const float* keys, const float* values, int num_threads) {
  if (!is_sound(*call)) return false;
  const FloatProblem problem{*call, keys, values};
  const std::vector<Item> items = items_of(problem, ROWS_OF_ITEM);
  int64_t rows = 0, partitions = 0;
  for (const Item& item : items) {
    rows = std::max<int64_t>(rows, item.num_queries * problem.group());
    partitions += num_partitions(item);
  }
  const int64_t num_items = items.size();
  const bool is_split = num_items < num_threads && num_items < partitions;
  (is_split ? attend_partitions : attend_items)(problem, items, rows, num_threads);
  return true;
}
