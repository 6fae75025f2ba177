// The two thin products of LoRA, for rows that each have an adapter or none.
//
// A [rank, k] and B [rows, rank] are in panels of 16 outputs (product/linear.cpp): [ceil(rank / 16)][k][16] and
// [ceil(rows / 16)][rank][16], as float32 or as the bits of bfloat16. An element of A x, and of B h, is CHAINS chains
// of fma, with input i in chain i mod CHAINS, added up in a fixed order. Alternatively both are whole numbers of 8
// bits: A in the same panels, B in those of digits.h, and A x is quantised to 16 bits. What a row receives depends
// neither on the other rows nor on the threads.
#include "lora/lora.h"

#include <algorithm>

#include "kernels.h"
#include "lora/digits.h"

namespace {

constexpr int CHAINS = 4;

// Adds inputs i .. i + CHAINS - 1, one to each chain. With WHOLE all of them are below k.
template <bool WHOLE, typename T>
inline void multiply_some(const float* x, int64_t i, int64_t k, const T* panel, Vec (&sums)[CHAINS][NV]) {
#pragma GCC unroll 4
  for (int c = 0; c < CHAINS; ++c)
    if (WHOLE || i + c < k)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v)
        sums[c][v] = fma(broadcast(x[i + c]), load(panel + (i + c) * NR + v * W), sums[c][v]);
}

// x [k] times a panel [k][NR] -> `result` [NR]. With FAR the next weights are prefetched from memory.
template <bool FAR, typename T>
inline void multiply(const float* x, int64_t k, const T* panel, Vec (&result)[NV]) {
  Vec sums[CHAINS][NV] = {};
  int64_t i = 0;
  for (; i + CHAINS <= k; i += CHAINS) {
    for (int64_t line = 0; FAR && line < CHAINS * NR * int64_t(sizeof(T)); line += 64)
      fetch(reinterpret_cast<const char*>(panel + i * NR) + AHEAD + line);
    multiply_some<true>(x, i, k, panel, sums);
  }
  multiply_some<false>(x, i, k, panel, sums);
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) result[v] = (sums[0][v] + sums[2][v]) + (sums[1][v] + sums[3][v]);
}

// x [k] times panel `index` of A.
inline void shrink_panel(const Entry& entry, const float* x, int64_t k, int64_t index, Vec (&result)[NV]) {
  const char* panel = static_cast<const char*>(entry.a) + index * k * NR * entry.size;
  if (entry.size == 1) return multiply<true>(x, k, reinterpret_cast<const int8_t*>(panel), result);
  if (entry.size == 2) return multiply<true>(x, k, reinterpret_cast<const uint16_t*>(panel), result);
  multiply<true>(x, k, reinterpret_cast<const float*>(panel), result);
}

// `hidden` [rank], or its digits if B is whole numbers, times panel `index` of B.
inline void expand_panel(const Entry& entry, const float* hidden, const Digits& digits, int64_t index,
                         Vec (&result)[NV]) {
  const int64_t rank = entry.rank, steps = (rank + 3) / 4;
  const int64_t bytes = entry.size == 1 ? 4 * steps : rank * entry.size;  // of one output
  const char* panel = static_cast<const char*>(entry.b) + index * NR * bytes;
  if (entry.size == 1) return multiply(digits, steps, reinterpret_cast<const uint8_t*>(panel), result);
  if (entry.size == 2) return multiply<false>(hidden, rank, reinterpret_cast<const uint16_t*>(panel), result);
  multiply<false>(hidden, rank, reinterpret_cast<const float*>(panel), result);
}

// Multiplies the first `count` sums of a panel by the factors of their outputs.
inline void scale(const float* scales, int64_t count, Vec (&sums)[NV]) {
  for (int v = 0; v < NV && v * W < count; ++v)
    sums[v] *= load_some(scales + v * W, int(std::min<int64_t>(W, count - v * W)));
}

}  // namespace

bool Adding::plan(const Added& added, const Adapters& adapters, int64_t m, int64_t k) {
  added_ = added, k_ = k, width_ = 0;
  const auto entry_of = [&](int64_t segment, int64_t job) -> const Entry* {
    const int64_t slot = adapters.segments[segment].slot;
    return slot < added.jobs[job].slots && added.jobs[job].table[slot].a ? added.jobs[job].table + slot : nullptr;
  };
  for (int64_t s = 0; s < adapters.num_segments; ++s)
    for (int64_t j = 0; j < added.num_jobs; ++j)
      if (const Entry* entry = entry_of(s, j)) width_ = std::max(width_, panels_of(entry->rank) * NR);
  if (!width_) return false;
  const int64_t count = m * added.num_jobs, floats = (4 * count * width_ + 63) / 64 * 64;
  char* memory = memory_.get(floats + int64_t(sizeof(Entry) + sizeof(Digits)) * count);
  hidden_ = reinterpret_cast<float*>(memory);
  entries_ = reinterpret_cast<Entry*>(memory + floats);
  digits_ = reinterpret_cast<Digits*>(entries_ + count);
  std::fill_n(entries_, count, Entry{});
  std::fill_n(digits_, count, Digits{});
  for (int64_t s = 0; s < adapters.num_segments; ++s) {
    const int64_t last = adapters.segments[s].stop * adapters.unit;
    for (int64_t row = adapters.segments[s].start * adapters.unit; row < last; ++row)
      for (int64_t j = 0; j < added.num_jobs; ++j)
        if (const Entry* entry = entry_of(s, j)) entries_[place(row, j)] = *entry;
  }
  return true;
}

void Adding::shrink(int64_t row, const float* x) const {
  static thread_local Workspace workspace;
  for (int64_t j = 0; j < added_.num_jobs; ++j) {
    const Entry& entry = entries_[place(row, j)];
    if (!entry.a) continue;
    float* hidden = hidden_ + place(row, j) * width_;
    float* to = entry.size == 1 ? reinterpret_cast<float*>(workspace.get(4 * width_)) : hidden;
    for (int64_t i = 0; i < entry.rank; i += NR) {
      Vec sums[NV];
      shrink_panel(entry, x, k_, i / NR, sums);
      for (int v = 0; v < NV; ++v) store(to + i + v * W, sums[v] * load(entry.scales + i + v * W));
    }
    if (entry.size == 1) digits_[place(row, j)] = digits_of(to, entry.rank, reinterpret_cast<int8_t*>(hidden));
  }
}

void Adding::get(int64_t row, Range columns, float* out) const {
  int64_t done = columns.first;  // modules, and the parts of a module, are in the order of their columns
  for (int64_t j = 0; j < added_.num_jobs; ++j) {
    const Entry entry = entries_[place(row, j)];
    const Digits digits = digits_[place(row, j)];
    const int64_t base = added_.jobs[j].column + entry.first;
    const int64_t first = std::max(done, base), last = std::min(columns.last, base + entry.rows);
    if (!entry.a || first >= last) continue;
    std::fill(out + (done - columns.first), out + (first - columns.first), -0.0f);
    done = last;
    const float* scales = added_.jobs[j].scales;
    for (int64_t output = (first - base) / NR * NR; output < last - base; output += NR) {
      Vec sums[NV];
      expand_panel(entry, hidden_ + place(row, j) * width_, digits, output / NR, sums);
      const Range whole{base + output, base + output + std::min<int64_t>(NR, entry.rows - output)};
      if (scales) scale(scales + entry.first + output, whole.size(), sums);
      float* to = out + (whole.first - columns.first);
      if (whole.size() == NR && whole.first >= columns.first && whole.last <= columns.last) {
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) store(to + v * W, sums[v]);
        continue;
      }
      float some[NR];
      for (int v = 0; v < NV; ++v) store(some + v * W, sums[v]);
      for (int64_t c = std::max(first, whole.first); c < std::min(last, whole.last); ++c)
        out[c - columns.first] = some[c - whole.first];
    }
  }
  std::fill(out + (done - columns.first), out + columns.size(), -0.0f);
}

// Adds to the outputs `out` [m, n] of modules that are not stages. Rows of x [m, k] are `ldx` apart, those of `out` are
// `ldo` apart.
EXPORT void ternvl_lora_add(const Added* added, const Adapters* adapters, const float* x, int64_t m, int64_t ldx,
                            int64_t k, float* out, int64_t n, int64_t ldo, int num_threads) {
  static thread_local Adding adding;
  if (!adding.plan(*added, *adapters, m, k)) return;
  const Adding& shared = adding;  // thread_local: the team must use the caller's
  constexpr int64_t COLUMNS = 256;
#pragma omp parallel num_threads(num_threads) if (num_threads > 1)
  {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < m; ++row) shared.shrink(row, x + row * ldx);
#pragma omp for schedule(static) nowait
    for (int64_t first = 0; first < n; first += COLUMNS)
      for (int64_t row = 0; row < m; ++row) {
        if (!shared.has(row)) continue;
        float more[COLUMNS];
        const Range columns{first, std::min(n, first + COLUMNS)};
        shared.get(row, columns, more);
        for (int64_t i = 0; i < columns.size(); ++i) out[row * ldo + first + i] += more[i];
      }
  }
}
