// A decoder, its cache, one step, and what adapters add in it. `ternvl/kernels/decoder.py` mirrors the structs.
//
// Names: D head size, T tokens, S sequences.
#pragma once

#include "lora/lora.h"

struct Stage;  // stage/stage.h

struct Layer {
  const Stage *qkv, *o, *gate_up, *down;
};

struct Decoder {
  const Layer* layers;
  int64_t num_layers;
  int32_t heads, key_heads, d;
};

// The cache of all layers, one layer after the other: either `keys` and `values`, or both in `bytes`.
struct Cache {
  float *keys, *values;
  uint8_t* bytes;
  int64_t layer_size;  // elements of a layer in each tensor
  int64_t num_blocks;
  int32_t block_size;
};

struct Step {
  const int64_t* slots;         // [T]
  const int32_t* tables;        // [S, table_width]
  const int32_t* query_starts;  // [S + 1]
  const int32_t* lengths;       // [S]
  const float *cos, *sin;       // [T, D]
  int64_t num_tokens, num_sequences, table_width;
};

// The modules of a layer that adapters may change.
struct AddedToLayer {
  Added qkv, o, gate_up, down;
};

struct AddedToDecoder {
  const AddedToLayer* layers;
  Adapters adapters;
};
