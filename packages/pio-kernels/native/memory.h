// Memory for large arrays, from the system.
#pragma once

#include <stdint.h>

namespace pio {

// `bytes` zero bytes, aligned to 64 at least; from 4 MiB on in huge pages where the system has them. Nothing is touched
// before it is used. Null where there is no memory.
void* memory_new(int64_t bytes);
// Frees what memory_new gave for as many bytes; null is harmless.
void memory_free(void* memory, int64_t bytes);

}  // namespace pio
