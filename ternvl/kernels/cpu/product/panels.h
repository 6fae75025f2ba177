// Panels, in which products read their weights: 16 outputs side by side, the last panel padded with zeros.
#pragma once

#include "simd.h"

namespace {

constexpr int NR = 16;      // outputs of a panel
constexpr int NV = NR / W;  // vectors across a panel

inline int64_t panels_of(int64_t outputs) { return (outputs + NR - 1) / NR; }

// With few rows, reading the weights from memory takes longest. They are prefetched this many bytes ahead, and into the
// second-level cache, because the first level can track only a few lines on their way. At the end of a pair of panels
// the prefetched bytes are those of the next pair.
constexpr int64_t AHEAD = 4096;
constexpr int FEW_ROWS = 14;

inline void fetch(const void* from) { __builtin_prefetch(from, 0, 2); }

// How far ahead to prefetch at `offset` in panels of `stride` bytes, of which `count` are read side by side.
inline int64_t ahead_at(int64_t offset, int64_t stride, int count) {
  return offset < stride - AHEAD ? AHEAD : AHEAD + (count - 1) * stride;
}

}  // namespace
