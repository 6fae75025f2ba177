// out += B (scales * A x) for the rows of x that have an adapter: the two thin products of LoRA, for many rows and many
// adapters in one call. `lora.h` has what it is told.
//
// A [rank, k] and B [rows, rank] lie in panels of 16 outputs (linear.cpp): [ceil(rank / 16)][k][16] and
// [ceil(rows / 16)][rank][16], as float32, as the bits of bfloat16, or as whole numbers of 8 bits. An
// element of A x is CHAINS chains of fma, input i in chain i mod CHAINS, added up in a fixed order and scaled; an element
// of B h is one chain over the rank, added to `out` last. So a row's result depends neither on the other rows nor on the
// threads.
#include "lora.h"

#include <algorithm>
#include <vector>

namespace {

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

// Up to ROWS rows with the same adapter.
struct Item {
  const Entry* entry;
  int64_t row, count;
  int64_t column;  // of the output
  float* hidden;   // [count, padded rank]
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
void shrink(const float* x, int64_t ldx, int64_t k, const T* panel, const float* scales, float* hidden, int64_t stride) {
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
      store(hidden + r * stride + v * W, sums[r][0][v] * load(scales + v * W));
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

struct Pass {
  const float* x;
  int64_t ldx, k;
  float* out;
  int64_t ldo;

  template <typename T>
  void shrink_unit(const Unit& unit, const T*) const {
    const Item& item = *unit.item;
    const Entry& entry = *item.entry;
    for (int64_t p = unit.first; p < unit.last; ++p) {
      const T* panel = static_cast<const T*>(entry.a) + p * k * NR;
      for (int64_t r = 0; r < item.count;) {
        const float* from = x + (item.row + r) * ldx;
        float* to = item.hidden + r * item.stride + p * NR;
        const bool whole = item.count - r >= MR;
        (whole ? shrink<MR, T> : shrink<1, T>)(from, ldx, k, panel, entry.scales + p * NR, to, item.stride);
        r += whole ? MR : 1;
      }
    }
  }

  template <typename T>
  void expand_unit(const Unit& unit, const T*) const {
    const Item& item = *unit.item;
    const Entry& entry = *item.entry;
    for (int64_t p = unit.first; p < unit.last; ++p) {
      const T* panel = static_cast<const T*>(entry.b) + p * entry.rank * NR;
      const int64_t columns = std::min<int64_t>(NR, entry.rows - p * NR);
      for (int64_t r = 0; r < item.count;) {
        const float* from = item.hidden + r * item.stride;
        float* to = out + (item.row + r) * ldo + item.column + p * NR;
        const bool whole = item.count - r >= MR;
        (whole ? expand<MR, T> : expand<1, T>)(from, item.stride, entry.rank, panel, to, ldo, columns);
        r += whole ? MR : 1;
      }
    }
  }
};

// The work of a call; kept by its thread, so that its memory is.
struct Plan {
  std::vector<Item> items;
  std::vector<Unit> shrinking, expanding;
  std::vector<float> hidden;

  void make(const Added& added, const Adapters& adapters) {
    items.clear(), shrinking.clear(), expanding.clear();
    for (int64_t j = 0; j < added.num_jobs; ++j) append(added.jobs[j], adapters);
    size_t size = 0;
    for (const Item& item : items) size += item.count * item.stride;
    if (size > hidden.size()) hidden.resize(size);
    size = 0;
    for (Item& item : items) {
      item.hidden = hidden.data() + size;
      size += item.count * item.stride;
      for (int64_t p = 0; p < panels_of(item.entry->rank); ++p) shrinking.push_back({&item, p, p + 1});
      const int64_t last = panels_of(item.entry->rows);
      for (int64_t p = 0; p < last; p += COLUMNS) expanding.push_back({&item, p, std::min(last, p + COLUMNS)});
    }
  }

  void append(const Job& job, const Adapters& adapters) {
    for (int64_t s = 0; s < adapters.num_segments; ++s) {
      const Segment& segment = adapters.segments[s];
      const Entry* entry = entry_of(job, segment);
      if (!entry) continue;
      const int64_t stop = segment.stop * adapters.unit;
      for (int64_t row = segment.start * adapters.unit; row < stop; row += ROWS)
        items.push_back({entry, row, std::min(ROWS, stop - row), job.column + entry->first, nullptr,
                         panels_of(entry->rank) * NR});
    }
  }
};

// Calls f(a null pointer of the type of an entry's elements).
template <typename Function>
void with_type(const Entry& entry, Function f) {
  if (entry.size == 1) return f(static_cast<const int8_t*>(nullptr));
  if (entry.size == 2) return f(static_cast<const uint16_t*>(nullptr));
  f(static_cast<const float*>(nullptr));
}

}  // namespace

bool touches(const Added& added, const Adapters& adapters) {
  for (int64_t j = 0; j < added.num_jobs; ++j)
    for (int64_t s = 0; s < adapters.num_segments; ++s)
      if (entry_of(added.jobs[j], adapters.segments[s])) return true;
  return false;
}

// x [m, k] with rows `ldx` apart; `out` is the wide output that the jobs' columns count in, its rows `ldo` apart.
// With `is_new` all of `out` [m, ldo] is -0 before, which changes nothing that is added to it or that it is added to.
EXPORT void ternvl_lora_add(const Added* added, const Adapters* adapters, const float* x, int64_t m, int64_t ldx,
                            int64_t k, float* out, int64_t ldo, bool is_new, int num_threads) {
  static thread_local Plan plan;
  plan.make(*added, *adapters);
  const Plan& made = plan;  // the caller's, also in its threads
  const Pass pass{x, ldx, k, out, ldo};
#pragma omp parallel num_threads(num_threads) if (num_threads > 1 && made.expanding.size() > 1)
  {
    const Range own = part({0, is_new ? m * ldo : 0}, thread_index(), team_size());
    std::fill(out + own.first, out + own.last, -0.0f);
#pragma omp for schedule(static)
    for (size_t i = 0; i < made.shrinking.size(); ++i)
      with_type(*made.shrinking[i].item->entry, [&](auto* type) { pass.shrink_unit(made.shrinking[i], type); });
#pragma omp for schedule(static) nowait
    for (size_t i = 0; i < made.expanding.size(); ++i)
      with_type(*made.expanding[i].item->entry, [&](auto* type) { pass.expand_unit(made.expanding[i], type); });
  }
}
