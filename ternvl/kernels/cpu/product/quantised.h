// The parts that the products of int8.cpp and int4.cpp share: rows quantised to bytes, tiles shared among threads, and
// what is done to the sums of a tile.
#pragma once

#include <algorithm>
#include <array>
#include <utility>

#include "activation.h"
#include "stage/prepare.h"
#include "work.h"

namespace {

// The rows of x as whole numbers: blocks of R <= `most` rows, each [ceil(K / 4)][R][four inputs].
struct Rows {
  uint8_t* bytes;
  float* scales;    // [M]
  int32_t* totals;  // [M][groups] -8 times the sums of bytes, or null
  int64_t m, steps, most, group;
  int64_t unit;  // bytes of four inputs of a row

  int64_t num_blocks() const { return (m + most - 1) / most; }
  Range block(int64_t index) const { return part({0, m}, index, num_blocks()); }
  int64_t num_groups() const { return steps * 4 / group; }
  int64_t size() const { return steps * unit; }
  const uint8_t* at(int64_t row) const { return bytes + row * size(); }
};

// What adapters add to a few panels of all rows of a call: few enough to stay in the cache.
struct AddedPanels {
  const Stage& stage;
  const Call& call;
  Range panels;
  float* sums;  // [M][panels][NR]; for SWIGLU the panels of gates precede those of ups

  static int64_t floats(const Call& call, int64_t panels) { return call.m * panels * NR; }

  // For SWIGLU panels of gates and ups alternate; `panels` holds whole pairs of them.
  int parts() const { return stage.after == SWIGLU ? 2 : 1; }
  int64_t width() const { return panels.size() / parts() * NR; }
  Range columns(int part) const {
    const int64_t n = stage.n / parts(), first = panels.first / parts() * NR;
    return {part * n + first, part * n + std::min(n, first + width())};
  }
  float* row(int64_t index, int part) const { return sums + (index * parts() + part) * width(); }

  void make() const {
    for (int64_t r = 0; r < call.m; ++r)
      for (int p = 0; p < parts(); ++p) call.adding->get(r, columns(p), row(r, p));
  }

  const float* at(int64_t index, int64_t panel) const {
    const int64_t offset = panel - panels.first;
    return row(index, int(offset % parts())) + offset / parts() * NR;
  }
};

// Completes the sums of a tile: adds, applies the activation and stores the result in y.
struct Finish {
  const Stage& stage;
  const Call& call;
  const AddedPanels* added;  // or null

  // Prefetches the residuals of `count` rows from `row` on, before their sums are computed.
  void expect(int64_t row, int count, int64_t panel, int panels) const {
    if (!call.residual) return;
    for (int r = 0; r < count; ++r)
      for (int p = 0; p < panels; ++p) __builtin_prefetch(call.residual + (row + r) * call.ldy + (panel + p) * NR);
  }

  // `values` are P panels of `count` rows, from `panel` on. It is not inlined, because there are dozens of tiles and
  // this is a small part of their work. It handles all rows together, so that their exponentials overlap.
  template <int P>
  __attribute__((noinline)) void write(int64_t row, int count, int64_t panel, Vec* values) const {
    constexpr int ROW = P * NV;
    for (int r = 0; added && r < count; ++r)
      for (int p = 0; p < P; ++p)
        for (int v = 0; v < NV; ++v) values[r * ROW + p * NV + v] += load(added->at(row + r, panel + p) + v * W);
    if (!call.is_plain && stage.after == GELU)
      for (int i = 0; i < count * ROW; ++i) values[i] = gelu(values[i]);
    if (P == 2 && !call.is_plain && stage.after == SWIGLU) {
      for (int i = 0; i < count * ROW; i += ROW)
        for (int v = 0; v < NV; ++v) values[i + v] = silu(values[i + v]) * values[i + NV + v];
      for (int r = 0; r < count; ++r) put(row + r, panel / 2 * NR, values + r * ROW, stage.n / 2);
      return;
    }
    const int64_t half = stage.n / 2;
    for (int r = 0; r < count; ++r)
      for (int p = 0; p < P; ++p) {
        const int64_t index = panel + p;
        const Vec* from = values + r * ROW + p * NV;
        if (stage.after != SWIGLU)
          put(row + r, index * NR, from, stage.n);
        else  // gates and ups alternate
          put(row + r, index % 2 * half + index / 2 * NR, from, index % 2 ? stage.n : half);
      }
  }

  // Stores one panel of one row from `column` on; the row has n outputs there.
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

// The bytes of scratch memory of a thread: one row of floats, and the bytes of the rows of a block.
inline int64_t scratch_bytes(const Rows& rows) { return rows.steps * 4 * (4 + rows.most) + 128; }

// Quantises the rows of `own`. `Product::store` writes four inputs of a row.
template <typename Product>
void quantise_rows(const Stage& stage, const Call& call, const Rows& rows, Range own, char* scratch) {
  const int64_t size = rows.steps * 4;
  float* floats = reinterpret_cast<float*>(scratch);
  uint8_t* bytes = reinterpret_cast<uint8_t*>(floats + (stage.k + W - 1) / W * W);
  for (int64_t i = 0; i < rows.num_blocks(); ++i) {
    const Range block = rows.block(i), some{std::max(own.first, block.first), std::min(own.last, block.last)};
    for (int64_t row = some.first; row < some.last; ++row) {
      uint8_t* to = bytes + (row - some.first) * size;
      rows.scales[row] = quantise(prepared(stage, call, row, floats), stage.k, Product::ZERO, to);
      std::fill(to + stage.k, to + size, uint8_t(Product::ZERO));
      for (int64_t g = 0; rows.totals && g < rows.num_groups(); ++g)
        rows.totals[row * rows.num_groups() + g] = -8 * total_of(to + g * rows.group, rows.group);
    }
    if (some.size() <= 0) continue;
    uint8_t* to = rows.bytes + block.first * rows.size() + (some.first - block.first) * Product::UNIT;
    for (int64_t step = 0; step < rows.steps; ++step, to += block.size() * Product::UNIT)
      for (int64_t row = 0; row < some.size(); ++row)
        Product::store(bytes + row * size + 4 * step, to + row * Product::UNIT);
  }
}

// The whole stage: rows are quantised, then threads take pairs of panels. `Product` says how: ZERO is added to the
// bytes of inputs, which are padded to a multiple of GROUP; `TOTALS` is whether sums of groups are needed; a block has
// MOST rows at most; UNIT bytes hold four inputs; `compute` completes one or two panels of all rows, for which it has
// `scratch` bytes of memory.
template <typename Product>
void run_stage(const Stage& stage, const Call& call) {
  static thread_local Workspace workspace;
  constexpr int64_t GROUP = Product::GROUP;
  const int64_t steps = (stage.k + GROUP - 1) / GROUP * GROUP / 4;
  Rows rows{nullptr, nullptr, nullptr, call.m, steps, Product::MOST, GROUP, Product::UNIT};
  const int64_t bytes = rounded(call.m * rows.size()), scales = rounded(4 * call.m);
  const int64_t totals = Product::TOTALS ? rounded(4 * call.m * rows.num_groups()) : 0;
  const int64_t panels = num_panels(stage), num_pairs = (panels + 1) / 2;
  // Shares are handed out while threads run, because other programs may slow one of them down. They are smaller where
  // many rows make each share take long.
  const int64_t units = std::min<int64_t>(num_pairs, (call.m > FEW_ROWS ? 64 : 8) * call.num_threads);
  const auto panels_of_unit = [&](int64_t unit) -> Range {
    const Range pairs = part({0, num_pairs}, unit, units);
    return {2 * pairs.first, std::min(panels, 2 * pairs.last)};
  };
  const int64_t added = call.adding ? rounded(4 * AddedPanels::floats(call, 2 * (num_pairs / units + 1))) : 0;
  const int64_t own = rounded(std::max(scratch_bytes(rows), added + Product::scratch(rows)));
  char* memory = workspace.get(bytes + scales + totals + own * call.num_threads);
  rows.bytes = reinterpret_cast<uint8_t*>(memory);
  rows.scales = reinterpret_cast<float*>(memory + bytes);
  if (Product::TOTALS) rows.totals = reinterpret_cast<int32_t*>(memory + bytes + scales);
  char* scratch = memory + bytes + scales + totals;
#pragma omp parallel num_threads(call.num_threads) if (call.num_threads > 1)
  {
    char* own_scratch = scratch + own * thread_index();
    const Range some_rows = part({0, call.m}, thread_index(), team_size());
    quantise_rows<Product>(stage, call, rows, some_rows, own_scratch);
#pragma omp barrier
#pragma omp for schedule(dynamic, 1) nowait
    for (int64_t unit = 0; unit < units; ++unit) {
      const Range some = panels_of_unit(unit);
      const AddedPanels sums{stage, call, some, reinterpret_cast<float*>(own_scratch)};
      if (call.adding) sums.make();
      const Finish finish{stage, call, call.adding ? &sums : nullptr};
      for (int64_t panel = some.first; panel < some.last; panel += 2)
        Product::compute(finish, rows, panel, int(std::min<int64_t>(2, panels - panel)), own_scratch + added);
    }
  }
}

// A tile computes and completes R rows by P panels from `row` and `panel` on.
using Tile = void (*)(const Finish&, const Rows&, int64_t row, int64_t panel);

// Calls the tiles over one or two panels, by their number of rows, for all rows.
template <size_t MOST>
void for_tiles(const std::array<Tile, MOST>& tiles, const Finish& finish, const Rows& rows, int64_t panel) {
  for (int64_t i = 0; i < rows.num_blocks(); ++i) {
    const Range block = rows.block(i);
    tiles[block.size() - 1](finish, rows, block.first, panel);
  }
}

}  // namespace
