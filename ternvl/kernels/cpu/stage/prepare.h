// What a stage does to a row before its product: norm, smoothing and mixing.
#pragma once

#include "lora/lora.h"
#include "mix.h"
#include "stage/stage.h"

namespace {

// Returns the row after the stage's norm: `x` itself if there is no norm, otherwise `out` [K].
inline const float* normed(const Stage& stage, const float* x, float* out) {
  if (stage.before == NO_NORM) return x;
  if (stage.before == RMS_NORM) rms_norm(x, stage.norm_weight, stage.eps, stage.k, out);
  if (stage.before == LAYER_NORM) layer_norm(x, stage.norm_weight, stage.norm_bias, stage.eps, stage.k, out);
  return out;
}

// Returns the row after smoothing: `x` itself if there is none, otherwise `out` [K], which may be `x`.
inline const float* smoothed(const Stage& stage, const float* x, float* out) {
  if (!stage.smoothing) return x;
  each(stage.k, [&](int64_t i, int n) {
    store_some(out + i, load_some(x + i, n) * load_some(stage.smoothing + i, n), n);
  });
  return out;
}

// Returns the row after mixing: `x` itself if there is none, otherwise `out` [K], which may be `x`.
inline const float* mixed(const Stage& stage, const float* x, float* out) {
  if (!stage.mixed) return x;
  mix(x, stage.k, stage.mixed, out);
  return out;
}

// Returns the row as its product takes it: a row of the call's x, or `out` [K]. The adapters read it between norm and
// smoothing.
inline const float* prepared(const Stage& stage, const Call& call, int64_t row, float* out) {
  const float* x = call.x + row * call.ldx;
  if (!call.is_plain) x = normed(stage, x, out);
  if (call.adding) call.adding->shrink(row, x);
  return mixed(stage, smoothed(stage, x, out), out);
}

}  // namespace
