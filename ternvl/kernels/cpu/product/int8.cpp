// Stages whose weights are bytes with one scale for each output, and whose rows of inputs are quantised to bytes.
//
// Weights are in panels of 16 outputs, [ceil(N / 16)][ceil(K / 4)][16][4], so that a vector holds four inputs of each
// output. Inputs are stored unsigned, 128 above their value; that adds `offsets` to each sum, which is subtracted at
// the end. Sums of products are exact, so neither tiles nor threads nor other rows change a bit of a row:
//
//     y = fma(float(sum) * scale of the output, scale of the row, bias)
#include "kernels.h"
#include "product/quantised.h"

namespace {

#if defined(__AVX512F__)
constexpr int MR = 14;
#elif defined(__AVX2__)
constexpr int MR = 3;
#else
constexpr int MR = 2;
#endif
constexpr int CHAINS = 8;  // independent chains of sums, which hide the latency of a product

// R rows by P panels. Where that makes few chains, each is split into U sums.
template <int R, int P, int U>
void tile(const Finish& finish, const Rows& rows, int64_t row, int64_t panel) {
  const Stage& stage = finish.stage;
  const int64_t stride = rows.steps * NR * 4;
  const int8_t* b = static_cast<const int8_t*>(stage.panels) + panel * stride;
  const uint8_t* a = rows.bytes + row * rows.steps * 4;
  IVec sums[R][P * NV][U] = {};
  int64_t ahead = 0;
  finish.expect(row, R, panel, P);
  const auto add = [&](int u) __attribute__((always_inline)) {
    IVec weights[P * NV];
#pragma GCC unroll 8
    for (int v = 0; v < P * NV; ++v) {
      const int8_t* from = b + (v / NV) * stride + (v % NV) * W * 4;
      if (R <= FEW_ROWS) fetch(from + ahead);
      weights[v] = load_bytes(from);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Unsigned input(broadcast_bytes(a + 4 * r));
#pragma GCC unroll 8
      for (int v = 0; v < P * NV; ++v) sums[r][v][u] = dot(sums[r][v][u], input, Signed(weights[v]));
    }
    a += 4 * R;
    b += NR * 4;
  };
  int64_t step = 0;
  for (; step + U <= rows.steps; step += U) {
    if (R <= FEW_ROWS) ahead = ahead_at(step * NR * 4, stride, P);
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) add(u);
  }
  for (; step < rows.steps; ++step) add(0);
  Vec values[R][P * NV];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const Vec row_scale = broadcast(rows.scales[row + r]);
#pragma GCC unroll 8
    for (int v = 0; v < P * NV; ++v) {
      const int64_t column = panel * NR + v * W;
      IVec sum = -load_bytes(stage.offsets + column);
      for (int u = 0; u < U; ++u) sum += sums[r][v][u];
      const Vec bias = stage.bias ? load(stage.bias + column) : Vec{};
      values[r][v] = fma(to_float(sum) * load(stage.scales + column), row_scale, bias);
    }
  }
  finish.write<P>(row, R, panel, values[0]);
}

template <int P, int... I>
constexpr std::array<Tile, MR> tiles_of(std::integer_sequence<int, I...>) {
  return {tile<I + 1, P, ((I + 1) * P * NV >= CHAINS ? 1 : CHAINS / ((I + 1) * P * NV))>...};
}

constexpr auto SINGLE = tiles_of<1>(std::make_integer_sequence<int, MR>());
constexpr auto PAIRS = tiles_of<2>(std::make_integer_sequence<int, MR>());

}  // namespace

void int8_stage(const Stage& stage, const Call& call) { run_stage(stage, call, 128, 4, false, SINGLE, PAIRS); }

// Whole numbers [n, k] -> panels, padded with zeros, and offsets.
EXPORT void ternvl_pack_int8(const int8_t* weight, int64_t n, int64_t k, int8_t* panels, int32_t* offsets,
                             int num_threads) {
  const int64_t steps = (k + 3) / 4;
#pragma omp parallel for num_threads(num_threads) schedule(static)
  for (int64_t p = 0; p < panels_of(n); ++p) {
    int8_t* to = panels + p * steps * NR * 4;
    std::fill_n(to, steps * NR * 4, int8_t(0));
    for (int64_t c = 0; c < NR; ++c) {
      int32_t total = 0;
      for (int64_t i = 0; i < k && p * NR + c < n; ++i) {
        const int8_t value = weight[(p * NR + c) * k + i];
        to[(i / 4 * NR + c) * 4 + i % 4] = value;
        total += value;
      }
      offsets[p * NR + c] = 128 * total;
    }
  }
}
