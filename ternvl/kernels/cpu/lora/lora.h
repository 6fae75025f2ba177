// What adapters add to the outputs of a stage, before its activation: B (scales * A x) for each row x, after the norm,
// that has an adapter. `ternvl/kernels/lora.py` mirrors the structs `Entry` to `Adapters`.
#pragma once

#include <cstdint>

#include "work.h"

// The weights of one adapter for one module. `a` is null if the adapter adds nothing to it.
struct Entry {
  const void* a;
  const void* b;
  const float* scales;  // [rank], padded to whole panels
  int64_t size;         // bytes of an element: 1 (whole numbers, with B in the panels of digits.h), 2 or 4
  int64_t rank;
  int64_t rows;         // rows of B
  int64_t first;        // the output of the module that row 0 of B adds to
};

// One module that adapters may change.
struct Job {
  const Entry* table;   // [slots]
  int64_t slots;
  int64_t column;       // where the module's outputs begin among those of the stage
  const float* scales;  // the factor of what is added to each of its outputs, or null
};

// The modules of a stage.
struct Added {
  const Job* jobs;
  int64_t num_jobs;
};

// Rows start * unit to stop * unit use the adapter in a slot. Segments do not overlap.
struct Segment {
  int64_t slot, start, stop;
};

struct Adapters {
  const Segment* segments;
  int64_t num_segments, unit;
};

struct Digits;  // digits.h

// What adapters add in one call. The threads of the call share it: `get` is called only after `shrink` has been called
// for all rows.
class Adding {
 public:
  // Prepares a call with m rows of k inputs. Returns whether anything is added at all.
  bool plan(const Added& added, const Adapters& adapters, int64_t m, int64_t k);
  // Computes and keeps scales * A x of a row x [K].
  void shrink(int64_t row, const float* x) const;
  // Stores in `out` what is added to these columns of a row. It is -0 where nothing is added, which changes no bit.
  void get(int64_t row, Range columns, float* out) const;
  // Whether anything is added to the row.
  bool has(int64_t row) const {
    for (int64_t j = 0; j < added_.num_jobs; ++j)
      if (entries_[place(row, j)].a) return true;
    return false;
  }

 private:
  int64_t place(int64_t row, int64_t job) const { return row * added_.num_jobs + job; }

  Added added_{};
  int64_t k_ = 0;
  int64_t width_ = 0;         // the largest rank, padded to whole panels
  Entry* entries_ = nullptr;  // [rows, jobs]: copies next to each other, because the tables are spread over memory
  float* hidden_ = nullptr;   // [rows, jobs, width]: scales * A x, or its digits
  Digits* digits_ = nullptr;  // [rows, jobs], for whole numbers
  Workspace memory_;
};
