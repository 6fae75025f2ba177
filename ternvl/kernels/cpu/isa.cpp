// The instruction sets that this CPU and its operating system support. The compiler that compiles this file is the one
// that is to compile the kernels.
#include <cstring>

#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>

namespace {

bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

// AVX-VNNI is bit 4 of EAX of leaf 7, subleaf 1 (Intel's manual, CPUID). Older compilers do not have it.
bool has_avxvnni() {
#if defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
#else
  return false;
#endif
}

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

}  // namespace

#elif defined(__aarch64__)
#if defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__linux__)
#include <sys/auxv.h>
#endif

namespace {

// Apple's names of the extensions are those of its manual for sysctl; Linux has a bit for each in the auxiliary vector
// (arch/arm64/include/uapi/asm/hwcap.h).
#if defined(__APPLE__)
bool has_flag(const char* name) {
  int is_there = 0;
  size_t size = sizeof is_there;
  return sysctlbyname(name, &is_there, &size, nullptr, 0) == 0 && is_there;
}
bool has_dotprod() { return has_flag("hw.optional.arm.FEAT_DotProd"); }
bool has_i8mm() { return has_flag("hw.optional.arm.FEAT_I8MM"); }
#elif defined(__linux__)
bool has_dotprod() { return getauxval(AT_HWCAP) >> 20 & 1; }
bool has_i8mm() { return getauxval(AT_HWCAP2) >> 13 & 1; }
#else
bool has_dotprod() { return false; }
bool has_i8mm() { return false; }
#endif

}  // namespace
#endif

// Whether kernels for the instruction set of this name can be compiled and run.
EXPORT bool ternvl_has_isa(const char* name) {
  const auto is = [&](const char* other) { return !std::strcmp(name, other); };
#if defined(__x86_64__)
  if (is("avx2")) return has_avx2();
  if (is("avxvnni")) return has_avxvnni();
  if (is("avx512")) return has_avx512();
  if (is("avx512vnni")) return has_avx512() && __builtin_cpu_supports("avx512vnni");
#elif defined(__aarch64__)
  if (is("neon")) return true;
  if (is("dotprod")) return has_dotprod();
  if (is("i8mm")) return has_dotprod() && has_i8mm();
#endif
  return is("portable");
}
