// The cache of keys and values in bytes.
//
// A block is 16 positions of one key head. For head size D, a multiple of 16 up to 1024, it holds:
//     keys    [D / 4][16][4]   unsigned, 128 above their value: a vector is four dimensions of each of 16 positions
//     values  [16 / 4][D][4]   signed: a vector is four positions of each of 16 dimensions
//     scales  [2][16] float    one for each position's key, and one for each position's value
#pragma once

#include <algorithm>

#include "rows.h"

namespace {

constexpr int BLOCK = 16;  // positions of a block

inline int64_t block_bytes(int d) { return 2 * BLOCK * d + 2 * BLOCK * 4; }

// Writes the key and the value of one position.
inline void write_position(uint8_t* block, int d, int offset, const float* key, const float* value) {
  alignas(64) uint8_t bytes[1024 + 64];
  float* scales = reinterpret_cast<float*>(block + 2 * BLOCK * d);
  scales[offset] = quantise(key, d, 128, bytes);
  for (int i = 0; i < d; i += 4) std::copy_n(bytes + i, 4, block + (i / 4 * BLOCK + offset) * 4);
  scales[BLOCK + offset] = quantise(value, d, 0, bytes);
  for (int i = 0; i < d; ++i) block[BLOCK * d + (offset / 4 * d + i) * 4 + offset % 4] = bytes[i];
}

// Writes the keys and values of four positions from `offset` on, which is a multiple of 4.
inline void write_four(uint8_t* block, int d, int offset, const float* const* keys, const float* const* values) {
  alignas(64) uint8_t bytes[4][1024 + 64];
  float* scales = reinterpret_cast<float*>(block + 2 * BLOCK * d);
  int32_t* to = reinterpret_cast<int32_t*>(block) + offset;
  for (int j = 0; j < 4; ++j) {
    scales[offset + j] = quantise(keys[j], d, 128, bytes[0]);
    for (int i = 0; i < d / 4; ++i) std::copy_n(bytes[0] + 4 * i, 4, reinterpret_cast<uint8_t*>(to + i * BLOCK + j));
  }
  for (int j = 0; j < 4; ++j) scales[BLOCK + offset + j] = quantise(values[j], d, 0, bytes[j]);
  uint32_t* wide = reinterpret_cast<uint32_t*>(block + BLOCK * d + offset * d);
  for (int i = 0; i < d; ++i)
    wide[i] = bytes[0][i] | uint32_t(bytes[1][i]) << 8 | uint32_t(bytes[2][i]) << 16 | uint32_t(bytes[3][i]) << 24;
}

}  // namespace
