// Memory for large arrays, and a checksum of it.
#include "memory.h"

#include "program.h"

#if defined(_WIN32)
#include <windows.h>
#else
#include <sys/mman.h>
#endif

namespace {

// Mixes a word into a state: a product with an odd number lets each bit change all above it, the shift brings them down.
// Both can be undone, so different words never lead from one state to the same.
uint64_t mix(uint64_t state, uint64_t word) {
    constexpr uint64_t odd = 0x9e3779b97f4a7c15u;  // 2^64 / golden ratio
    const uint64_t product = (state ^ word) * odd;
    return product ^ (product >> 32);
}

uint64_t word_at(const uint8_t* data) {
    uint64_t word;
    __builtin_memcpy(&word, data, sizeof word);
    return word;
}

}  // namespace

namespace pio {

#if defined(_WIN32)

// Large pages need a privilege that users do not have.
void* memory_new(int64_t bytes) {
    if (bytes <= 0) return nullptr;
    return VirtualAlloc(nullptr, static_cast<size_t>(bytes), MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
}

void memory_free(void* memory, int64_t) {
    if (memory != nullptr) VirtualFree(memory, 0, MEM_RELEASE);
}

#else

static constexpr int64_t kHugePage = 2 << 20;

// Bytes that are mapped for `bytes`: whole huge pages from two on.
static int64_t mapped_bytes(int64_t bytes) {
    return bytes < 2 * kHugePage ? bytes : (bytes + kHugePage - 1) / kHugePage * kHugePage;
}

void* memory_new(int64_t bytes) {
    if (bytes <= 0) return nullptr;
    const int64_t size = mapped_bytes(bytes);
    // A mapping begins at any small page: map more, and give back what lies before the first huge page and after the last.
    const int64_t slack = bytes < 2 * kHugePage ? 0 : kHugePage;
    void* whole = mmap(nullptr, static_cast<size_t>(size + slack), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                       -1, 0);
    if (whole == MAP_FAILED) return nullptr;
    if (slack == 0) return whole;
    uint8_t* const start = static_cast<uint8_t*>(whole);
    const int64_t past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(start) % kHugePage);
    const int64_t before = past == 0 ? 0 : kHugePage - past;
    if (before > 0) munmap(start, static_cast<size_t>(before));
    if (slack > before) munmap(start + before + size, static_cast<size_t>(slack - before));
#if defined(MADV_HUGEPAGE)
    madvise(start + before, static_cast<size_t>(size), MADV_HUGEPAGE);
#endif
    return start + before;
}

void memory_free(void* memory, int64_t bytes) {
    if (memory != nullptr) munmap(memory, static_cast<size_t>(mapped_bytes(bytes)));
}

#endif

}  // namespace pio

void* pio_memory_new(int64_t bytes) { return pio::memory_new(bytes); }

void pio_memory_free(void* memory, int64_t bytes) { pio::memory_free(memory, bytes); }

// Eight words at a time go into eight states, so that products overlap; then the states and what is left into one.
uint64_t pio_checksum(const uint8_t* data, int64_t bytes) {
    constexpr int64_t lanes = 8;
    constexpr int64_t stride = lanes * static_cast<int64_t>(sizeof(uint64_t));
    uint64_t states[lanes];
    for (int64_t lane = 0; lane < lanes; ++lane) states[lane] = static_cast<uint64_t>(lane);
    int64_t at = 0;
    for (; at + stride <= bytes; at += stride) {
        for (int64_t lane = 0; lane < lanes; ++lane) {
            states[lane] = mix(states[lane], word_at(data + at + lane * static_cast<int64_t>(sizeof(uint64_t))));
        }
    }
    uint64_t sum = static_cast<uint64_t>(bytes);
    for (int64_t lane = 0; lane < lanes; ++lane) sum = mix(sum, states[lane]);
    for (; at < bytes; ++at) sum = mix(sum, data[at]);
    return mix(sum, 0);
}
