// The exact GELU of each element. Vectors and the tail use the same operations, so the bits of an element do not depend
// on its position.
#include <algorithm>

#include "activation.h"
#include "kernels.h"
#include "work.h"

namespace {

void map(const float* x, float* y, Range range) {
  int64_t i = range.first;
  for (; i + W <= range.last; i += W) store(y + i, gelu(load(x + i)));
  if (i == range.last) return;
  float rest[W] = {};
  std::copy(x + i, x + range.last, rest);
  store(rest, gelu(load(rest)));
  std::copy_n(rest, range.last - i, y + i);
}

}  // namespace

// y = gelu(x), `size` elements.
EXPORT void ternvl_gelu(const float* x, float* y, int64_t size, int num_threads) {
#pragma omp parallel num_threads(num_threads) if (num_threads > 1 && size > 16384)
  map(x, y, part({0, size}, thread_index(), team_size()));
}
