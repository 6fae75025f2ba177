// Writes keys and values into a cache of bytes.
#include "attention/int8_cache.h"

#include "kernels.h"

// Writes k and v [T, key heads, D] to slots [T]. Returns whether all slots exist; nothing is written if one does not.
EXPORT bool ternvl_write_kv_int8(uint8_t* cache, const int64_t* slots, const float* k, int64_t k_stride, const float* v,
                                 int64_t v_stride, int64_t num_tokens, int64_t num_blocks, int key_heads, int d,
                                 int num_threads) {
  const int64_t num_slots = num_blocks * BLOCK, size = block_bytes(d);
  if (!std::all_of(slots, slots + num_tokens, [&](int64_t slot) { return slot >= 0 && slot < num_slots; }))
    return false;
  const int team = num_tokens * key_heads < 64 ? 1 : num_threads;
#pragma omp parallel for num_threads(team) schedule(static) if (team > 1)
  for (int64_t t = 0; t < num_tokens; ++t)
    for (int head = 0; head < key_heads; ++head)
      write_position(cache + (slots[t] / BLOCK * key_heads + head) * size, d, slots[t] % BLOCK,
                     k + t * k_stride + int64_t(head) * d, v + t * v_stride + int64_t(head) * d);
  return true;
}
