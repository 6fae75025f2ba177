// The exact GELU, element by element: vectors and tails go through the same operations, so that an element's bits do not
// depend on where in the tensor it lies.
#include <algorithm>

#include "activation.h"

namespace {

void map(const float* x, float* y, int64_t first, int64_t last) {
  for (; first + W <= last; first += W) store(y + first, gelu(load(x + first)));
  if (first == last) return;
  float rest[W] = {};
  std::copy(x + first, x + last, rest);
  store(rest, gelu(load(rest)));
  std::copy_n(rest, last - first, y + first);
}

}  // namespace

// y = gelu(x), `size` elements.
EXPORT void ternvl_gelu(const float* x, float* y, int64_t size, int num_threads) {
#pragma omp parallel num_threads(num_threads) if (num_threads > 1 && size > 16384)
  map(x, y, size * thread_index() / team_size(), size * (thread_index() + 1) / team_size());
}
