// The largest element of each row, and its first position.
#include <algorithm>

#include "kernels.h"
#include "simd.h"

namespace {

constexpr int64_t RUN = 1024;

// Whether a is larger than b, where NaN counts as larger than every number.
inline bool is_above(float a, float b) { return a > b || (a != a && b == b); }

// The largest element of a run, or NaN if the run holds NaN.
float largest_of(const float* x, int64_t size) {
  int64_t i = 0;
  float best = x[0];
  if (size >= W) {
    Vec most = load(x), sum_of_zeros = most * 0.0f;  // becomes NaN if an element is NaN or infinite
    for (i = W; i + W <= size; i += W) {
      const Vec v = load(x + i);
      most = v > most ? v : most;
      sum_of_zeros += v * 0.0f;
    }
    best = max(most);
    if (sum(sum_of_zeros) != 0.0f) i = 0, best = x[0];  // rare: compare one by one
  }
  for (; i < size; ++i)
    if (is_above(x[i], best)) best = x[i];
  return best;
}

}  // namespace

// x [rows, size], with rows `stride` apart -> the largest element of each row and its index, the first of equal ones.
// NaN counts as larger than every number.
EXPORT void ternvl_largest(const float* x, int64_t rows, int64_t size, int64_t stride, float* values, int64_t* indices,
                           int num_threads) {
#pragma omp parallel for num_threads(num_threads) schedule(static) if (num_threads > 1 && rows > 1)
  for (int64_t row = 0; row < rows; ++row) {
    const float* from = x + row * stride;
    int64_t best_run = 0;
    float best = largest_of(from, std::min(RUN, size));
    for (int64_t start = RUN; start < size; start += RUN) {
      const float here = largest_of(from + start, std::min(RUN, size - start));
      if (is_above(here, best)) best = here, best_run = start;
    }
    int64_t index = best_run;
    while (from[index] != best && (best == best || from[index] == from[index])) ++index;
    values[row] = best, indices[row] = index;
  }
}
