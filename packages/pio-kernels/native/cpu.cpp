// The instruction sets of this build, and which of them the processor and the system can run.
#include "kernels.h"
#include "limits.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace pio {
namespace {

bool always() { return true; }

#if defined(__x86_64__)

struct Registers {
    uint32_t eax, ebx, ecx, edx;
};

// What the processor says of itself (Intel SDM volume 2A, CPUID); zeros for leaves it does not know.
Registers cpuid(uint32_t leaf, uint32_t subleaf) {
    Registers r = {0, 0, 0, 0};
    __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
    return r;
}

constexpr uint32_t bits(uint32_t first) { return 1u << first; }
template <typename... More>
constexpr uint32_t bits(uint32_t first, More... more) {
    return (1u << first) | bits(more...);
}

bool has(uint32_t value, uint32_t wanted) { return (value & wanted) == wanted; }

// Whether the system saves the registers of `wanted` (bits of XCR0) when it switches threads.
bool system_saves(uint32_t wanted) {
    constexpr uint32_t os_uses_xsave = bits(27);
    if (!has(cpuid(1, 0).ecx, os_uses_xsave)) return false;
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return has(low, wanted);
}

// The level x86-64-v3 of the System V ABI, without what every 64-bit processor with AVX2 has.
bool runs_avx2() {
    constexpr uint32_t fma_movbe_avx_f16c = bits(12, 22, 28, 29);
    constexpr uint32_t bmi1_avx2_bmi2 = bits(3, 5, 8);
    constexpr uint32_t lzcnt = bits(5);
    constexpr uint32_t xmm_ymm = bits(1, 2);
    return has(cpuid(1, 0).ecx, fma_movbe_avx_f16c) && has(cpuid(7, 0).ebx, bmi1_avx2_bmi2) &&
           has(cpuid(0x80000001, 0).ecx, lzcnt) && system_saves(xmm_ymm);
}

bool runs_avx2_vnni() {
    constexpr uint32_t avx_vnni = bits(4);
    return runs_avx2() && has(cpuid(7, 1).eax, avx_vnni);
}

// The level x86-64-v4, and VNNI.
bool runs_avx512() {
    constexpr uint32_t f_dq_cd_bw_vl = bits(16, 17, 28, 30, 31);
    constexpr uint32_t vnni = bits(11);
    constexpr uint32_t xmm_ymm_masks_zmm = bits(1, 2, 5, 6, 7);
    return runs_avx2() && has(cpuid(7, 0).ebx, f_dq_cd_bw_vl) && has(cpuid(7, 0).ecx, vnni) &&
           system_saves(xmm_ymm_masks_zmm);
}

bool runs_avx512_bf16() {
    constexpr uint32_t bf16 = bits(5);
    return runs_avx512() && has(cpuid(7, 1).eax, bf16);
}

bool runs_neon() { return false; }

#else

bool runs_avx2() { return false; }
bool runs_avx2_vnni() { return false; }
bool runs_avx512() { return false; }
bool runs_avx512_bf16() { return false; }

// Dot products of 8-bit numbers, FEAT_DotProd.
bool runs_neon() {
#if defined(__aarch64__) && defined(__linux__)
    constexpr unsigned long dot_products = 1ul << 20;  // HWCAP_ASIMDDP
    return (getauxval(AT_HWCAP) & dot_products) != 0;
#elif defined(__aarch64__) && defined(__APPLE__)
    int32_t present = 0;
    size_t size = sizeof present;
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &present, &size, nullptr, 0) == 0 && present != 0;
#else
    return false;
#endif
}

#endif

struct InstructionSet {
    const char* name;
    const Kernels* (*kernels)();
    DotProbe (*dot_probe)();
    bool (*runs)();
};

constexpr InstructionSet kInstructionSets[] = {
    {"scalar", scalar_kernels, scalar_dot_probe, always},
    {"neon", neon_kernels, neon_dot_probe, runs_neon},
    {"avx2", avx2_kernels, avx2_dot_probe, runs_avx2},
    {"avx2vnni", avx2_vnni_kernels, avx2_vnni_dot_probe, runs_avx2_vnni},
    {"avx512", avx512_kernels, avx512_dot_probe, runs_avx512},
    {"avx512bf16", avx512_bf16_kernels, avx512_bf16_dot_probe, runs_avx512_bf16},
};

constexpr int32_t kCount = sizeof kInstructionSets / sizeof kInstructionSets[0];

}  // namespace

const Kernels* kernels_of(int32_t isa) {
    if (isa < 0 || isa >= kCount || !kInstructionSets[isa].runs()) return nullptr;
    return kInstructionSets[isa].kernels();
}

DotProbe dot_probe_of(int32_t isa) {
    return kernels_of(isa) != nullptr ? kInstructionSets[isa].dot_probe() : nullptr;
}

}  // namespace pio

const char* pio_isa_name(int32_t isa) {
    return isa >= 0 && isa < pio::kCount ? pio::kInstructionSets[isa].name : nullptr;
}

int32_t pio_isa_usable(int32_t isa) { return pio::kernels_of(isa) != nullptr ? 1 : 0; }
