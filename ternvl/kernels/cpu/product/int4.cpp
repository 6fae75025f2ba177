// Stages whose weights are whole numbers from -8 to 7 with one scale for each group of 32 inputs of an output.
//
// A group of a panel of 16 outputs is 16 scales in bfloat16 and the four runs of four_bits.h. Numbers are 8 above their
// values; 8 times the sum of the row's inputs is subtracted for that. Rows of inputs are quantised to signed bytes. Sums within a group
// are exact; groups are added in order:
//
//     total = 0;  total = fma(float(sum of group g), scale of group g, total);  y = fma(total, scale of the row, bias)
#include "kernels.h"
#include "product/four_bits.h"
#include "product/wide.h"

namespace {

constexpr int SCALES = 2 * NR, BYTES = SCALES + RUNS * RUN;

// R rows by P panels.
template <int R, int P>
void tile(const Finish& finish, const Rows& rows, int64_t row, int64_t panel) {
  const Stage& stage = finish.stage;
  const int64_t groups = rows.num_groups();
  const uint8_t* b = static_cast<const uint8_t*>(stage.panels) + panel * groups * BYTES;
  const uint8_t* a = rows.bytes + row * rows.steps * 4;
  const int32_t* total = rows.totals + row * groups;
  Vec values[R][P * NV] = {};
  finish.expect(row, R, panel, P);
  for (int64_t g = 0; g < groups; ++g, b += BYTES) {
    const int64_t ahead = ahead_at(g * BYTES, groups * BYTES, P);
    for (int p = 0; p < P && R <= FEW_ROWS; ++p)
      for (int line = 0; line < BYTES; line += 64) fetch(b + p * groups * BYTES + line + ahead);
    IVec sums[R][P * NV];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < P * NV; ++v) sums[r][v] = broadcast(total[r * groups + g]);
    add_products<R, P>(sums, b + SCALES, groups * BYTES, a);
#pragma GCC unroll 8
    for (int v = 0; v < P * NV; ++v) {
      const uint8_t* scales = b + (v / NV) * groups * BYTES + (v % NV) * W * 2;
      const Vec scale = load(reinterpret_cast<const uint16_t*>(scales));
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) values[r][v] = fma(to_float(sums[r][v]), scale, values[r][v]);
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

// All rows by tiles that complete their sums at once.
struct Narrow {
  static constexpr int ZERO = 0, GROUP = ::GROUP, UNIT = 4, MOST = MR;
  static constexpr bool TOTALS = true;
  static int64_t scratch(const Rows&) { return 0; }
  static void store(const uint8_t* four, uint8_t* to) { std::memcpy(to, four, 4); }
  static void compute(const Finish& finish, const Rows& rows, int64_t panel, int count, char*) {
    for_tiles(count == 2 ? PAIRS : SINGLE, finish, rows, panel);
  }
};

#if !defined(TERNVL_VNNI)
constexpr int64_t MANY_ROWS = 8;  // from which preparing weights pays

// Weights as unsigned bytes. The sums of a group's products fit 16 bits: 16 products of at most 15 * 127 in each lane.
struct Unpacked {
  using Sum = float;
  static constexpr int ZERO = 0, GROUP = ::GROUP, UNIT = 4;
  static constexpr bool TOTALS = true;
  static constexpr int64_t WEIGHTS = DEPTH * NR;
  static_assert(GROUP / 2 * 15 * 127 < 32768 && DEPTH % GROUP == 0);

  static void store(const uint8_t* four, uint8_t* to) { std::memcpy(to, four, 4); }

  static const uint8_t* group(const Stage& stage, const Rows& rows, int64_t panel, int64_t index) {
    return static_cast<const uint8_t*>(stage.panels) + (panel * rows.num_groups() + index) * BYTES;
  }

  static void prepare(const Stage& stage, const Rows& rows, int64_t panel, Range inputs, char* to) {
    IVec* bytes = reinterpret_cast<IVec*>(to);
    for (int64_t g = inputs.first / GROUP; g < inputs.last / GROUP; ++g)
      for (int j = 0; j < RUNS; ++j, bytes += 2 * NV)
        for (int v = 0; v < NV; ++v) {
          const IVec both = load_bytes(group(stage, rows, panel, g) + SCALES + j * RUN + v * W * 4);
          bytes[v] = both & 0x0f0f0f0f, bytes[NV + v] = (both >> 4) & 0x0f0f0f0f;
        }
  }

  template <int R>
  static void add(const Stage& stage, const Rows& rows, int64_t row, int64_t panel, Range inputs, const char* weights,
                  float* sums) {
    const uint8_t* x = rows.at(row) + inputs.first / 4 * R * UNIT;
    const IVec* bytes = reinterpret_cast<const IVec*>(weights);
    const int64_t groups = rows.num_groups();
    for (int64_t g = inputs.first / GROUP; g < inputs.last / GROUP; ++g) {
      Pairs pairs[R][NV] = {};
      for (int step = 0; step < GROUP / 4; ++step, x += R * UNIT, bytes += NV) {
        IVec own[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) own[v] = bytes[v], keep(own[v]);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const IVec input = broadcast_bytes(x + r * UNIT);
#pragma GCC unroll 4
          for (int v = 0; v < NV; ++v) pairs[r][v] = ::add(pairs[r][v], products(own[v], input)), keep(pairs[r][v]);
        }
      }
      Vec scales[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v)
        scales[v] = load(reinterpret_cast<const uint16_t*>(group(stage, rows, panel, g)) + v * W);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const IVec total = broadcast(rows.totals[(row + r) * groups + g]);
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
          float* to = sums + r * NR + v * W;
          ::store(to, fma(to_float(multiply_add(pairs[r][v], ones()) + total), scales[v], load(to)));
        }
      }
    }
  }

  static Vec value(const Stage&, const float* sums, int64_t) { return load(sums); }
};
#endif

}  // namespace

void int4_stage(const Stage& stage, const Call& call) {
#if !defined(TERNVL_VNNI)
  if (call.m >= MANY_ROWS) return run_stage<WideProduct<Unpacked>>(stage, call);
#endif
  run_stage<Narrow>(stage, call);
}

// Whole numbers [n, k] from -8 to 7 and scales [n, ceil(k / 32)] as the bits of bfloat16 -> panels.
EXPORT void ternvl_pack_int4(const int8_t* weight, const uint16_t* scales, int64_t n, int64_t k, uint8_t* panels,
                             int num_threads) {
  const int64_t groups = (k + GROUP - 1) / GROUP;
#pragma omp parallel for num_threads(num_threads) schedule(static)
  for (int64_t p = 0; p < panels_of(n); ++p)
    for (int64_t g = 0; g < groups; ++g) {
      uint8_t* to = panels + (p * groups + g) * BYTES;
      for (int64_t c = 0; c < NR; ++c) {
        const int64_t output = p * NR + c;
        const uint16_t scale = output < n ? scales[output * groups + g] : 0;
        to[2 * c] = uint8_t(scale), to[2 * c + 1] = uint8_t(scale >> 8);
        for (int64_t i = 0; i < GROUP / 2; ++i) {  // byte i of the output's 16: input low, and high = low + 4
          const int64_t low = g * GROUP + i / 4 * 8 + i % 4;
          const auto at = [&](int64_t input) { return output < n && input < k ? weight[output * k + input] + 8 : 8; };
          to[SCALES + i / 4 * RUN + c * 4 + i % 4] = uint8_t(at(low) | at(low + 4) << 4);
        }
      }
    }
}
