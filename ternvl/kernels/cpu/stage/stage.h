// A stage of the network: an optional norm, a product with a matrix, an optional activation and an optional sum.
//
//     y = after(quantised(mixed(norm(x) * smoothing)) W^T + bias (+ added)) (+ residual)
//
// Names: M rows, N outputs, K inputs. `ternvl/kernels/stage.py` mirrors the struct `Stage`.
#pragma once

#include "product/panels.h"

enum Format : int32_t { FLOAT32, BFLOAT16, INT8, INT4, AFFINE4 };
enum Before : int32_t { NO_NORM, RMS_NORM, LAYER_NORM };
enum After : int32_t { NOTHING, GELU, SWIGLU };

struct Stage {
  const void* panels;
  const float* scales;       // INT8: [N], the scale of each output
  const int32_t* offsets;    // INT8: [N], 128 times the sum of the output's weights; each [N] is padded to whole panels
  const float* bias;         // [N] or null
  const float* smoothing;    // [K] or null
  const float* norm_weight;  // [K]
  const float* norm_bias;    // [K], for LAYER_NORM
  int64_t n, k;              // for SWIGLU n counts gates and ups, whose panels alternate
  float eps;
  Format format;
  Before before;
  After after;
  int32_t mixed;  // inputs of a block of a Walsh-Hadamard transform, a power of two from 16 on; or 0
};

class Adding;  // lora/lora.h

// One call of a stage.
struct Call {
  const float* x;
  int64_t m, ldx;
  const Adding* adding;   // what adapters add to the outputs before the activation, or null
  const float* residual;  // [M, outputs] with rows as far apart as those of y, or null
  float* y;
  int64_t ldy;
  int num_threads;
  bool is_plain;  // the product alone: x is normed already, and y receives all outputs, gates before ups
};

namespace {

// The panels of a stage with quantised weights; gates and ups are padded to whole panels each.
inline int64_t num_panels(const Stage& stage) {
  return stage.after == SWIGLU ? 2 * panels_of(stage.n / 2) : panels_of(stage.n);
}

}  // namespace

// Not exported; in the files of product/ with these names.
void int8_stage(const Stage& stage, const Call& call);
void int4_stage(const Stage& stage, const Call& call);
void affine4_stage(const Stage& stage, const Call& call);
