// SiLU and exact GELU, element by element: vectors and tails go through the same operations, so that an element's bits
// do not depend on where in the tensor it lies.
#include "activation.h"

#include <algorithm>

namespace {

template <Vec (*FUNCTION)(Vec)>
void map(const float* x, float* y, int64_t first, int64_t last) {
  for (; first + W <= last; first += W) store(y + first, FUNCTION(load(x + first)));
  if (first == last) return;
  float rest[W] = {};
  std::copy(x + first, x + last, rest);
  store(rest, FUNCTION(load(rest)));
  std::copy_n(rest, last - first, y + first);
}

template <Vec (*FUNCTION)(Vec)>
void map_all(const float* x, float* y, int64_t size, int num_threads) {
#pragma omp parallel num_threads(num_threads) if (num_threads > 1 && size > 16384)
  map<FUNCTION>(x, y, size * thread_index() / team_size(), size * (thread_index() + 1) / team_size());
}

}  // namespace

// y = silu(x), `size` elements.
EXPORT void ternvl_silu(const float* x, float* y, int64_t size, int num_threads) {
  map_all<silu>(x, y, size, num_threads);
}

// y = gelu(x), `size` elements.
EXPORT void ternvl_gelu(const float* x, float* y, int64_t size, int num_threads) {
  map_all<gelu>(x, y, size, num_threads);
}
