// Runs a stage in the format of its weights.
#include "stage/stage.h"

#include "activation.h"
#include "kernels.h"
#include "stage/prepare.h"

namespace {

// Computes row `index` of y from the outputs of its product. `added` [N] is scratch memory, or null without adapters.
void finish_row(const Stage& stage, const Call& call, int64_t index, const float* outputs, float* added) {
  const int64_t n = stage.after == SWIGLU ? stage.n / 2 : stage.n;
  const float* residual = call.residual ? call.residual + index * call.ldy : nullptr;
  float* y = call.y + index * call.ldy;
  const auto output = [&](int64_t i, int count) {
    const Vec value = load_some(outputs + i, count);
    return added ? value + load_some(added + i, count) : value;
  };
  if (call.adding) call.adding->get(index, {0, stage.n}, added);
  each(n, [&](int64_t i, int count) {
    Vec value = output(i, count);
    if (stage.after == GELU) value = gelu(value);
    if (stage.after == SWIGLU) value = silu(value) * output(n + i, count);
    if (residual) value = load_some(residual + i, count) + value;
    store_some(y + i, value, count);
  });
}

// A stage whose weights are not quantised: norm, product and activation one after the other. All gates precede the ups.
void float_stage(const Stage& stage, const Call& call) {
  static thread_local Workspace workspace;
  const bool is_prepared = (stage.before != NO_NORM && !call.is_plain) || stage.smoothing || stage.mixed;
  const bool is_last = call.is_plain || (stage.after == NOTHING && !call.adding && !call.residual);
  const bool is_finished = is_last && call.ldy == stage.n;
  const int64_t inputs = is_prepared ? call.m * stage.k : 0, outputs = is_finished ? 0 : call.m * stage.n;
  const int64_t added = call.adding ? outputs : 0;
  float* rows = reinterpret_cast<float*>(workspace.get(4 * (inputs + outputs + added) + 64));
  float* sums = is_finished ? call.y : rows + inputs;
  const int threads = call.m > 1 ? call.num_threads : 1;
  if (is_prepared || call.adding)
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < call.m; ++i) prepared(stage, call, i, rows + i * stage.k);
  ternvl_linear(is_prepared ? rows : call.x, call.m, stage.k, is_prepared ? stage.k : call.ldx, stage.panels,
                stage.format == BFLOAT16 ? 2 : 4, stage.n, stage.bias, sums, call.num_threads);
  if (is_finished) return;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < call.m; ++i)
    finish_row(stage, call, i, sums + i * stage.n, added ? sums + (call.m + i) * stage.n : nullptr);
}

}  // namespace

// x [m, k] with rows `ldx` apart -> y [m, outputs] with rows `ldy` apart. `residual` is added if it is not null, and
// may be y. `added` and `adapters` are the modules of the stage and the rows that have adapters, or null. `is_plain`
// runs the product alone: x is normed already, and y [m, n] receives all outputs, for SWIGLU gates before ups.
EXPORT void ternvl_stage(const Stage* stage, const float* x, int64_t m, int64_t ldx, const Added* added,
                         const Adapters* adapters, const float* residual, float* y, int64_t ldy, int num_threads,
                         bool is_plain) {
  static thread_local Adding adding;
  const bool is_adapted = added && adapters && !is_plain && adding.plan(*added, *adapters, m, stage->k);
  const Call call{x, m, ldx, is_adapted ? &adding : nullptr, is_plain ? nullptr : residual, y, ldy, num_threads,
                  is_plain};
  if (stage->format == INT8) return int8_stage(*stage, call);
  if (stage->format == INT4) return int4_stage(*stage, call);
  if (stage->format == AFFINE4) return affine4_stage(*stage, call);
  float_stage(*stage, call);
}

// The norm of a stage alone: x [m, k] -> out [m, k]. The stage must have a norm.
EXPORT void ternvl_stage_inputs(const Stage* stage, const float* x, int64_t m, int64_t ldx, float* out,
                                int num_threads) {
#pragma omp parallel for num_threads(num_threads) schedule(static) if (num_threads > 1 && m > 8)
  for (int64_t i = 0; i < m; ++i) normed(*stage, x + i * ldx, out + i * stage->k);
}
