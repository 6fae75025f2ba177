// Vectors of W floats or of W 32-bit integers, so that one source serves every instruction set.
//
// Multiply-adds are explicit (`fma`) and the compiler may not contract others (-ffp-contract=off). So an element is the
// same chain of roundings in every kernel, tile and tail that computes it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__)
#define TERNVL_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define TERNVL_VECTOR_BYTES 32
#else
#define TERNVL_VECTOR_BYTES 16
#endif

namespace {

constexpr int W = TERNVL_VECTOR_BYTES / 4;

typedef float Vec __attribute__((vector_size(TERNVL_VECTOR_BYTES), aligned(TERNVL_VECTOR_BYTES)));
typedef int32_t IVec __attribute__((vector_size(TERNVL_VECTOR_BYTES), aligned(TERNVL_VECTOR_BYTES)));
typedef uint32_t UVec __attribute__((vector_size(TERNVL_VECTOR_BYTES), aligned(TERNVL_VECTOR_BYTES)));
typedef uint16_t HalfVec __attribute__((vector_size(TERNVL_VECTOR_BYTES / 2), aligned(2)));
typedef float UnalignedVec __attribute__((vector_size(TERNVL_VECTOR_BYTES), aligned(4), may_alias));

inline Vec load(const float* from) { return *reinterpret_cast<const UnalignedVec*>(from); }

inline void store(float* to, Vec value) { *reinterpret_cast<UnalignedVec*>(to) = value; }

inline Vec broadcast(float value) { return value - Vec{}; }  // x - 0 is x, also for -0, so it costs nothing

// Hides a vector from the compiler at no cost. It can then neither drop nor reorder the sums that lead to it, so that
// the sums of a tile stay in their registers instead of waiting in memory for one another.
template <typename AnyVec>
inline void keep(AnyVec& value) {
#if defined(__x86_64__)
  asm volatile("" : "+x"(value));
#elif defined(__aarch64__)
  asm volatile("" : "+w"(value));
#else
  asm volatile("" : : "g"(&value) : "memory");
#endif
}

// The larger of each lane in one instruction, and `x` where that is NaN.
inline Vec at_least(Vec least, Vec x) {
#if defined(__AVX512F__)
  return _mm512_max_ps(least, x);
#elif defined(__AVX2__)
  return _mm256_max_ps(least, x);
#else
  return x < least ? least : x;
#endif
}

// bfloat16 is the upper half of a float32: widening is exact.
inline Vec load(const uint16_t* from) {
#if defined(__AVX512F__)
  __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
#elif defined(__AVX2__)
  __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
#else
  HalfVec bits;
  std::memcpy(&bits, from, sizeof bits);
  return reinterpret_cast<Vec>(__builtin_convertvector(bits, UVec) << 16);
#endif
}

inline Vec load(const int8_t* from) {
#if defined(__AVX512F__)
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#elif defined(__aarch64__)
  uint32_t bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(bytes))))));
#else
  Vec value;
  for (int i = 0; i < W; ++i) value[i] = float(from[i]);
  return value;
#endif
}

// a * b + c, rounded once if the instruction set has a fused multiply-add, otherwise twice; every lane alike.
inline Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

// The sum of the lanes in a fixed order: the two halves are added until one lane is left.
inline float sum(Vec value) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(value);
#elif defined(__aarch64__)
  const float32x2_t halves = vadd_f32(vget_low_f32(value), vget_high_f32(value));
  return vget_lane_f32(halves, 0) + vget_lane_f32(halves, 1);
#endif
  for (int half = W / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) value[i] += value[i + half];
  return value[0];
}

inline float max(Vec value) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(value);
#elif defined(__aarch64__)
  return vmaxnmvq_f32(value);
#endif
  float best = value[0];
  for (int i = 1; i < W; ++i) best = value[i] > best ? value[i] : best;
  return best;
}

}  // namespace
