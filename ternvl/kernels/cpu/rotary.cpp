// Rotary positions, arXiv 2104.09864, in place: the two halves of a head are rotated by the angles of its token.
#include "kernels.h"

// x [T, heads, d] with tokens `stride` apart; cos and sin [T, d], whose two halves are equal. It rounds as
// x * cos + (-second, first) * sin does.
EXPORT void ternvl_rotate(float* x, int64_t stride, const float* cos, const float* sin, int64_t num_tokens, int heads,
                          int d, int num_threads) {
  const int half = d / 2;
#pragma omp parallel for num_threads(num_threads) schedule(static) if (num_threads > 1 && num_tokens > 16)
  for (int64_t t = 0; t < num_tokens; ++t)
    for (int head = 0; head < heads; ++head) {
      float *first = x + t * stride + int64_t(head) * d, *second = first + half;
      for (int i = 0; i < half; ++i) {
        const float c = cos[t * d + i], s = sin[t * d + i], a = first[i], b = second[i];
        first[i] = a * c + -b * s;
        second[i] = b * c + a * s;
      }
    }
}
