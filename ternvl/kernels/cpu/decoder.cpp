// All layers of a decoder in one call: the stages, rotary positions and attention of this folder one after the other, so
// with the bits that they have when they are called one by one.
//
// T tokens, H query heads, K key heads, D head size.
#include "decoder.h"

#include <algorithm>

#include "kernels.h"

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

// A stage with what adapters add. `rows` [T, K] and `sums` [T, N] are scratch.
struct Adapted {
  const Adapters* adapters;  // or null
  float *rows, *sums;

  void run(const Stage* stage, const Added* added, const float* x, int64_t tokens, const float* residual, float* y,
           int64_t ldy, int threads) const {
    const int64_t n = stage->n, k = stage->k;
    const bool is_adapted = adapters && touches(*added, *adapters);
    if (is_adapted) {
      if (stage->before != NO_NORM) ternvl_stage_inputs(stage, x, tokens, k, rows, threads);
      const float* normed = stage->before != NO_NORM ? rows : x;
      ternvl_lora_add(added, adapters, normed, tokens, k, k, sums, n, true, threads);
    }
    ternvl_stage(stage, x, tokens, k, is_adapted ? sums : nullptr, residual, y, ldy, threads, false);
  }
};

}  // namespace

// x [T, hidden size] in place; `added` may be null. Returns false where a slot, a table or a length is not within the
// cache.
EXPORT bool ternvl_decode(const Decoder* decoder, const Cache* cache, const Step* step, const AddedToDecoder* added,
                          float* x, int threads) {
  static thread_local Workspace workspace;
  const int64_t tokens = step->num_tokens, width = int64_t(decoder->heads) * decoder->d;
  const int64_t qkv_width = width + 2 * int64_t(decoder->key_heads) * decoder->d;
  const int64_t hidden = decoder->layers[0].qkv->k, inner = decoder->layers[0].down->k;
  const int64_t scratch = added ? hidden + std::max(2 * inner, std::max(qkv_width, hidden)) : 0;
  float* qkv = reinterpret_cast<float*>(workspace.get(4 * tokens * (qkv_width + width + inner + scratch) + 64));
  float *attended = qkv + tokens * qkv_width, *gated = attended + tokens * width, *rows = gated + tokens * inner;
  const Adapted adapted{added ? &added->adapters : nullptr, rows, rows + tokens * hidden};
  for (int64_t i = 0; i < decoder->num_layers; ++i) {
    const Layer& layer = decoder->layers[i];
    const AddedToLayer more = added ? added->layers[i] : AddedToLayer{};
    adapted.run(layer.qkv, &more.qkv, x, tokens, nullptr, qkv, qkv_width, threads);
    ternvl_rotate(qkv, qkv_width, step->cos, step->sin, tokens, decoder->heads + decoder->key_heads, decoder->d,
                  threads);
    if (!attend(*decoder, *cache, *step, i, qkv, attended, threads)) return false;
    adapted.run(layer.o, &more.o, attended, tokens, x, x, hidden, threads);
    adapted.run(layer.gate_up, &more.gate_up, x, tokens, nullptr, gated, inner, threads);
    adapted.run(layer.down, &more.down, gated, tokens, x, x, hidden, threads);
  }
  return true;
}
