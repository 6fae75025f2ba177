// What products of bytes share: rows that become bytes, tiles shared among threads, and the way from sums to y.
#pragma once

#include <array>
#include <new>
#include <utility>

#include "rows.h"

namespace {

// The rows of x as bytes: blocks of R <= `most` rows, each [ceil(K / 4)][R][4].
struct Rows {
  uint8_t* bytes;
  float* scales;    // [M], what 1 stands for
  int32_t* totals;  // [M][groups] sums of bytes, or null
  int64_t m, steps, most, group;

  int64_t num_blocks() const { return (m + most - 1) / most; }
  Range block(int64_t index) const { return part({0, m}, index, num_blocks()); }
  int64_t num_groups() const { return steps * 4 / group; }
};

// A panel's vectors of one row, before and after the activation, to y.
struct Finish {
  const Stage& stage;
  const Call& call;

  // What `count` rows from `row` on will be added to is asked for before their sums are made.
  void expect(int64_t row, int count, int64_t panel, int panels) const {
    if (!call.residual) return;
    for (int r = 0; r < count; ++r)
      for (int p = 0; p < panels; ++p) __builtin_prefetch(call.residual + (row + r) * call.ldy + (panel + p) * NR);
  }

  // `values` are `count` rows' P panels from `panel` on. Not inlined: there are dozens of tiles, and this is the least of
  // their work. All rows at once, so that one need not wait for another's exponentials.
  template <int P>
  __attribute__((noinline)) void write(int64_t row, int count, int64_t panel, Vec* values) const {
    constexpr int ROW = P * NV;
    if (call.added) add<P>(row, count, panel, values);
    if (!call.is_plain && stage.after == GELU)
      for (int i = 0; i < count * ROW; ++i) values[i] = gelu(values[i]);
    if (P == 2 && !call.is_plain && stage.after == SWIGLU) {
      for (int i = 0; i < count * ROW; i += ROW)
        for (int v = 0; v < NV; ++v) values[i + v] = silu(values[i + v]) * values[i + NV + v];
      for (int r = 0; r < count; ++r) put(row + r, panel / 2 * NR, values + r * ROW, stage.n / 2);
      return;
    }
    for (int p = 0; p < P; ++p) {
      const Range columns = columns_of(panel + p);
      for (int r = 0; r < count; ++r) put(row + r, columns.first, values + r * ROW + p * NV, columns.last);
    }
  }

  // Where a panel's outputs lie in [M, N]: gates and ups, whose panels take turns, are one half each.
  Range columns_of(int64_t panel) const {
    const int64_t half = stage.n / 2;
    if (stage.after != SWIGLU) return {panel * NR, std::min(stage.n, (panel + 1) * NR)};
    const int64_t first = panel % 2 * half + panel / 2 * NR;
    return {first, std::min(panel % 2 ? stage.n : half, first + NR)};
  }

  template <int P>
  void add(int64_t row, int count, int64_t panel, Vec* values) const {
    for (int p = 0; p < P; ++p) {
      const Range columns = columns_of(panel + p);
      for (int r = 0; r < count; ++r) {
        const float* from = call.added + (row + r) * stage.n + columns.first;
        for (int v = 0; v < NV && v * W < columns.size(); ++v)
          values[(r * P + p) * NV + v] += load_some(from + v * W, int(std::min<int64_t>(W, columns.size() - v * W)));
      }
    }
  }

  void put(int64_t row, int64_t column, const Vec* values, int64_t n) const {
    float* to = call.y + row * call.ldy + column;
    const float* residual = call.residual ? call.residual + row * call.ldy + column : nullptr;
    if (column + NR <= n) {
      for (int v = 0; v < NV; ++v) store(to + v * W, residual ? load(residual + v * W) + values[v] : values[v]);
      return;
    }
    for (int v = 0; v < NV && column + v * W < n; ++v) {
      const int count = int(std::min<int64_t>(W, n - column - v * W));
      store_some(to + v * W, residual ? load_some(residual + v * W, count) + values[v] : values[v], count);
    }
  }
};

// Where there are few rows, reading weights is the limit. They are asked for this many bytes ahead, and into the second
// cache: the first has too few places for what is on its way. At the end of a pair of panels that is the next pair.
constexpr int64_t AHEAD = 4096;
constexpr int FEW_ROWS = 14;

inline void fetch(const void* from) { __builtin_prefetch(from, 0, 2); }

// How far ahead at `offset` in panels of `stride` bytes, of which `count` are read side by side.
inline int64_t ahead_at(int64_t offset, int64_t stride, int count) {
  return offset < stride - AHEAD ? AHEAD : AHEAD + (count - 1) * stride;
}

using Tile = void (*)(const Finish&, const Rows&, int64_t row, int64_t panel);

// Bytes of a thread's own memory: a row, and the bytes of as many as a block has.
inline int64_t scratch_bytes(const Rows& rows) { return rows.steps * 4 * (4 + rows.most) + 128; }

// The bytes of some rows.
void quantise_rows(const Stage& stage, const Call& call, const Rows& rows, int zero, Range own, char* scratch) {
  const int64_t size = rows.steps * 4;
  float* floats = reinterpret_cast<float*>(scratch);
  uint8_t* bytes = reinterpret_cast<uint8_t*>(floats + (stage.k + W - 1) / W * W);
  for (int64_t i = 0; i < rows.num_blocks(); ++i) {
    const Range block = rows.block(i), some{std::max(own.first, block.first), std::min(own.last, block.last)};
    for (int64_t row = some.first; row < some.last; ++row) {
      uint8_t* to = bytes + (row - some.first) * size;
      rows.scales[row] = quantise(prepared(stage, call, row, floats), stage.k, zero, to);
      std::fill(to + stage.k, to + size, uint8_t(zero));
      for (int64_t g = 0; rows.totals && g < rows.num_groups(); ++g)
        rows.totals[row * rows.num_groups() + g] = total_of(to + g * rows.group, rows.group);
    }
    if (some.size() <= 0) continue;
    int32_t* to = reinterpret_cast<int32_t*>(rows.bytes + block.first * size) + (some.first - block.first);
    for (int64_t step = 0; step < rows.steps; ++step, to += block.size())
      for (int64_t row = 0; row < some.size(); ++row)
        to[row] = reinterpret_cast<const int32_t*>(bytes + row * size)[step];
  }
}

// The whole stage: rows become bytes, then threads take pairs of panels. `group` is what inputs are padded to; `single`
// and `pairs` are the tiles over one panel and two, by their number of rows.
template <size_t MOST>
void run_stage(const Stage& stage, const Call& call, int zero, int64_t group, bool has_totals,
               const std::array<Tile, MOST>& single, const std::array<Tile, MOST>& pairs) {
  static thread_local Workspace workspace;
  const auto rounded = [](int64_t size) { return (size + 63) / 64 * 64; };
  const int64_t steps = (stage.k + group - 1) / group * group / 4, groups = has_totals ? steps * 4 / group : 0;
  const int64_t bytes = rounded(call.m * steps * 4), scales = rounded(4 * call.m), totals = rounded(4 * call.m * groups);
  const int64_t own = rounded(scratch_bytes({nullptr, nullptr, nullptr, call.m, steps, MOST, group}));
  char* memory = workspace.get(bytes + scales + totals + own * call.num_threads);
  const Rows rows{reinterpret_cast<uint8_t*>(memory),
                  reinterpret_cast<float*>(memory + bytes),
                  has_totals ? reinterpret_cast<int32_t*>(memory + bytes + scales) : nullptr,
                  call.m, steps, MOST, group};
  char* scratch = memory + bytes + scales + totals;
  const int64_t panels = num_panels(stage), num_pairs = (panels + 1) / 2;
  // Threads may be disturbed, so that shares are dealt out as they go; where there are many rows each takes long.
  const int64_t units = std::min<int64_t>(num_pairs, (call.m > FEW_ROWS ? 64 : 8) * call.num_threads);
  const Finish finish{stage, call};
#pragma omp parallel num_threads(call.num_threads) if (call.num_threads > 1)
  {
    const Range some_rows = part({0, call.m}, thread_index(), team_size());
    quantise_rows(stage, call, rows, zero, some_rows, scratch + own * thread_index());
#pragma omp barrier
#pragma omp for schedule(dynamic, 1) nowait
    for (int64_t unit = 0; unit < units; ++unit) {
      const Range some = part({0, num_pairs}, unit, units);
      for (int64_t panel = 2 * some.first; panel < std::min(panels, 2 * some.last); panel += 2) {
        const auto& tiles = panels - panel >= 2 ? pairs : single;
        for (int64_t i = 0; i < rows.num_blocks(); ++i)
          tiles[rows.block(i).size() - 1](finish, rows, rows.block(i).first, panel);
      }
    }
  }
}

}  // namespace
