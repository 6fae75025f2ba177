// The Walsh-Hadamard transform of blocks of a row: each output is a sum of all inputs of its block with signs.
//
// Every step replaces pairs (a, b) at a distance of 1, 2, 4, ... by (a + b, a - b). These are the same sums in every
// instruction set, so they have the same bits.
#pragma once

#include <utility>

#include "rows.h"

namespace {

template <int DISTANCE, int... I>
inline Vec swapped(Vec v, std::integer_sequence<int, I...>) {
  return Vec{v[I ^ DISTANCE]...};
}

template <int DISTANCE, int... I>
inline Vec signs(std::integer_sequence<int, I...>) {
  return Vec{(I & DISTANCE ? -1.0f : 1.0f)...};
}

// The steps within a vector.
template <int DISTANCE = 1>
inline Vec mixed_lanes(Vec v) {
  if constexpr (DISTANCE < W) {
    using Lanes = std::make_integer_sequence<int, W>;
    return mixed_lanes<2 * DISTANCE>(swapped<DISTANCE>(v, Lanes()) + v * signs<DISTANCE>(Lanes()));
  }
  return v;
}

// Two steps at once, on four vectors.
inline void mix_four(float* x, int64_t distance) {
  const Vec a = load(x), b = load(x + distance), c = load(x + 2 * distance), d = load(x + 3 * distance);
  const Vec sum = a + b, difference = a - b, other_sum = c + d, other_difference = c - d;
  store(x, sum + other_sum), store(x + distance, difference + other_difference);
  store(x + 2 * distance, sum - other_sum), store(x + 3 * distance, difference - other_difference);
}

// x [k] -> out [k], which may be x. `block` is a power of two from 16 on that divides k.
inline void mix(const float* x, int64_t k, int64_t block, float* out) {
  for (int64_t i = 0; i < k; i += W) store(out + i, mixed_lanes(load(x + i)));
  int64_t distance = W;
  for (; 4 * distance <= block; distance *= 4)
    for (int64_t first = 0; first < k; first += 4 * distance)
      for (int64_t i = first; i < first + distance; i += W) mix_four(out + i, distance);
  if (distance == block) return;
  for (int64_t first = 0; first < k; first += 2 * distance)
    for (int64_t i = first; i < first + distance; i += W) {
      const Vec a = load(out + i), b = load(out + i + distance);
      store(out + i, a + b), store(out + i + distance, a - b);
    }
}

}  // namespace
