// out += scale * B (A x) for the rows of x that have an adapter: the two thin products of LoRA, for many rows and many
// adapters in one call.
//
// A [rank, k] and B [rows, rank] lie in panels of 16 outputs (linear.cpp): [ceil(rank / 16)][k][16] and
// [ceil(rows / 16)][rank][16], as float32 or as the bits of bfloat16. An element of A x is CHAINS chains of fma, input i
// in chain i mod CHAINS, added up in a fixed order; an element of B h is one chain over the rank, added to `out` last. So
// a row's result depends neither on the other rows nor on the threads.
#include <algorithm>
#include <vector>

#include "simd.h"

namespace {

constexpr int NR = 16;      // outputs of a panel
constexpr int NV = NR / W;  // vectors across a panel

#if defined(__AVX512F__)
constexpr int CHAINS = 4, MR = 4;
#elif defined(__AVX2__)
constexpr int CHAINS = 2, MR = 2;
#elif defined(__aarch64__)
constexpr int CHAINS = 2, MR = 2;
#else
constexpr int CHAINS = 1, MR = 2;
#endif

constexpr int64_t ROWS = 64;    // rows of an item: its panels are read once for all of them
constexpr int64_t COLUMNS = 16; // panels of B that one thread takes at a time

// What one adapter adds to one module. `a` is null where it adds nothing.
struct Entry {
  const void* a;
  const void* b;
  int64_t size;   // of an element, 2 or 4 bytes
  int64_t rank;
  int64_t rows;   // of B
  int64_t first;  // column of `out` that row 0 of B adds to
  double scale;
};

// One module: its entries by slot, and its output, whose rows are `ldo` apart.
struct Job {
  const Entry* table;
  int64_t slots;
  float* out;
  int64_t ldo;
};

struct Segment {
  int64_t slot, start, stop;
};

// Up to ROWS rows with the same adapter.
struct Item {
  const Job* job;
  const Entry* entry;
  int64_t row, count;
  float* hidden;  // [count, padded rank]
  int64_t stride;
};

struct Unit {
  const Item* item;
  int64_t first, last;  // panels
};

// Inputs i .. i + CHAINS - 1, as far as there are any: one for each chain.
template <int R, bool WHOLE, typename T>
inline void shrink_inputs(const float* x, int64_t ldx, int64_t i, int64_t k, const T* panel, Vec (&sums)[R][CHAINS][NV]) {
#pragma GCC unroll 4
  for (int c = 0; c < CHAINS; ++c)
    if (WHOLE || i + c < k)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        const Vec weight = load(panel + (i + c) * NR + v * W);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) sums[r][c][v] = fma(broadcast(x[r * ldx + i + c]), weight, sums[r][c][v]);
      }
}

template <int R, typename T>
void shrink(const float* x, int64_t ldx, int64_t k, const T* panel, float scale, float* hidden, int64_t stride) {
  Vec sums[R][CHAINS][NV] = {};
  int64_t i = 0;
  for (; i + CHAINS <= k; i += CHAINS) shrink_inputs<R, true>(x, ldx, i, k, panel, sums);
  shrink_inputs<R, false>(x, ldx, i, k, panel, sums);
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
#pragma GCC unroll 4
      for (int half = CHAINS / 2; half > 0; half /= 2)
#pragma GCC unroll 4
        for (int c = 0; c < half; ++c) sums[r][c][v] = sums[r][c][v] + sums[r][c + half][v];
      store(hidden + r * stride + v * W, sums[r][0][v] * broadcast(scale));
    }
}

template <int R, typename T>
void expand(const float* hidden, int64_t stride, int64_t rank, const T* panel, float* out, int64_t ldo, int64_t columns) {
  Vec sums[R][NV] = {};
  for (int64_t j = 0; j < rank; ++j)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      const Vec weight = load(panel + j * NR + v * W);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) sums[r][v] = fma(broadcast(hidden[r * stride + j]), weight, sums[r][v]);
    }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      float* to = out + r * ldo + v * W;
      const int64_t left = columns - v * W;
      if (left >= W)
        store(to, load(to) + sums[r][v]);
      else
        for (int64_t i = 0; i < left; ++i) to[i] += sums[r][v][i];
    }
}

struct Call {
  const float* x;
  int64_t ldx, k;

  template <typename T>
  void shrink_unit(const Unit& unit) const {
    const Item& item = *unit.item;
    const Entry& entry = *item.entry;
    for (int64_t p = unit.first; p < unit.last; ++p) {
      const T* panel = static_cast<const T*>(entry.a) + p * k * NR;
      for (int64_t r = 0; r < item.count;) {
        const float* from = x + (item.row + r) * ldx;
        float* to = item.hidden + r * item.stride + p * NR;
        const bool whole = item.count - r >= MR;
        (whole ? shrink<MR, T> : shrink<1, T>)(from, ldx, k, panel, float(entry.scale), to, item.stride);
        r += whole ? MR : 1;
      }
    }
  }

  template <typename T>
  void expand_unit(const Unit& unit) const {
    const Item& item = *unit.item;
    const Entry& entry = *item.entry;
    for (int64_t p = unit.first; p < unit.last; ++p) {
      const T* panel = static_cast<const T*>(entry.b) + p * entry.rank * NR;
      const int64_t columns = std::min<int64_t>(NR, entry.rows - p * NR);
      for (int64_t r = 0; r < item.count;) {
        const float* from = item.hidden + r * item.stride;
        float* to = item.job->out + (item.row + r) * item.job->ldo + entry.first + p * NR;
        const bool whole = item.count - r >= MR;
        (whole ? expand<MR, T> : expand<1, T>)(from, item.stride, entry.rank, panel, to, item.job->ldo, columns);
        r += whole ? MR : 1;
      }
    }
  }
};

int64_t panels(int64_t count) { return (count + NR - 1) / NR; }

void append_items(std::vector<Item>& items, const Job& job, const Segment* segments, int64_t count, int64_t unit) {
  for (int64_t s = 0; s < count; ++s) {
    const Segment& segment = segments[s];
    if (segment.slot >= job.slots || !job.table[segment.slot].a) continue;
    const Entry* entry = job.table + segment.slot;
    for (int64_t row = segment.start * unit; row < segment.stop * unit; row += ROWS) {
      const int64_t rows = std::min(ROWS, segment.stop * unit - row);
      items.push_back({&job, entry, row, rows, nullptr, panels(entry->rank) * NR});
    }
  }
}

}  // namespace

// For each module that has the input x [.., k], and each segment: rows start * unit .. stop * unit, by the entry of the
// segment's slot. Rows of x are `ldx` apart.
EXPORT void ternvl_lora_add(const Job* jobs, int64_t num_jobs, const Segment* segments, int64_t count, int64_t unit,
                            const float* x, int64_t ldx, int64_t k, int num_threads) {
  std::vector<Item> items;
  for (int64_t j = 0; j < num_jobs; ++j) append_items(items, jobs[j], segments, count, unit);
  std::vector<Unit> shrinking, expanding;
  int64_t size = 0;
  for (const Item& item : items) size += item.count * item.stride;
  std::vector<float> hidden(size);
  size = 0;
  for (Item& item : items) {
    item.hidden = hidden.data() + size;
    size += item.count * item.stride;
    for (int64_t p = 0; p < panels(item.entry->rank); ++p) shrinking.push_back({&item, p, p + 1});
    const int64_t last = panels(item.entry->rows);
    for (int64_t p = 0; p < last; p += COLUMNS) expanding.push_back({&item, p, std::min(last, p + COLUMNS)});
  }
  const Call call{x, ldx, k};
#pragma omp parallel num_threads(num_threads) if (num_threads > 1 && expanding.size() > 1)
  {
#pragma omp for schedule(static)
    for (size_t i = 0; i < shrinking.size(); ++i)
      if (shrinking[i].item->entry->size == 2)
        call.shrink_unit<uint16_t>(shrinking[i]);
      else
        call.shrink_unit<float>(shrinking[i]);
#pragma omp for schedule(static) nowait
    for (size_t i = 0; i < expanding.size(); ++i)
      if (expanding[i].item->entry->size == 2)
        call.expand_unit<uint16_t>(expanding[i]);
      else
        call.expand_unit<float>(expanding[i]);
  }
}
