// Products of bytes on ARM: the forms of int8.h for three instruction sets.
//
//     neon     SMULL and UMULL: products of eight bytes as 16-bit numbers, which are then added in pairs
//     dotprod  SDOT and UDOT: four products to a lane, of bytes that are both signed or both unsigned
//     i8mm     USDOT: four products to a lane, of unsigned bytes by signed ones
//
// Only the last multiplies unsigned by signed bytes. The others take the first operand of `dot` as signed bytes, which
// is why OFFSET is 0 there, and the second operand of `dot_weights` as unsigned bytes, 128 above its value.
#pragma once

#include "simd.h"

namespace {

#if defined(__ARM_FEATURE_MATMUL_INT8)

constexpr int OFFSET = 128, RAISED = 0;

inline IVec dot_bytes(IVec sum, IVec u, IVec s) {
  return (IVec)vusdotq_s32((int32x4_t)sum, (uint8x16_t)u, (int8x16_t)s);
}
inline IVec dot_raised(IVec sum, IVec u, IVec s) { return dot_bytes(sum, u, s); }

#elif defined(__ARM_FEATURE_DOTPROD)

constexpr int OFFSET = 0, RAISED = 128;

inline IVec dot_bytes(IVec sum, IVec a, IVec b) {
  return (IVec)vdotq_s32((int32x4_t)sum, (int8x16_t)a, (int8x16_t)b);
}
inline IVec dot_raised(IVec sum, IVec a, IVec b) {
  return (IVec)vdotq_u32((uint32x4_t)sum, (uint8x16_t)a, (uint8x16_t)b);
}

#else

constexpr int OFFSET = 0, RAISED = 128;

// Two products are added in 16 bits, which holds them unless all four bytes are -128; quantised rows hold none.
inline IVec dot_bytes(IVec sum, IVec a, IVec b) {
  const int8x16_t x = (int8x16_t)a, y = (int8x16_t)b;
  const int16x8_t low = vmull_s8(vget_low_s8(x), vget_low_s8(y)), high = vmull_high_s8(x, y);
  return (IVec)vpadalq_s16((int32x4_t)sum, vpaddq_s16(low, high));
}
inline IVec dot_raised(IVec sum, IVec a, IVec b) {
  const uint8x16_t x = (uint8x16_t)a, y = (uint8x16_t)b;
  const uint32x4_t low = vpaddlq_u16(vmull_u8(vget_low_u8(x), vget_low_u8(y)));
  const uint32x4_t high = vpaddlq_u16(vmull_high_u8(x, y));
  return sum + (IVec)vpaddq_u32(low, high);
}

// Sums of products of whole numbers from 0 to 15 by signed bytes, 16 of which a lane of 16 bits can hold.
struct Pairs {
  int16x8_t low, high;
};
inline Pairs products(IVec u, IVec s) {
  const int8x16_t x = (int8x16_t)u, y = (int8x16_t)s;
  return {vmull_s8(vget_low_s8(x), vget_low_s8(y)), vmull_high_s8(x, y)};
}
inline Pairs add(Pairs a, Pairs b) { return {vaddq_s16(a.low, b.low), vaddq_s16(a.high, b.high)}; }
inline void keep(Pairs& pairs) { keep(pairs.low), keep(pairs.high); }
struct Ones {};
inline Ones ones() { return {}; }
inline IVec multiply_add(Pairs pairs, Ones) { return (IVec)vpaddlq_s16(vpaddq_s16(pairs.low, pairs.high)); }

#endif

inline IVec dot(IVec sum, Unsigned u, Signed s) { return dot_bytes(sum, u.value, s.value); }
inline IVec dot_weights(IVec sum, Unsigned u, Signed s) { return dot_raised(sum, u.value, s.value); }

// The lowest byte of each lane.
inline uint32_t lowest_bytes(IVec value) {
  const uint16x4_t halves = vmovn_u32((uint32x4_t)value);
  return vget_lane_u32(vreinterpret_u32_u8(vmovn_u16(vcombine_u16(halves, halves))), 0);
}

}  // namespace
