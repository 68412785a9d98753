// Run under an emulator of another processor: loads the library named first, prints which instruction sets are usable,
// and lets the best of them choose the largest of some logits.
#include <dlfcn.h>
#include <stdio.h>

#include "../../native/program.h"

template <class Function>
static Function find(void* library, const char* name) {
    return reinterpret_cast<Function>(dlsym(library, name));
}

int main(int, char** arguments) {
    void* library = dlopen(arguments[1], RTLD_NOW);
    if (library == nullptr) return 2;
    const auto name_of = find<const char* (*)(int32_t)>(library, "pio_isa_name");
    const auto usable = find<int32_t (*)(int32_t)>(library, "pio_isa_usable");
    const auto runtime_new = find<Runtime* (*)(const Program*, int32_t, int32_t)>(library, "pio_runtime_new");
    const auto draw = find<int32_t (*)(Runtime*, const float*, const Sampling*)>(library, "pio_runtime_sample");
    int32_t best = 0;
    for (int32_t isa = 0; name_of(isa) != nullptr; ++isa) {
        if (usable(isa) == 0) continue;
        printf("%s ", name_of(isa));
        best = isa;
    }

    constexpr int32_t vocab = 700;
    float logits[vocab] = {};
    logits[321] = 1.0f;
    Program program = {};
    program.max_tokens = 1;
    program.vocab_size = vocab;
    Runtime* runtime = runtime_new(&program, best, 2);
    if (runtime == nullptr) return 3;
    const int64_t row = 0;
    const float temperature = 0.0f;
    int64_t chosen = 0;
    Sampling sampling = {};
    sampling.rows = 1;
    sampling.vocab_size = vocab;
    sampling.stride = vocab;
    sampling.logit_rows = &row;
    sampling.temperature = &temperature;
    sampling.chosen = &chosen;
    if (draw(runtime, logits, &sampling) != 0) return 4;
    printf("%d\n", static_cast<int>(chosen));
    return 0;
}
