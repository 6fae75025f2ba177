// The limits of this machine, with which benchmarks are compared: reading memory once from end to end, and
// multiply-adds whose operands stay in registers.
#include "kernels.h"
#include "int8.h"
#include "work.h"

namespace {

// Independent accumulators: more than latency times ports, but fewer than the 16 registers of AVX2.
constexpr int CHAINS = 12;

#if defined(__AVX512VNNI__)
typedef __m512i Int8Vec;
constexpr int INT8_OPS = 2 * 64;
inline Int8Vec dot(Int8Vec sum, Int8Vec a, Int8Vec b) { return _mm512_dpbusd_epi32(sum, a, b); }
#elif defined(__AVXVNNI__)
typedef __m256i Int8Vec;
constexpr int INT8_OPS = 2 * 32;
inline Int8Vec dot(Int8Vec sum, Int8Vec a, Int8Vec b) { return _mm256_dpbusd_avx_epi32(sum, a, b); }
#elif defined(__AVX512BW__)
typedef __m512i Int8Vec;
constexpr int INT8_OPS = 2 * 32;
inline Int8Vec dot(Int8Vec sum, Int8Vec a, Int8Vec b) { return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b)); }
#elif defined(__AVX2__)
typedef __m256i Int8Vec;
constexpr int INT8_OPS = 2 * 16;
inline Int8Vec dot(Int8Vec sum, Int8Vec a, Int8Vec b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }
#elif defined(__aarch64__)
typedef IVec Int8Vec;
#if defined(__ARM_FEATURE_MATMUL_INT8)
constexpr int INT8_OPS = 2 * 32;
inline Int8Vec dot(Int8Vec sum, Int8Vec a, Int8Vec b) {
  return (Int8Vec)vmmlaq_s32((int32x4_t)sum, (int8x16_t)a, (int8x16_t)b);
}
#else
constexpr int INT8_OPS = 2 * 16;
inline Int8Vec dot(Int8Vec sum, Int8Vec a, Int8Vec b) { return dot_bytes(sum, a, b); }
#endif
#else
typedef int16_t Int8Vec __attribute__((vector_size(16)));
constexpr int INT8_OPS = 2 * 8;
inline Int8Vec dot(Int8Vec sum, Int8Vec a, Int8Vec b) { return sum + a * b; }
#endif

struct Int8 {
  typedef Int8Vec Type;
  static constexpr int OPS = INT8_OPS;
  static Type step(Type sum, Type a, Type b) { return dot(sum, a, b); }
};

struct Fp32 {
  typedef Vec Type;
  static constexpr int OPS = 2 * W;
  static Type step(Type sum, Type a, Type b) { return fma(a, b, sum); }
};

template <typename Kind>
void chains(int64_t steps) {
  typename Kind::Type a{}, b{}, sums[CHAINS] = {};
  keep(b);
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 12
    for (int chain = 0; chain < CHAINS; ++chain) {
      keep(a);  // otherwise a product that is an instruction of its own would be computed once for all steps
      sums[chain] = Kind::step(sums[chain], a, b);
      keep(sums[chain]);
    }
  }
}

template <typename Kind>
double peak(int64_t steps, int num_threads) {
  int team = 1;
#pragma omp parallel num_threads(num_threads) if (num_threads > 1)
  {
    if (thread_index() == 0) team = team_size();
    chains<Kind>(steps);
  }
  return double(steps) * CHAINS * Kind::OPS * team;
}

}  // namespace

// Computes `steps` steps on each thread; returns the number of multiplications and additions of 8-bit integers.
EXPORT double ternvl_peak_int8(int64_t steps, int num_threads) { return peak<Int8>(steps, num_threads); }

// As `ternvl_peak_int8`, for float32.
EXPORT double ternvl_peak_fp32(int64_t steps, int num_threads) { return peak<Fp32>(steps, num_threads); }

// Reads `size` floats, with one run for each thread, and returns their sum.
EXPORT double ternvl_read(const float* from, int64_t size, int num_threads) {
  double total = 0;
#pragma omp parallel num_threads(num_threads) if (num_threads > 1) reduction(+ : total)
  {
    const auto [first, last] = part({0, size}, thread_index(), team_size());
    Vec sums[8] = {};
    int64_t i = first;
    for (; i + 8 * W <= last; i += 8 * W)
      for (int lane = 0; lane < 8; ++lane) {
        // Into the second-level cache, because the first level can track only a few lines on their way.
        if (lane * W % 16 == 0) __builtin_prefetch(from + i + lane * W + 1024, 0, 2);
        sums[lane] += load(from + i + lane * W);
      }
    for (const Vec& each : sums) total += sum(each);
    for (; i < last; ++i) total += from[i];
  }
  return total;
}
