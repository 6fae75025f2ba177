// What adapters add to the outputs of a stage, before its activation: B (scales * A x) for the rows x that have one,
// after the norm. `ternvl/kernels/lora.py` has the same structs.
#pragma once

#include "stage/stage.h"

// What one adapter adds to one module. `a` is null where it adds nothing.
struct Entry {
  const void* a;
  const void* b;
  const float* scales;  // [rank], padded to whole panels
  int64_t size;         // of an element: 1 (whole numbers; B in panels of digits.h), 2 or 4 bytes
  int64_t rank;
  int64_t rows;         // of B
  int64_t first;        // output of the module that row 0 of B adds to
};

// One module: its entries by slot, the column of the stage's outputs where its own begin, and null or what each of its
// outputs is multiplied by.
struct Job {
  const Entry* table;
  int64_t slots;
  int64_t column;
  const float* scales;
};

// The modules of a stage.
struct Added {
  const Job* jobs;
  int64_t num_jobs;
};

// Rows start * unit .. stop * unit have the adapter of a slot. Segments do not overlap.
struct Segment {
  int64_t slot, start, stop;
};

struct Adapters {
  const Segment* segments;
  int64_t num_segments, unit;
};

struct Digits;  // digits.h

// One call's. Its threads share it: all rows are shrunk before any is got.
class Adding {
 public:
  // Whether anything is added at all; memory is this object's and only grows. Rows are 0 .. m.
  bool plan(const Added& added, const Adapters& adapters, int64_t m, int64_t k);
  // Keeps scales * A x of a row x [K].
  void shrink(int64_t row, const float* x) const;
  // What is added to the row's columns -> out [columns]: -0 where nothing is, to which anything may be added.
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
  int64_t width_ = 0;         // of a row's numbers for one job: the largest rank, padded
  Entry* entries_ = nullptr;  // [rows, jobs]: copies, which lie together, while tables are all over the memory
  float* hidden_ = nullptr;   // [rows, jobs, width]: scales * A x, or its digits
  Digits* digits_ = nullptr;  // [rows, jobs], of bytes
  Workspace memory_;
};
