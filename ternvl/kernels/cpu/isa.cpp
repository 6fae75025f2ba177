// The instruction sets that this CPU and its operating system support. The loader asks the portable library.
#include "kernels.h"

// The name of the best instruction set.
EXPORT const char* ternvl_best_isa() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512 && __builtin_cpu_supports("avx512vnni")) return "avx512vnni";
  return avx512 ? "avx512" : avx2 ? "avx2" : "portable";
#else
  return "portable";
#endif
}
