// The sizes of the structs that Python mirrors, so that a test can compare them.
#include <cstring>

#include "attention/attention.h"
#include "kernels.h"
#include "lora/lora.h"
#include "stage/decoder.h"
#include "stage/stage.h"

// The bytes of the struct with this name; 0 if there is none.
EXPORT int64_t ternvl_size_of(const char* name) {
  const struct {
    const char* name;
    int64_t size;
  } sizes[] = {
      {"Adapters", sizeof(Adapters)}, {"Added", sizeof(Added)},     {"AddedToDecoder", sizeof(AddedToDecoder)},
      {"Cache", sizeof(Cache)},       {"Decoder", sizeof(Decoder)}, {"Entry", sizeof(Entry)},
      {"Job", sizeof(Job)},           {"Layer", sizeof(Layer)},     {"Problem", sizeof(Problem)},
      {"Segment", sizeof(Segment)},   {"Stage", sizeof(Stage)},     {"Step", sizeof(Step)},
  };
  for (const auto& each : sizes)
    if (!std::strcmp(each.name, name)) return each.size;
  return 0;
}
