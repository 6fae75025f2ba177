// Stages whose weights are bytes with one scale for each output, and whose rows of inputs are quantised to bytes.
//
// Weights are in panels of 16 outputs, [ceil(N / 16)][ceil(K / 4)][16][4], so that a vector holds four inputs of each
// output. Inputs are stored unsigned, 128 above their value; that adds `offsets` to each sum, which is subtracted at
// the end. (They are stored signed where OFFSET in int8.h is 0.) Sums of products are exact, so neither tiles nor threads nor other rows change a bit of a row:
//
//     y = fma(float(sum) * scale of the output, scale of the row, bias)
#include "kernels.h"
#include "product/wide.h"

#if defined(__ARM_FEATURE_MATMUL_INT8)
#include "arm/pairs.h"
#endif

namespace {

#if defined(__AVX512F__)
constexpr int MR = 14;
#elif defined(__AVX2__)
constexpr int MR = 3;
#elif defined(__aarch64__)
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
      IVec sum = OFFSET ? -load_bytes(stage.offsets + column) : IVec{};
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

// All rows by tiles that complete their sums at once.
struct Narrow {
  static constexpr int ZERO = OFFSET, GROUP = 4, UNIT = 4, MOST = MR;
  static constexpr bool TOTALS = false;
  static int64_t scratch(const Rows&) { return 0; }
  static void store(const uint8_t* four, uint8_t* to) { std::memcpy(to, four, 4); }
  static void compute(const Finish& finish, const Rows& rows, int64_t panel, int count, char*) {
    for_tiles(count == 2 ? PAIRS : SINGLE, finish, rows, panel);
  }
};

#if !defined(TERNVL_VNNI) && !defined(__aarch64__)
constexpr int64_t MANY_ROWS = 24;  // from which preparing weights pays

// Weights and inputs as pairs of 16-bit numbers: of four neighbours the first and third, then the others.
struct Widened {
  using Sum = int32_t;
  static constexpr int ZERO = 0, GROUP = 4, UNIT = 8;
  static constexpr bool TOTALS = false;
  static constexpr int64_t WEIGHTS = DEPTH * NR * 2;

  static void store(const uint8_t* four, uint8_t* to) {
    const int16_t wide[4] = {int8_t(four[0]), int8_t(four[2]), int8_t(four[1]), int8_t(four[3])};
    std::memcpy(to, wide, sizeof wide);
  }

  static void prepare(const Stage& stage, const Rows& rows, int64_t panel, Range inputs, char* to) {
    const int8_t* from = static_cast<const int8_t*>(stage.panels) + (panel * rows.steps * 4 + inputs.first) * NR;
    Pairs* pairs = reinterpret_cast<Pairs*>(to);
    for (int64_t step = 0; step < inputs.size() / 4; ++step, from += 4 * NR, pairs += 2 * NV)
      for (int v = 0; v < NV; ++v) {
        const IVec bytes = load_bytes(from + v * W * 4);
        pairs[v] = low_bytes(bytes), pairs[NV + v] = high_bytes(bytes);
      }
  }

  template <int R>
  static void add(const Stage&, const Rows& rows, int64_t row, int64_t, Range inputs, const char* weights,
                  int32_t* sums) {
    const uint8_t* x = rows.at(row) + inputs.first / 4 * R * UNIT;
    const Pairs* pairs = reinterpret_cast<const Pairs*>(weights);
    IVec total[R][NV];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < NV; ++v) total[r][v] = load_bytes(sums + r * NR + v * W);
    for (int64_t step = 0; step < inputs.size() / 4; ++step, x += R * UNIT)
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half, pairs += NV) {
        Pairs own[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) own[v] = pairs[v], keep(own[v]);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const Pairs input = (Pairs)broadcast_bytes(x + r * UNIT + half * 4);
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) total[r][v] += multiply_add(input, own[v]), keep(total[r][v]);
        }
      }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < NV; ++v) store_whole(sums + r * NR + v * W, total[r][v]);
  }

  static Vec value(const Stage& stage, const int32_t* sums, int64_t column) {
    return to_float(load_bytes(sums)) * load(stage.scales + column);
  }
};
#endif

}  // namespace

void int8_stage(const Stage& stage, const Call& call) {
#if defined(__ARM_FEATURE_MATMUL_INT8)
  if (call.m >= MANY_ROWS) return run_stage<WideProduct<Paired>>(stage, call);
#elif !defined(TERNVL_VNNI) && !defined(__aarch64__)
  if (call.m >= MANY_ROWS) return run_stage<WideProduct<Widened>>(stage, call);
#endif
  run_stage<Narrow>(stage, call);
}

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
