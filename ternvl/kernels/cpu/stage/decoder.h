// What a decoder is to the native side; `ternvl/kernels/decoder.py` has the same structs. D head size, T tokens.
#pragma once

#include "lora/lora.h"

struct Layer {
  const Stage *qkv, *o, *gate_up, *down;
};

struct Decoder {
  const Layer* layers;
  int64_t num_layers;
  int32_t heads, key_heads, d;
};

// Of all layers one after the other: `keys` and `values`, or both in `bytes`.
struct Cache {
  float *keys, *values;
  uint8_t* bytes;
  int64_t layer_size;  // elements of a layer in each of them
  int64_t num_blocks;
  int32_t block_size;
};

struct Step {
  const int64_t* slots;         // [T]
  const int32_t* tables;        // [sequences, table_width]
  const int32_t* query_starts;  // [sequences + 1]
  const int32_t* lengths;       // [sequences]
  const float *cos, *sin;       // [T, D]
  int64_t num_tokens, num_sequences, table_width;
};

// What adapters add in this step.
struct AddedToLayer {
  Added qkv, o, gate_up, down;
};

struct AddedToDecoder {
  const AddedToLayer* layers;
  Adapters adapters;
};
