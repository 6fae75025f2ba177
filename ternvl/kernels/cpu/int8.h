// Sums of products of bytes, four to a lane. They are exact in every instruction set and in any order.
//
// `dot(sum, u, s)` adds u[4i] s[4i] + .. + u[4i+3] s[4i+3] to lane i; u is unsigned, s is signed. An operand becomes
// `Unsigned` or `Signed` once and is used many times: without VNNI this widens its bytes to 16 bits.
//
// Where u is a signed number, its bytes are OFFSET above it: 128, or 0 where both operands of `dot` are signed (two of
// the three instruction sets of arm/bytes.h). `dot_weights` has operands that are unsigned and signed everywhere, but
// the bytes of the second one are RAISED above their value. Kernels subtract OFFSET and RAISED times the sum of the
// other operand.
#pragma once

#include "simd.h"

// Whether one instruction multiplies bytes and adds four products to a lane.
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__) || defined(__ARM_FEATURE_DOTPROD)
#define TERNVL_VNNI
#endif

#if defined(TERNVL_VNNI) || defined(__aarch64__)
namespace {

// An operand of `dot`. It stays as it is.
struct Unsigned {
  IVec value;
  explicit Unsigned(IVec bytes) : value(bytes) {}
};
struct Signed {
  IVec value;
  explicit Signed(IVec bytes) : value(bytes) {}
};

}  // namespace
#endif

#if defined(__aarch64__)
#include "arm/bytes.h"
#endif

namespace {

#if defined(__aarch64__)  // arm/bytes.h has the operands and products
#elif defined(TERNVL_VNNI)

inline IVec dot(IVec sum, Unsigned u, Signed s) {
#if defined(__AVX512VNNI__)
  return (IVec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)u.value, (__m512i)s.value);
#else
  return (IVec)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)u.value, (__m256i)s.value);
#endif
}

#else

#if defined(__AVX512BW__)
typedef __m512i Pairs;
inline Pairs low_bytes(IVec v) { return _mm512_srai_epi16(_mm512_slli_epi16((Pairs)v, 8), 8); }
inline Pairs high_bytes(IVec v) { return _mm512_srai_epi16((Pairs)v, 8); }
inline Pairs low_unsigned(IVec v) { return _mm512_and_si512((Pairs)v, _mm512_set1_epi16(255)); }
inline Pairs high_unsigned(IVec v) { return _mm512_srli_epi16((Pairs)v, 8); }
inline IVec multiply_add(Pairs a, Pairs b) { return (IVec)_mm512_madd_epi16(a, b); }
inline Pairs add(Pairs a, Pairs b) { return _mm512_add_epi16(a, b); }
inline Pairs products(IVec u, IVec s) { return _mm512_maddubs_epi16((__m512i)u, (__m512i)s); }
#elif defined(__AVX2__)
typedef __m256i Pairs;
inline Pairs low_bytes(IVec v) { return _mm256_srai_epi16(_mm256_slli_epi16((Pairs)v, 8), 8); }
inline Pairs high_bytes(IVec v) { return _mm256_srai_epi16((Pairs)v, 8); }
inline Pairs low_unsigned(IVec v) { return _mm256_and_si256((Pairs)v, _mm256_set1_epi16(255)); }
inline Pairs high_unsigned(IVec v) { return _mm256_srli_epi16((Pairs)v, 8); }
inline IVec multiply_add(Pairs a, Pairs b) { return (IVec)_mm256_madd_epi16(a, b); }
inline Pairs add(Pairs a, Pairs b) { return _mm256_add_epi16(a, b); }
inline Pairs products(IVec u, IVec s) { return _mm256_maddubs_epi16((__m256i)u, (__m256i)s); }
#elif defined(__SSE2__)
typedef __m128i Pairs;
inline Pairs low_bytes(IVec v) { return _mm_srai_epi16(_mm_slli_epi16((Pairs)v, 8), 8); }
inline Pairs high_bytes(IVec v) { return _mm_srai_epi16((Pairs)v, 8); }
inline Pairs low_unsigned(IVec v) { return _mm_and_si128((Pairs)v, _mm_set1_epi16(255)); }
inline Pairs high_unsigned(IVec v) { return _mm_srli_epi16((Pairs)v, 8); }
inline IVec multiply_add(Pairs a, Pairs b) { return (IVec)_mm_madd_epi16(a, b); }
inline Pairs add(Pairs a, Pairs b) { return _mm_add_epi16(a, b); }
inline Pairs products(IVec u, IVec s) {
  return add(_mm_mullo_epi16(low_unsigned(u), low_bytes(s)), _mm_mullo_epi16(high_unsigned(u), high_bytes(s)));
}
#else
typedef int16_t Pairs __attribute__((vector_size(TERNVL_VECTOR_BYTES), aligned(TERNVL_VECTOR_BYTES)));
typedef uint16_t UPairs __attribute__((vector_size(TERNVL_VECTOR_BYTES), aligned(TERNVL_VECTOR_BYTES)));
inline Pairs low_bytes(IVec v) { return (Pairs)((UPairs)v << 8) >> 8; }
inline Pairs high_bytes(IVec v) { return (Pairs)v >> 8; }
inline Pairs low_unsigned(IVec v) { return (Pairs)v & 255; }
inline Pairs high_unsigned(IVec v) { return (Pairs)((UPairs)v >> 8); }
inline IVec multiply_add(Pairs a, Pairs b) {
  const IVec x = (IVec)a, y = (IVec)b;
  return ((x << 16) >> 16) * ((y << 16) >> 16) + (x >> 16) * (y >> 16);
}
inline Pairs add(Pairs a, Pairs b) { return a + b; }
inline Pairs products(IVec u, IVec s) {
  return low_unsigned(u) * low_bytes(s) + high_unsigned(u) * high_bytes(s);
}
#endif

inline Pairs ones() { return (Pairs)(IVec{} + 0x00010001); }

struct Unsigned {
  Pairs low, high;
  explicit Unsigned(IVec bytes) : low(low_unsigned(bytes)), high(high_unsigned(bytes)) {}
};
struct Signed {
  Pairs low, high;
  explicit Signed(IVec bytes) : low(low_bytes(bytes)), high(high_bytes(bytes)) {}
};
inline IVec dot(IVec sum, Unsigned u, Signed s) {
  return sum + multiply_add(u.low, s.low) + multiply_add(u.high, s.high);
}

#endif

#if !defined(__aarch64__)
constexpr int OFFSET = 128, RAISED = 0;
inline IVec dot_weights(IVec sum, Unsigned u, Signed s) { return dot(sum, u, s); }
#endif

// Adds 128 to each byte, or subtracts it.
inline IVec flipped(IVec bytes) { return bytes ^ int32_t(0x80808080); }

// Bytes that are 128 above their value as the first operand of `dot`, and signed bytes as the second of `dot_weights`.
inline IVec lowered(IVec bytes) { return OFFSET ? bytes : flipped(bytes); }
inline IVec raised(IVec bytes) { return RAISED ? flipped(bytes) : bytes; }

typedef IVec UnalignedIVec __attribute__((aligned(1), may_alias));
typedef int32_t UnalignedInt __attribute__((aligned(1), may_alias));

inline IVec load_bytes(const void* from) { return *static_cast<const UnalignedIVec*>(from); }

inline IVec broadcast(int32_t value) { return value - IVec{}; }

// The same four bytes in each lane.
inline IVec broadcast_bytes(const void* from) { return broadcast(*static_cast<const UnalignedInt*>(from)); }

inline void store_whole(int32_t* to, IVec value) { *reinterpret_cast<UnalignedIVec*>(to) = value; }

// Stores the lowest byte of each lane.
inline void store_bytes(void* to, IVec value) {
#if defined(__AVX512F__)
  _mm_storeu_si128(static_cast<__m128i*>(to), _mm512_cvtepi32_epi8((__m512i)value));
#elif defined(__AVX2__)
  const __m256i lowest = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                          -1, -1, -1, -1, 0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i bytes = _mm256_shuffle_epi8((__m256i)value, lowest);
  const __m128i both = _mm_or_si128(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
  _mm_storel_epi64(static_cast<__m128i*>(to), both);
#elif defined(__aarch64__)
  const uint32_t bytes = lowest_bytes(value);
  std::memcpy(to, &bytes, sizeof bytes);
#else
  for (int i = 0; i < W; ++i) static_cast<uint8_t*>(to)[i] = uint8_t(value[i]);
#endif
}

// The sum of signed bytes; `count` is a multiple of 16.
inline int32_t total_of(const uint8_t* bytes, int64_t count) {
#if defined(__AVX512F__)
  __m512i sums = _mm512_setzero_si512();
  for (int64_t i = 0; i < count; i += 16)
    sums = _mm512_add_epi32(sums, _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes + i))));
  return _mm512_reduce_add_epi32(sums);
#elif defined(__aarch64__)
  int32_t total = 0;
  for (int64_t i = 0; i < count; i += 16) total += vaddlvq_s8(vld1q_s8(reinterpret_cast<const int8_t*>(bytes + i)));
  return total;
#else
  int32_t total = 0;
  for (int64_t i = 0; i < count; ++i) total += int8_t(bytes[i]);
  return total;
#endif
}

// The sum of unsigned bytes.
inline int32_t total_unsigned(const uint8_t* bytes, int64_t count) {
  int32_t total = 0;
  for (int64_t i = 0; i < count; ++i) total += bytes[i];
  return total;
}

inline Vec to_float(IVec value) { return __builtin_convertvector(value, Vec); }

// The nearest whole number, or the even one of two equally near, for |value| < 2^22.
inline IVec round(Vec value) {
  const Vec magic = broadcast(12582912.0f);  // 1.5 * 2^23
  return (IVec)(value + magic) - 0x4B400000;
}

// As `round`, but only the lowest byte of each lane is that of the whole number.
inline IVec round_to_byte(Vec value) { return (IVec)(value + broadcast(12582912.0f)); }

}  // namespace
