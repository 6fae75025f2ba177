// All layers of a decoder in one call. It calls stages, rotary positions and attention one after the other, so the bits
// are the same as when Python calls them one by one.
//
// Names: T tokens, H query heads, K key heads, D head size.
#include "stage/decoder.h"

#include "attention/attention.h"
#include "kernels.h"
#include "stage/stage.h"
#include "work.h"

namespace {

// Writes the keys and values of the step, then attends: qkv [T, H + 2 K, D] -> out [T, H, D]. Returns whether all slots
// and blocks exist.
bool attend(const Decoder& decoder, const Cache& cache, const Step& step, int64_t layer, const float* qkv, float* out,
            int threads) {
  const int heads = decoder.heads, key_heads = decoder.key_heads, d = decoder.d;
  const int64_t stride = int64_t(heads + 2 * key_heads) * d, offset = layer * cache.layer_size;
  const float *k = qkv + int64_t(heads) * d, *v = k + int64_t(key_heads) * d;
  const int block_size = cache.block_size;
  const Problem problem{qkv, out, step.tables, step.query_starts, step.lengths, stride, int64_t(heads) * d,
                        step.table_width, step.num_sequences, cache.num_blocks, step.num_tokens, heads, key_heads, d,
                        block_size};
  if (cache.bytes) {
    uint8_t* bytes = cache.bytes + offset;
    return ternvl_write_kv_int8(bytes, step.slots, k, stride, v, stride, step.num_tokens, cache.num_blocks, key_heads,
                                d, threads) &&
           ternvl_attention_int8(&problem, bytes, true, threads);
  }
  float *keys = cache.keys + offset, *values = cache.values + offset;
  return ternvl_write_kv(keys, values, step.slots, k, stride, v, stride, step.num_tokens, cache.num_blocks, key_heads,
                         d, block_size, threads) &&
         ternvl_paged_attention(&problem, keys, values, threads);
}

}  // namespace

// x [T, hidden size] in place; `added` may be null. Returns whether all slots and blocks are within the cache.
EXPORT bool ternvl_decode(const Decoder* decoder, const Cache* cache, const Step* step, const AddedToDecoder* added,
                          float* x, int threads) {
  static thread_local Workspace workspace;
  const int64_t tokens = step->num_tokens, width = int64_t(decoder->heads) * decoder->d;
  const int64_t qkv_width = width + 2 * int64_t(decoder->key_heads) * decoder->d;
  const int64_t inner = decoder->layers[0].down->k;
  const Adapters* adapters = added ? &added->adapters : nullptr;
  float* qkv = reinterpret_cast<float*>(workspace.get(4 * tokens * (qkv_width + width + inner) + 64));
  float *attended = qkv + tokens * qkv_width, *gated = attended + tokens * width;
  for (int64_t i = 0; i < decoder->num_layers; ++i) {
    const Layer& layer = decoder->layers[i];
    const AddedToLayer more = added ? added->layers[i] : AddedToLayer{};
    const int64_t hidden = layer.qkv->k;
    ternvl_stage(layer.qkv, x, tokens, hidden, &more.qkv, adapters, nullptr, qkv, qkv_width, threads, false);
    ternvl_rotate(qkv, qkv_width, step->cos, step->sin, tokens, decoder->heads + decoder->key_heads, decoder->d,
                  threads);
    if (!attend(*decoder, *cache, *step, i, qkv, attended, threads)) return false;
    ternvl_stage(layer.o, attended, tokens, width, &more.o, adapters, x, x, hidden, threads, false);
    ternvl_stage(layer.gate_up, x, tokens, hidden, &more.gate_up, adapters, nullptr, gated, inner, threads, false);
    ternvl_stage(layer.down, gated, tokens, inner, &more.down, adapters, x, x, hidden, threads, false);
  }
  return true;
}
