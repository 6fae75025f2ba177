// Writes keys and values of float32 into a cache of blocks.
#include <algorithm>

#include "kernels.h"

// Writes k and v [T, key heads, D] to slots [T]. Returns whether all slots exist; nothing is written if one does not.
EXPORT bool ternvl_write_kv(float* keys, float* values, const int64_t* slots, const float* k, int64_t k_stride,
                            const float* v, int64_t v_stride, int64_t num_tokens, int64_t num_blocks, int key_heads,
                            int head_size, int block_size, int num_threads) {
  const int64_t num_slots = num_blocks * block_size, size = int64_t(block_size) * head_size;
  if (!std::all_of(slots, slots + num_tokens, [&](int64_t slot) { return slot >= 0 && slot < num_slots; }))
    return false;
  const int team = num_tokens < 64 ? 1 : num_threads;
#pragma omp parallel for num_threads(team)
  for (int64_t t = 0; t < num_tokens; ++t)
    for (int head = 0; head < key_heads; ++head) {
      const int64_t block = (slots[t] / block_size * key_heads + head) * size, offset = slots[t] % block_size;
      const float* key = k + t * k_stride + int64_t(head) * head_size;
      for (int i = 0; i < head_size; ++i) keys[block + int64_t(i) * block_size + offset] = key[i];
      std::copy_n(v + t * v_stride + int64_t(head) * head_size, head_size, values + block + offset * head_size);
    }
  return true;
}
