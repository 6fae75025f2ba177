// All layers of a decoder in one call: the stages, rotary positions and attention of this folder one after the other, so
// with the bits that they have when they are called one by one.
//
// The structs are those of `ternvl/kernels/decoder.py`. T tokens, H query heads, K key heads, D head size.
#include "stage.h"

EXPORT void ternvl_stage(const Stage*, const float*, int64_t, int64_t, const float*, float*, int64_t, int, bool);
EXPORT void ternvl_rotate(float*, int64_t, const float*, const float*, int64_t, int, int, int);
EXPORT bool ternvl_write_kv(float*, float*, const int64_t*, const float*, int64_t, const float*, int64_t, int64_t,
                            int64_t, int, int, int, int);
EXPORT bool ternvl_write_kv_int8(uint8_t*, const int64_t*, const float*, int64_t, const float*, int64_t, int64_t,
                                 int64_t, int, int, int);
EXPORT bool ternvl_paged_attention(const float*, int64_t, const float*, const float*, const int32_t*, int64_t,
                                   const int32_t*, const int32_t*, int64_t, int64_t, int64_t, int, int, int, int, float*,
                                   int);
EXPORT bool ternvl_attention_int8(const float*, int64_t, const uint8_t*, const int32_t*, int64_t, const int32_t*,
                                  const int32_t*, int64_t, int64_t, int64_t, int, int, int, bool, float*, int);

struct Layer {
  const Stage *qkv, *o, *gate_up, *down;
};

struct Decoder {
  const Layer* layers;
  int64_t num_layers;
  int32_t heads, key_heads, d;
};

// Of all layers one after the other: `keys` and `values`, or both in `bytes`.
struct Cache {
  float *keys, *values;
  uint8_t* bytes;
  int64_t layer_size;  // elements of a layer in each of them
  int64_t num_blocks;
  int32_t block_size;
};

struct Step {
  const int64_t* slots;         // [T]
  const int32_t* tables;        // [sequences, table_width]
  const int32_t* query_starts;  // [sequences + 1]
  const int32_t* lengths;       // [sequences]
  const float *cos, *sin;       // [T, D]
  int64_t num_tokens, num_sequences, table_width;
};

namespace {

// Writes the step's keys and values, then attends: qkv [T, H + 2 K, D] -> out [T, H, D].
bool attend(const Decoder& decoder, const Cache& cache, const Step& step, int64_t layer, const float* qkv, float* out,
            int threads) {
  const int heads = decoder.heads, key_heads = decoder.key_heads, d = decoder.d;
  const int64_t stride = int64_t(heads + 2 * key_heads) * d, offset = layer * cache.layer_size;
  const float *k = qkv + int64_t(heads) * d, *v = k + int64_t(key_heads) * d;
  if (cache.bytes) {
    uint8_t* bytes = cache.bytes + offset;
    return ternvl_write_kv_int8(bytes, step.slots, k, stride, v, stride, step.num_tokens, cache.num_blocks, key_heads,
                                d, threads) &&
           ternvl_attention_int8(qkv, stride, bytes, step.tables, step.table_width, step.query_starts, step.lengths,
                                 step.num_sequences, cache.num_blocks, step.num_tokens, heads, key_heads, d, true, out,
                                 threads);
  }
  float *keys = cache.keys + offset, *values = cache.values + offset;
  return ternvl_write_kv(keys, values, step.slots, k, stride, v, stride, step.num_tokens, cache.num_blocks, key_heads,
                         d, cache.block_size, threads) &&
         ternvl_paged_attention(qkv, stride, keys, values, step.tables, step.table_width, step.query_starts,
                                step.lengths, step.num_sequences, cache.num_blocks, step.num_tokens, heads, key_heads,
                                d, cache.block_size, out, threads);
}

}  // namespace

// x [T, hidden size] in place. Returns false where a slot, a table or a length is not within the cache.
EXPORT bool ternvl_decode(const Decoder* decoder, const Cache* cache, const Step* step, float* x, int threads) {
  static thread_local Workspace workspace;
  const int64_t tokens = step->num_tokens, width = int64_t(decoder->heads) * decoder->d;
  const int64_t qkv_width = width + 2 * int64_t(decoder->key_heads) * decoder->d;
  const int64_t inner = decoder->layers[0].gate_up->n / 2;
  float* qkv = reinterpret_cast<float*>(workspace.get(4 * tokens * (qkv_width + width + inner) + 64));
  float *attended = qkv + tokens * qkv_width, *gated = attended + tokens * width;
  for (int64_t i = 0; i < decoder->num_layers; ++i) {
    const Layer& layer = decoder->layers[i];
    const int64_t hidden = layer.qkv->k;
    ternvl_stage(layer.qkv, x, tokens, hidden, nullptr, qkv, qkv_width, threads, false);
    ternvl_rotate(qkv, qkv_width, step->cos, step->sin, tokens, decoder->heads + decoder->key_heads, decoder->d,
                  threads);
    if (!attend(*decoder, *cache, *step, i, qkv, attended, threads)) return false;
    ternvl_stage(layer.o, attended, tokens, width, x, x, hidden, threads, false);
    ternvl_stage(layer.gate_up, x, tokens, hidden, nullptr, gated, inner, threads, false);
    ternvl_stage(layer.down, gated, tokens, inner, x, x, hidden, threads, false);
  }
  return true;
}
