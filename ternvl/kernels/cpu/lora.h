// What adapters add; `ternvl/kernels/lora.py` has the same structs.
#pragma once

#include "stage.h"

// What one adapter adds to one module. `a` is null where it adds nothing.
struct Entry {
  const void* a;
  const void* b;
  const float* scales;  // [rank], padded to whole panels
  int64_t size;         // of an element: 1 (whole numbers), 2 or 4 bytes
  int64_t rank;
  int64_t rows;         // of B
  int64_t first;        // output of the module that row 0 of B adds to
};

// One module: its entries by slot, and the column of the stage's outputs where its own begin.
struct Job {
  const Entry* table;
  int64_t slots;
  int64_t column;
};

// The modules that have one input and whose outputs lie side by side: those of a stage.
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

namespace {

// What a segment's adapter adds to a module, or null.
inline const Entry* entry_of(const Job& job, const Segment& segment) {
  return segment.slot < job.slots && job.table[segment.slot].a ? job.table + segment.slot : nullptr;
}

}  // namespace

// Whether any row gets anything.
bool touches(const Added& added, const Adapters& adapters);
