// How kernels share work and memory among the threads of a team.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

#if defined(_OPENMP) && __has_include(<omp.h>)
#include <omp.h>
#elif defined(_OPENMP)  // Apple's compiler comes without the header
extern "C" int omp_get_thread_num();
extern "C" int omp_get_num_threads();
#endif

struct Range {
  int64_t first, last;
  int64_t size() const { return last - first; }
};

// Scratch memory that a thread keeps from call to call. It only grows.
struct Workspace {
  char* memory = nullptr;
  size_t size = 0;
  ~Workspace() { operator delete(memory, std::align_val_t(64)); }

  char* get(size_t wanted) {
    if (wanted > size) {
      operator delete(memory, std::align_val_t(64));
      memory = static_cast<char*>(operator new(size = wanted, std::align_val_t(64)));
    }
    return memory;
  }
};

namespace {

inline int thread_index() {
#if defined(_OPENMP)
  return omp_get_thread_num();
#else
  return 0;
#endif
}

inline int team_size() {
#if defined(_OPENMP)
  return omp_get_num_threads();
#else
  return 1;
#endif
}

// Part `index` of `count` nearly equal parts.
inline Range part(Range whole, int64_t index, int64_t count) {
  return {whole.first + whole.size() * index / count, whole.first + whole.size() * (index + 1) / count};
}

// The next multiple of 64, the size of a cache line.
constexpr int64_t rounded(int64_t size) { return (size + 63) / 64 * 64; }

}  // namespace
