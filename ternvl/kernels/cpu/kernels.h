// The functions that Python calls. Each is described where it is defined.
#pragma once

#include <cstdint>

#define EXPORT extern "C" __attribute__((visibility("default")))

struct Adapters;
struct Added;
struct AddedToDecoder;
struct Cache;
struct Decoder;
struct Problem;
struct Stage;
struct Step;

// The machine and this library.
EXPORT bool ternvl_has_isa(const char* name);
EXPORT int64_t ternvl_size_of(const char* name);
EXPORT double ternvl_peak_int8(int64_t steps, int num_threads);
EXPORT double ternvl_peak_fp32(int64_t steps, int num_threads);
EXPORT double ternvl_read(const float* from, int64_t size, int num_threads);

// Rows and elements.
EXPORT void ternvl_gelu(const float* x, float* y, int64_t size, int num_threads);
EXPORT void ternvl_rms_norm(const float* x, int64_t m, int64_t k, const float* weight, float eps, float* out,
                            int num_threads);
EXPORT void ternvl_rotate(float* x, int64_t stride, const float* cos, const float* sin, int64_t num_tokens, int heads,
                          int d, int num_threads);
EXPORT void ternvl_largest(const float* x, int64_t rows, int64_t size, int64_t stride, float* values, int64_t* indices,
                           int num_threads);

// Packing, and products.
EXPORT void ternvl_pack_linear(const void* weight, int size, int64_t n, int64_t k, void* panels, int num_threads);
EXPORT void ternvl_pack_int8(const int8_t* weight, int64_t n, int64_t k, int8_t* panels, int32_t* offsets,
                             int num_threads);
EXPORT void ternvl_pack_int4(const int8_t* weight, const uint16_t* scales, int64_t n, int64_t k, uint8_t* panels,
                             int num_threads);
EXPORT void ternvl_linear(const float* x, int64_t m, int64_t k, int64_t ldx, const void* panels, int size, int64_t n,
                          const float* bias, float* y, int num_threads);

// Stages, adapters and whole decoders.
EXPORT void ternvl_stage(const Stage* stage, const float* x, int64_t m, int64_t ldx, const Added* added,
                         const Adapters* adapters, const float* residual, float* y, int64_t ldy, int num_threads,
                         bool is_plain);
EXPORT void ternvl_stage_inputs(const Stage* stage, const float* x, int64_t m, int64_t ldx, float* out,
                                int num_threads);
EXPORT void ternvl_lora_add(const Added* added, const Adapters* adapters, const float* x, int64_t m, int64_t ldx,
                            int64_t k, float* out, int64_t n, int64_t ldo, int num_threads);
EXPORT bool ternvl_decode(const Decoder* decoder, const Cache* cache, const Step* step, const AddedToDecoder* added,
                          float* x, int num_threads);

// Attention.
EXPORT bool ternvl_paged_attention(const Problem* problem, const float* keys, const float* values, int num_threads);
EXPORT bool ternvl_write_kv(float* keys, float* values, const int64_t* slots, const float* k, int64_t k_stride,
                            const float* v, int64_t v_stride, int64_t num_tokens, int64_t num_blocks, int key_heads,
                            int head_size, int block_size, int num_threads);
EXPORT bool ternvl_attention_int8(const Problem* problem, const uint8_t* cache, bool is_causal, int num_threads);
EXPORT bool ternvl_write_kv_int8(uint8_t* cache, const int64_t* slots, const float* k, int64_t k_stride, const float* v,
                                 int64_t v_stride, int64_t num_tokens, int64_t num_blocks, int key_heads, int head_size,
                                 int num_threads);
EXPORT void ternvl_tile_attention(const float* qkv, int64_t num_tiles, int64_t length, int heads, int head_size,
                                  float* out, int num_threads);
