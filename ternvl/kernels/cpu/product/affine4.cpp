// Stages whose weights are scale * number + offset, with whole numbers from 0 to 15 and, for each group of 32 inputs of
// an output, a scale and an offset in float32. These hold the weights of checkpoints of 4 bits without rounding them.
//
// A group of a panel of 16 outputs is 16 scales, 16 offsets and four runs of 64 bytes, in which numbers lie as in
// int4.cpp. Rows of inputs are quantised to signed bytes. Sums within a group are exact; groups are added in order:
//
//     total = fma(float(sum of inputs), offset, fma(float(sum of products), scale, total))
//     y = fma(total, scale of the row, bias)
#include "kernels.h"
#include "product/quantised.h"

namespace {

constexpr int GROUP = 32, RUN = 64, RUNS = 4, FLOATS = 4 * NR, BYTES = 2 * FLOATS + RUNS * RUN;

#if defined(__AVX512F__)
constexpr int MR = 6;
#elif defined(__AVX2__)
constexpr int MR = 2;
#else
constexpr int MR = 1;
#endif

// R rows by P panels.
template <int R, int P>
void tile(const Finish& finish, const Rows& rows, int64_t row, int64_t panel) {
  const Stage& stage = finish.stage;
  const int64_t groups = rows.num_groups();
  const uint8_t* b = static_cast<const uint8_t*>(stage.panels) + panel * groups * BYTES;
  const uint8_t* a = rows.bytes + row * rows.steps * 4;
  const int32_t* total = rows.totals + row * groups;  // -8 times the sums of inputs
  Vec values[R][P * NV] = {};
  finish.expect(row, R, panel, P);
  for (int64_t g = 0; g < groups; ++g, b += BYTES) {
    const int64_t ahead = ahead_at(g * BYTES, groups * BYTES, P);
    for (int p = 0; p < P && R <= FEW_ROWS; ++p)
      for (int line = 0; line < BYTES; line += 64) fetch(b + p * groups * BYTES + line + ahead);
    IVec sums[R][P * NV] = {};
    for (int j = 0; j < RUNS; ++j, a += 8 * R) {
      IVec low[P * NV], high[P * NV];
#pragma GCC unroll 8
      for (int v = 0; v < P * NV; ++v) {
        const IVec both = load_bytes(b + (v / NV) * groups * BYTES + 2 * FLOATS + j * RUN + (v % NV) * W * 4);
        low[v] = both & 0x0f0f0f0f, high[v] = (both >> 4) & 0x0f0f0f0f;
      }
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const Signed first(broadcast_bytes(a + 4 * r)), second(broadcast_bytes(a + 4 * (R + r)));
#pragma GCC unroll 8
        for (int v = 0; v < P * NV; ++v)
          sums[r][v] = dot(dot(sums[r][v], Unsigned(low[v]), first), Unsigned(high[v]), second);
      }
    }
#pragma GCC unroll 8
    for (int v = 0; v < P * NV; ++v) {
      const float* floats = reinterpret_cast<const float*>(b + (v / NV) * groups * BYTES) + (v % NV) * W;
      const Vec scale = load(floats), offset = load(floats + NR);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const Vec inputs = broadcast(-0.125f * float(total[r * groups + g]));
        values[r][v] = fma(inputs, offset, fma(to_float(sums[r][v]), scale, values[r][v]));
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const Vec row_scale = broadcast(rows.scales[row + r]);
    for (int v = 0; v < P * NV; ++v) {
      const Vec bias = stage.bias ? load(stage.bias + panel * NR + v * W) : Vec{};
      values[r][v] = fma(values[r][v], row_scale, bias);
    }
  }
  finish.write<P>(row, R, panel, values[0]);
}

template <int P, int... I>
constexpr std::array<Tile, MR> tiles_of(std::integer_sequence<int, I...>) {
  return {tile<I + 1, P>...};
}

constexpr auto SINGLE = tiles_of<1>(std::make_integer_sequence<int, MR>());
constexpr auto PAIRS = tiles_of<2>(std::make_integer_sequence<int, MR>());

struct Affine {
  static constexpr int ZERO = 0, GROUP = ::GROUP, UNIT = 4, MOST = MR;
  static constexpr bool TOTALS = true;
  static int64_t scratch(const Rows&) { return 0; }
  static void store(const uint8_t* four, uint8_t* to) { std::memcpy(to, four, 4); }
  static void compute(const Finish& finish, const Rows& rows, int64_t panel, int count, char*) {
    for_tiles(count == 2 ? PAIRS : SINGLE, finish, rows, panel);
  }
};

}  // namespace

void affine4_stage(const Stage& stage, const Call& call) { run_stage<Affine>(stage, call); }
