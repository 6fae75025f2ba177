// Stages whose weights are scale * number + offset, with whole numbers from 0 to 15 and, for each group of 32 inputs of
// an output, a scale and an offset in float32. These hold the weights of checkpoints of 4 bits without rounding them.
//
// A group of a panel of 16 outputs is 16 scales, 16 offsets and the four runs of four_bits.h. Rows of inputs are
// quantised to signed bytes. Sums within a group are exact; groups are added in order:
//
//     total = fma(float(sum of inputs), offset, fma(float(sum of products), scale, total))
//     y = fma(total, scale of the row, bias)
#include "kernels.h"
#include "product/four_bits.h"

namespace {

constexpr int FLOATS = 4 * NR, BYTES = 2 * FLOATS + RUNS * RUN;

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
    add_products<R, P>(sums, b + 2 * FLOATS, groups * BYTES, a);
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
  complete<R, P>(finish, rows, row, panel, values);
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
