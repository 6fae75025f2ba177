// Operations on one row of floats: sums, norms and quantisation. The bits of a row depend on that row alone.
#pragma once

#include <algorithm>
#include <cmath>

#include "int8.h"

namespace {

// The sum of f(i, n) over the vectors of a row, in four chains side by side; n < W for the last, partial vector.
template <typename Function>
inline float sum_of(int64_t k, Function f) {
  Vec sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * W <= k; i += 4 * W)
    for (int j = 0; j < 4; ++j) sums[j] += f(i + j * W, W);
  for (int j = 0; i < k; i += W, ++j) sums[j % 4] += f(i, int(std::min<int64_t>(W, k - i)));
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// The first n lanes of a vector; the others are 0.
inline Vec first_lanes(Vec value, int n) {
  for (int i = n; i < W; ++i) value[i] = 0;
  return value;
}

// Loads n <= W elements; the other lanes are 0.
inline Vec load_some(const float* from, int n) {
  if (n == W) return load(from);
  float some[W] = {};
  std::copy_n(from, n, some);
  return load(some);
}

// Stores the first n <= W lanes.
inline void store_some(float* to, Vec value, int n) {
  if (n == W) return store(to, value);
  float some[W];
  store(some, value);
  std::copy_n(some, n, to);
}

// Calls f(i, n) for each vector of a row; n < W for the last, partial vector.
template <typename Function>
inline void each(int64_t k, Function f) {
  int64_t i = 0;
  for (; i + W <= k; i += W) f(i, W);
  if (i < k) f(i, int(k - i));
}

// Root-mean-square norm, arXiv 1910.07467.
inline void rms_norm(const float* x, const float* weight, float eps, int64_t k, float* out) {
  const float squares = sum_of(k, [&](int64_t i, int n) {
    const Vec v = load_some(x + i, n);
    return v * v;
  });
  const Vec factor = broadcast(1.0f / std::sqrt(squares / float(k) + eps));
  each(k, [&](int64_t i, int n) { store_some(out + i, load_some(weight + i, n) * (load_some(x + i, n) * factor), n); });
}

// Layer norm, arXiv 1607.06450, with the mean squared distance from the mean as variance.
inline void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t k, float* out) {
  const float mean = sum_of(k, [&](int64_t i, int n) { return load_some(x + i, n); }) / float(k);
  const float squares = sum_of(k, [&](int64_t i, int n) {
    const Vec v = load_some(x + i, n) - mean;
    return first_lanes(v * v, n);
  });
  const Vec factor = broadcast(1.0f / std::sqrt(squares / float(k) + eps));
  each(k, [&](int64_t i, int n) {
    const Vec v = (load_some(x + i, n) - mean) * factor;
    store_some(out + i, fma(v, load_some(weight + i, n), load_some(bias + i, n)), n);
  });
}

// The largest of non-negative floats, given as bits.
inline float max_of_bits(IVec bits) {
#if defined(__AVX512F__)
  const int32_t most = _mm512_reduce_max_epi32((__m512i)bits);
#elif defined(__aarch64__)
  const int32_t most = vmaxvq_s32((int32x4_t)bits);
#else
  int32_t most = bits[0];
  for (int i = 1; i < W; ++i) most = bits[i] > most ? bits[i] : most;
#endif
  float value;
  std::memcpy(&value, &most, sizeof value);
  return value;
}

// The largest absolute value of a row; NaN if the row holds NaN.
inline float largest_size(const float* x, int64_t k) {
  IVec most{};  // without the sign, bits are ordered as values are, with NaN above infinity
  each(k, [&](int64_t i, int n) {
    const IVec size = reinterpret_cast<IVec>(load_some(x + i, n)) & 0x7fffffff;
    most = size > most ? size : most;
  });
  return max_of_bits(most);
}

// Quantises a row to whole numbers from -127 to 127, stores them plus `zero` as bytes, and returns the scale. The scale
// of a row of zeros is 0. If a row holds NaN or infinity, its scale is not finite. Bytes up to the next multiple of W
// are written.
inline float quantise(const float* x, int64_t k, int zero, uint8_t* out) {
  const float largest = largest_size(x, k);
  const Vec factor = broadcast(largest > 0 ? 127.0f / largest : 0.0f);
  each(k, [&](int64_t i, int n) {
    store_bytes(out + i, round(load_some(x + i, n) * factor) + zero);
  });
  return largest / 127.0f;
}

}  // namespace
