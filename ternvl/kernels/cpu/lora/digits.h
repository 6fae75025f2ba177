// A row of floats as whole numbers of 16 bits, and their exact products with bytes.
//
// A number is 256 high + low, both signed bytes, so that `dot` (int8.h) can multiply it by bytes. The other operand of
// `dot` is a signed byte plus OFFSET, for which OFFSET times the sum of the digits is subtracted at the end.
#pragma once

#include "product/panels.h"
#include "rows.h"

struct Digits {
  int8_t *high, *low;  // [k], up to a multiple of W with zeros
  int32_t high_total, low_total;
  float scale;
};

namespace {

inline int64_t digits_bytes(int64_t k) { return 2 * ((k + W - 1) / W * W); }

// Quantises a row. If it holds NaN or infinity, `scale` is not finite, and so are all products. `memory` has
// digits_bytes(k) bytes.
inline Digits digits_of(const float* x, int64_t k, int8_t* memory) {
  constexpr float MOST = 127 * 256 + 127;
  const float largest = largest_size(x, k);
  const Vec factor = broadcast(largest > 0 ? MOST / largest : 0.0f);
  Digits digits{memory, memory + digits_bytes(k) / 2, 0, 0, largest / MOST};
  IVec high_totals{}, low_totals{};
  each(k, [&](int64_t i, int n) {
    const IVec whole = round(load_some(x + i, n) * factor), low = (whole << 24) >> 24;
    const IVec high = ((whole - low) << 16) >> 24;
    store_bytes(digits.high + i, high), store_bytes(digits.low + i, low);
    high_totals += high, low_totals += low;
  });
  for (int j = 0; j < W; ++j) digits.high_total += high_totals[j], digits.low_total += low_totals[j];
  return digits;
}

// A row times a panel [ceil(k / 4)][NR][4] of bytes, each 128 above its value.
inline void multiply(const Digits& digits, int64_t steps, const uint8_t* panel, Vec (&result)[NV]) {
  constexpr int CHAINS = 2;  // chains of sums for each digit, which hide the latency of a product
  IVec high[NV][CHAINS] = {}, low[NV][CHAINS] = {};
  const auto add = [&](int64_t step, int chain) __attribute__((always_inline)) {
    const Signed h(broadcast_bytes(digits.high + 4 * step)), l(broadcast_bytes(digits.low + 4 * step));
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      const uint8_t* from = panel + step * NR * 4 + v * W * 4;
      const Unsigned weights(lowered(load_bytes(from)));
      high[v][chain] = dot(high[v][chain], weights, h);
      low[v][chain] = dot(low[v][chain], weights, l);
    }
  };
  int64_t step = 0;
  for (; step + CHAINS <= steps; step += CHAINS)
#pragma GCC unroll 2
    for (int chain = 0; chain < CHAINS; ++chain) add(step + chain, chain);
  for (; step < steps; ++step) add(step, 0);
#pragma GCC unroll 4
  for (int v = 0; v < NV; ++v) {
    const IVec highs = high[v][0] + high[v][1] - OFFSET * digits.high_total;
    const IVec lows = low[v][0] + low[v][1] - OFFSET * digits.low_total;
    result[v] = fma(to_float(highs), broadcast(256.0f), to_float(lows)) * broadcast(digits.scale);
  }
}

}  // namespace
