// y = x W^T + b over packed weights.
//
// Panels are 16 columns of W^T: [ceil(N / 16)][K][16], the last padded with zeros, as float32 or as the bits of
// bfloat16. An element is the chain fma(x[k], w[k], sum) over k = 0 .. K-1 from 0, then + bias, for every M, tile and
// thread: a block of inputs continues from the partial sum of the previous block, which float32 memory keeps exactly.
// So a row's result does not depend on the other rows.
//
// Names: M rows, N columns, K inputs; a tile is R rows by P panels; KC, MC as in Goto's matrix product.
#include <algorithm>
#include <array>
#include <utility>

#include "kernels.h"
#include "product/panels.h"
#include "work.h"

namespace {

constexpr int KC = 320;  // inputs of a block, so that a panel's slab of it and a tile's rows fit into the L1 cache

#if defined(__AVX512F__)
constexpr int MR = 14, ACCUMULATORS = 28, MC = 168;
#elif defined(__AVX2__)
constexpr int MR = 6, ACCUMULATORS = 12, MC = 144;
#elif defined(__aarch64__)
constexpr int MR = 6, ACCUMULATORS = 24, MC = 144;
#else
constexpr int MR = 2, ACCUMULATORS = 8, MC = 96;
#endif

// Panels of a tile of R rows: as many as the registers hold, but 8 chains of sums are enough to hide the latency.
constexpr int width_of(int rows) {
  return std::max(1, std::min(ACCUMULATORS / (rows * NV), std::max(8 / NV, ACCUMULATORS / (MR * NV))));
}

constexpr int GROUP = width_of(MR);
constexpr int FEW = 2;  // with at most so many blocks of rows, widening weights again costs less than storing them wide

// Accumulates `depth` inputs into a tile of c: a is packed [depth][R], panels lie `stride` elements apart.
template <int R, int P, typename B>
void tile(const float* a, const B* b, ptrdiff_t stride, int depth, float* c, ptrdiff_t ldc, bool first,
          const float* bias) {
  Vec sums[R][P * NV];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < P * NV; ++v) sums[r][v] = first ? Vec{} : load(c + r * ldc + v * W);
  for (int k = 0; k < depth; ++k) {
    Vec columns[P * NV];
#pragma GCC unroll 16
    for (int v = 0; v < P * NV; ++v) columns[v] = load(b + (v / NV) * stride + (v % NV) * W);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      Vec value = broadcast(a[r]);
#pragma GCC unroll 16
      for (int v = 0; v < P * NV; ++v) sums[r][v] = fma(value, columns[v], sums[r][v]);
    }
    a += R;
    b += NR;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < P * NV; ++v) {
      Vec out = bias ? sums[r][v] + load(bias + v * W) : sums[r][v];
      store(c + r * ldc + v * W, out);
    }
}

template <typename B>
using Tile = void (*)(const float*, const B*, ptrdiff_t, int, float*, ptrdiff_t, bool, const float*);

// Tiles of 1 .. MR rows, by row count: over one panel, over `GROUP`, and over as many as fit.
template <typename B>
struct Tiles {
  template <int... I>
  static constexpr std::array<Tile<B>, MR> single(std::integer_sequence<int, I...>) {
    return {tile<I + 1, 1, B>...};
  }
  template <int... I>
  static constexpr std::array<Tile<B>, MR> grouped(std::integer_sequence<int, I...>) {
    return {tile<I + 1, GROUP, B>...};
  }
  template <int... I>
  static constexpr std::array<Tile<B>, MR> widest(std::integer_sequence<int, I...>) {
    return {tile<I + 1, width_of(I + 1), B>...};
  }
};

template <typename B>
constexpr auto SINGLE = Tiles<B>::single(std::make_integer_sequence<int, MR>());
template <typename B>
constexpr auto GROUPED = Tiles<B>::grouped(std::make_integer_sequence<int, MR>());
template <typename B>
constexpr auto WIDEST = Tiles<B>::widest(std::make_integer_sequence<int, MR>());

template <typename B>
struct Product {
  const float* x;
  int64_t ldx, k, n;
  const B* panels;
  const float* bias;  // null for none
  float* y;
  int64_t ldy;

  const B* panel(int64_t index) const { return panels + index * k * NR; }

  // One tile of y. Where y ends within a panel, the tile is computed in scratch memory.
  template <typename T>
  void run(Tile<T> tile, int rows, int width, const float* a, const T* b, ptrdiff_t stride, Range depth, int64_t row,
           int64_t column) const {
    const bool first = depth.first == 0, last = depth.last == k;
    float* c = y + row * ldy + column;
    const float* shift = bias && last ? bias + column : nullptr;
    const int64_t columns = std::min<int64_t>(n - column, width);
    if (columns == width) return tile(a, b, stride, int(depth.size()), c, ldy, first, shift);
    float edge[MR * NR * 8], edge_bias[NR * 8];
    for (int r = 0; r < rows && !first; ++r) std::copy_n(c + r * ldy, columns, edge + r * width);
    if (shift) std::copy_n(shift, columns, edge_bias);
    tile(a, b, stride, int(depth.size()), edge, width, first, shift ? edge_bias : nullptr);
    for (int r = 0; r < rows; ++r) std::copy_n(edge + r * width, columns, c + r * ldy);
  }

  // Copies rows of x into the order in which a tile reads them: [depth][rows].
  void pack(Range rows, Range depth, float* out) const {
    const int64_t count = rows.size();
    for (int64_t r = 0; r < count; ++r) {
      const float* from = x + (rows.first + r) * ldx;
      for (int64_t i = depth.first; i < depth.last; ++i) out[(i - depth.first) * count + r] = from[i];
    }
  }

  // A few blocks of rows: weights are widened in registers. The first block reads them from memory in one long run; the
  // other blocks find them in the cache.
  void few_rows(Range rows, int64_t blocks, Range columns, Range depth, const float* a) const {
    const int wide = blocks == 1 ? width_of(int(rows.size())) : GROUP;
    const auto& tiles = blocks == 1 ? WIDEST<B> : GROUPED<B>;
    for (int64_t p = columns.first; p < columns.last;) {
      const int taken = columns.last - p >= wide ? wide : 1;
      const B* b = panel(p) + depth.first * NR;
      for (int64_t i = 0; i < blocks; ++i) {
        const Range block = part(rows, i, blocks);
        const int count = int(block.size());
        const float* packed = a + (block.first - rows.first) * depth.size();
        run<B>((taken == wide ? tiles : SINGLE<B>)[count - 1], count, taken * NR, packed, b, k * NR, depth, block.first,
               p * NR);
      }
      p += taken;
    }
  }

  // More blocks of rows: weights are widened once for all of them, into a slab in the L1 cache.
  void many_rows(Range rows, int64_t blocks, Range columns, Range depth, const float* a) const {
    alignas(64) float slab[GROUP * KC * NR];
    const int64_t size = depth.size() * NR;
    for (int64_t p = columns.first; p < columns.last;) {
      const int taken = columns.last - p >= GROUP ? GROUP : 1;
      for (int g = 0; g < taken; ++g) {
        const B* from = panel(p + g) + depth.first * NR;
        for (int64_t i = 0; i < size; i += W) store(slab + g * size + i, load(from + i));
      }
      for (int64_t i = 0; i < blocks; ++i) {
        const Range block = part(rows, i, blocks);
        const int count = int(block.size());
        const float* packed = a + (block.first - rows.first) * depth.size();
        run<float>((taken == GROUP ? GROUPED<float> : SINGLE<float>)[count - 1], count, taken * NR, packed, slab, size,
                   depth, block.first, p * NR);
      }
      p += taken;
    }
  }

  void compute(Range rows, Range columns) const {
    alignas(64) float packed[MC * KC];
    const int64_t parts = (rows.size() + MC - 1) / MC;
    for (int64_t m = 0; m < parts; ++m) {
      const Range some = part(rows, m, parts);
      const int64_t blocks = (some.size() + MR - 1) / MR;
      const int64_t most = blocks <= FEW ? MC * KC / (blocks * MR) : KC;  // few rows: weights are read in long runs
      const int64_t depths = (k + most - 1) / most;
      for (int64_t d = 0; d < depths; ++d) {
        const Range depth = part({0, k}, d, depths);
        for (int64_t i = 0; i < blocks; ++i) {
          const Range block = part(some, i, blocks);
          pack(block, depth, packed + (block.first - some.first) * depth.size());
        }
        if (blocks <= FEW)
          few_rows(some, blocks, columns, depth, packed);
        else
          many_rows(some, blocks, columns, depth, packed);
      }
    }
  }

  // Threads share the panels, or the rows if there are few panels.
  void compute(int64_t m, int num_threads) const {
    const Range rows{0, m}, columns{0, (n + NR - 1) / NR};
    const bool by_rows = columns.size() < 4 * num_threads && m >= MR * num_threads;
#pragma omp parallel num_threads(num_threads) if (num_threads > 1)
    {
      const int index = thread_index(), count = team_size();
      const Range own_rows = by_rows ? part(rows, index, count) : rows;
      const Range own_columns = by_rows ? columns : part(columns, index, count);
      if (own_rows.size() && own_columns.size()) compute(own_rows, own_columns);
    }
  }
};

template <typename B>
void pack_panels(const B* weight, int64_t n, int64_t k, B* panels, int num_threads) {
  const int64_t count = (n + NR - 1) / NR;
#pragma omp parallel for num_threads(num_threads) schedule(static)
  for (int64_t p = 0; p < count; ++p) {
    B* to = panels + p * k * NR;
    const int64_t columns = std::min<int64_t>(NR, n - p * NR);
    std::fill_n(to, columns < NR ? k * NR : 0, B(0));
    for (int64_t from = 0; from < k; from += 64)  // in pieces, so that lines stay in the cache until they are filled
      for (int64_t c = 0; c < columns; ++c)
        for (int64_t i = from; i < std::min(k, from + 64); ++i) to[i * NR + c] = weight[(p * NR + c) * k + i];
  }
}

}  // namespace

// weight [n, k] -> panels [ceil(n / 16), k, 16]; `size` is that of an element, 2 or 4 bytes.
EXPORT void ternvl_pack_linear(const void* weight, int size, int64_t n, int64_t k, void* panels, int num_threads) {
  if (size == 2)
    pack_panels(static_cast<const uint16_t*>(weight), n, k, static_cast<uint16_t*>(panels), num_threads);
  else
    pack_panels(static_cast<const uint32_t*>(weight), n, k, static_cast<uint32_t*>(panels), num_threads);
}

// x [m, k] with rows `ldx` apart -> y [m, n]; `size` is that of the panels' elements: 2 bfloat16, 4 float32.
EXPORT void ternvl_linear(const float* x, int64_t m, int64_t k, int64_t ldx, const void* panels, int size, int64_t n,
                          const float* bias, float* y, int num_threads) {
  if (size == 2)
    Product<uint16_t>{x, ldx, k, n, static_cast<const uint16_t*>(panels), bias, y, n}.compute(m, num_threads);
  else
    Product<float>{x, ldx, k, n, static_cast<const float*>(panels), bias, y, n}.compute(m, num_threads);
}
