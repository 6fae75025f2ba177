// SiLU and the exact GELU of a vector.
#pragma once

#include <initializer_list>

#include "simd.h"

namespace {

// e^x, accurate to about one unit in the last place: with x = n ln 2 + r, the Taylor series of e^r up to r^7, with n
// added to the exponent.
inline Vec exponential(Vec x) {
  const Vec lowest = broadcast(-87.3f), highest = broadcast(88.3f), rounder = broadcast(12582912.0f);  // 1.5 * 2^23
  x = x < lowest ? lowest : x > highest ? highest : x;
  const Vec n = fma(x, broadcast(1.44269504f), rounder) - rounder;
  Vec r = fma(n, broadcast(-0.693359375f), x);
  r = fma(n, broadcast(2.12194440e-4f), r);
  Vec sum = broadcast(1.0f / 5040);
  for (float term : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) sum = fma(sum, r, broadcast(term));
  return sum * reinterpret_cast<Vec>((__builtin_convertvector(n, IVec) + 127) << 23);
}

inline Vec silu(Vec x) { return x / (1.0f + exponential(-x)); }

// x Phi(x); the upper tail of the normal distribution follows Abramowitz and Stegun 7.1.26, whose erf has an absolute
// error of 1.5e-7.
inline Vec gelu(Vec x) {
  const Vec size = x < 0 ? -x : x;
  const Vec t = 1.0f / fma(size, broadcast(0.3275911f * 0.70710678f), broadcast(1.0f));
  Vec sum = broadcast(1.061405429f);
  for (float term : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) sum = fma(sum, t, broadcast(term));
  const Vec tail = 0.5f * sum * t * exponential(-0.5f * x * x);
  return x * (x < 0 ? tail : 1.0f - tail);
}

}  // namespace
