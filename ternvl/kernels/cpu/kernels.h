// Kernels that others call; each is told of where it is defined.
#pragma once

#include "lora/lora.h"

EXPORT void ternvl_stage(const Stage*, const float*, int64_t, int64_t, const Added*, const Adapters*, const float*,
                         float*, int64_t, int, bool);
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
