// Memory of exactly the size that a kernel may touch, so that an address sanitizer reports the first byte beyond it.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

// The name of the buffer to make one element too short, which the sanitizer must then report; null for none.
inline const char* short_buffer = nullptr;

inline uint32_t next_random() {
  static uint32_t state = 1;
  return state = state * 1664525u + 1013904223u;
}

template <typename T>
class Buffer {
 public:
  // Fills the buffer with random numbers: floats from -1 to 1, integers of any size.
  Buffer(const char* name, int64_t size) : size_(size - (short_buffer && !std::strcmp(name, short_buffer))) {
    data_ = static_cast<T*>(std::malloc(size_ * sizeof(T)));
    for (int64_t i = 0; i < size_; ++i) {
      if constexpr (std::is_same_v<T, float>)
        data_[i] = float(next_random() >> 8) / float(1 << 23) - 1.0f;
      else
        data_[i] = T(next_random() >> 8);
    }
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  T* data() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }
  // Fills the buffer with whole numbers from 0 to `below` - 1.
  void under(T below) const {
    for (int64_t i = 0; i < size_; ++i) data_[i] = T(next_random() % uint32_t(below));
  }

 private:
  int64_t size_;
  T* data_;
};
