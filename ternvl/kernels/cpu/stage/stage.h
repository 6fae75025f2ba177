// A stage of the network: a norm or nothing, a product with a matrix, an activation or nothing, a sum or nothing.
//
//     y = after(quantised(norm(x) * smoothing) W^T + bias (+ added)) (+ residual)
//
// Names: M rows, N outputs, K inputs. The struct is `ternvl.kernels.stage.Description` in Python.
#pragma once

#include "activation.h"

enum Format : int32_t { FLOAT32, BFLOAT16, INT8, INT4 };
enum Before : int32_t { NO_NORM, RMS_NORM, LAYER_NORM };
enum After : int32_t { NOTHING, GELU, SWIGLU };

struct Stage {
  const void* panels;
  const float* scales;      // int8: [N], what a whole number of each output stands for
  const int32_t* offsets;   // int8: [N], 128 times the sum of the output's weights; all [N] are padded to whole panels
  const float* bias;        // [N] or null
  const float* smoothing;   // [K] or null
  const float* norm_weight; // [K]
  const float* norm_bias;   // [K], of LAYER_NORM
  int64_t n, k;             // with SWIGLU n counts gates and ups, whose panels take turns
  float eps;
  Format format;
  Before before;
  After after;
};

class Adding;  // lora.h

struct Range {
  int64_t first, last;
  int64_t size() const { return last - first; }
};

// Memory of a thread that asks again and again: it only grows.
struct Workspace {
  char* memory = nullptr;
  size_t size = 0;
  ~Workspace() { operator delete(memory, std::align_val_t(64)); }

  char* get(size_t wanted) {
    if (wanted > size) {
      operator delete(memory, std::align_val_t(64));
      memory = static_cast<char*>(operator new(size = wanted, std::align_val_t(64)));
    }
    return memory;
  }
};

struct Call {
  const float* x;
  int64_t m, ldx;
  const Adding* adding;   // what adapters add to the outputs before the activation, or null
  const float* residual;  // [M, outputs] as y, or null
  float* y;
  int64_t ldy;
  int num_threads;
  bool is_plain;  // the product alone: x is normed already, y has all outputs, gates before ups
};

namespace {

// Part `index` of `count` nearly equal parts.
inline Range part(Range whole, int64_t index, int64_t count) {
  return {whole.first + whole.size() * index / count, whole.first + whole.size() * (index + 1) / count};
}

constexpr int NR = 16;      // columns of a panel
constexpr int NV = NR / W;  // vectors across a panel

inline int64_t panels_of(int64_t columns) { return (columns + NR - 1) / NR; }

// Gates and ups are padded to whole panels each.
inline int64_t num_panels(const Stage& stage) {
  return stage.after == SWIGLU ? 2 * panels_of(stage.n / 2) : panels_of(stage.n);
}

// Where there are few rows, reading weights is the limit. They are asked for this many bytes ahead, and into the second
// cache: the first has too few places for what is on its way. At the end of a pair of panels that is the next pair.
constexpr int64_t AHEAD = 4096;
constexpr int FEW_ROWS = 14;

inline void fetch(const void* from) { __builtin_prefetch(from, 0, 2); }

// How far ahead at `offset` in panels of `stride` bytes, of which `count` are read side by side.
inline int64_t ahead_at(int64_t offset, int64_t stride, int count) {
  return offset < stride - AHEAD ? AHEAD : AHEAD + (count - 1) * stride;
}

}  // namespace

// Hidden from Python; in int8_product.cpp and int4_product.cpp.
void int8_stage(const Stage& stage, const Call& call);
void int4_stage(const Stage& stage, const Call& call);
