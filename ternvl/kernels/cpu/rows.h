// What is done to a row before its product: norm, smoothing, quantisation. A row's bits follow from the row alone.
#pragma once

#include <algorithm>
#include <cmath>

#include "int8.h"
#include "lora/lora.h"

namespace {

// The sum of f(i) over vectors of a row, four chains side by side; `f(i, n)` is given n < W for the tail.
template <typename Function>
inline float sum_of(int64_t k, Function f) {
  Vec sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * W <= k; i += 4 * W)
    for (int j = 0; j < 4; ++j) sums[j] += f(i + j * W, W);
  for (int j = 0; i < k; i += W, ++j) sums[j % 4] += f(i, int(std::min<int64_t>(W, k - i)));
  return sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// The first n lanes, the others 0.
inline Vec first_lanes(Vec value, int n) {
  for (int i = n; i < W; ++i) value[i] = 0;
  return value;
}

// The first n of W elements, the others 0.
inline Vec load_some(const float* from, int n) {
  if (n == W) return load(from);
  float some[W] = {};
  std::copy_n(from, n, some);
  return load(some);
}

inline void store_some(float* to, Vec value, int n) {
  if (n == W) return store(to, value);
  float some[W];
  store(some, value);
  std::copy_n(some, n, to);
}

// Calls f(i, n) for each vector of a row, n < W at its end.
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

// arXiv 1607.06450; the variance is that of what the mean was taken from.
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

// The row after the stage's norm: itself where there is none, else in `out` [K].
inline const float* normed(const Stage& stage, const float* x, float* out) {
  if (stage.before == NO_NORM) return x;
  if (stage.before == RMS_NORM) rms_norm(x, stage.norm_weight, stage.eps, stage.k, out);
  if (stage.before == LAYER_NORM) layer_norm(x, stage.norm_weight, stage.norm_bias, stage.eps, stage.k, out);
  return out;
}

// The normed row as its product takes it: itself, or smoothed in `out` [K], which it may lie in already.
inline const float* smoothed(const Stage& stage, const float* x, float* out) {
  if (!stage.smoothing) return x;
  each(stage.k, [&](int64_t i, int n) {
    store_some(out + i, load_some(x + i, n) * load_some(stage.smoothing + i, n), n);
  });
  return out;
}

// A row as its product takes it, maybe in `out` [K]; what adapters need of it is kept.
inline const float* prepared(const Stage& stage, const Call& call, int64_t row, float* out) {
  const float* x = call.x + row * call.ldx;
  if (!call.is_plain) x = normed(stage, x, out);
  if (call.adding) call.adding->shrink(row, x);
  return smoothed(stage, x, out);
}

// The largest of floats that are not negative, by their bits.
inline float max_of_bits(IVec bits) {
#if defined(__AVX512F__)
  const int32_t most = _mm512_reduce_max_epi32((__m512i)bits);
#else
  int32_t most = bits[0];
  for (int i = 1; i < W; ++i) most = bits[i] > most ? bits[i] : most;
#endif
  float value;
  std::memcpy(&value, &most, sizeof value);
  return value;
}

// The largest size in a row; none where a number is none.
inline float largest_size(const float* x, int64_t k) {
  IVec most{};  // bits of sizes are in the order of sizes, and what is no number comes last
  each(k, [&](int64_t i, int n) {
    const IVec size = reinterpret_cast<IVec>(load_some(x + i, n)) & 0x7fffffff;
    most = size > most ? size : most;
  });
  return max_of_bits(most);
}

// Whole numbers from -127 to 127 plus `zero`, as bytes; returns what 1 stands for. A row of zeros has 0. A row with a number
// that is none has none. Bytes up to the next multiple of W are written.
inline float quantise(const float* x, int64_t k, int zero, uint8_t* out) {
  const float largest = largest_size(x, k);
  const Vec factor = broadcast(largest > 0 ? 127.0f / largest : 0.0f);
  each(k, [&](int64_t i, int n) {
    store_bytes(out + i, round(load_some(x + i, n) * factor) + zero);
  });
  return largest / 127.0f;
}

}  // namespace
