// Root-mean-square norm of rows.
#include "kernels.h"
#include "rows.h"

// x [m, k] -> out [m, k].
EXPORT void ternvl_rms_norm(const float* x, int64_t m, int64_t k, const float* weight, float eps, float* out,
                            int num_threads) {
#pragma omp parallel for num_threads(num_threads) schedule(static) if (num_threads > 1 && m > 8)
  for (int64_t i = 0; i < m; ++i) rms_norm(x + i * k, weight, eps, k, out + i * k);
}
