// The team of threads at work, for the thread sanitizer: calls of uneven chunks, pauses in which threads fall asleep,
// teams that come and go. Every chunk reads what all chunks of the phase before have written. Exits with 1 if a sum is wrong.
#include "../../native/threads.h"

#include <stdint.h>

namespace {

constexpr int32_t kMaxThreads = 5;
constexpr int32_t kTeams = 4;
constexpr int32_t kCalls = 200;
constexpr int32_t kMaxPhases = 7;
constexpr int32_t kMaxChunks = 13;

struct Call {
    int32_t chunks[kMaxPhases];
    int64_t values[kMaxPhases][kMaxChunks];  // of each chunk: what the phase before left, and the chunk's number from 1
    int32_t runs[kMaxPhases][kMaxChunks];    // how often each was done
};

// What a phase leaves to each chunk of the next one.
int64_t rest_of(const Call& call, int32_t phase) {
    int64_t sum = 0;
    for (int32_t chunk = 0; chunk < call.chunks[phase]; ++chunk) sum += call.values[phase][chunk];
    return sum % 1000;
}

void pass_time(int32_t rounds) {
    volatile int32_t passed = 0;
    while (passed < rounds) passed = passed + 1;
}

void run_chunks(void* context, int32_t phase, int32_t first, int32_t last, int32_t) {
    auto& call = *static_cast<Call*>(context);
    for (int32_t chunk = first; chunk < last; ++chunk) {
        pass_time(chunk % 5 * 40);
        call.values[phase][chunk] = (phase == 0 ? 0 : rest_of(call, phase - 1)) + chunk + 1;
        ++call.runs[phase][chunk];
    }
}

bool calls_are_right(pio::Team* team) {
    for (int32_t number = 0; number < kCalls; ++number) {
        Call call{};
        const int32_t phases = 1 + number % kMaxPhases;
        for (int32_t phase = 0; phase < phases; ++phase) call.chunks[phase] = 1 + (number * 7 + phase * 5) % kMaxChunks;
        pio::team_run(team, call.chunks, phases, run_chunks, &call);
        int64_t before = 0;
        for (int32_t phase = 0; phase < phases; ++phase) {
            const int64_t count = call.chunks[phase];
            before = (count * before + count * (count + 1) / 2) % 1000;
            if (rest_of(call, phase) != before) return false;
            for (int32_t chunk = 0; chunk < count; ++chunk) {
                if (call.runs[phase][chunk] != 1) return false;
            }
        }
        if (number % 50 == 0) pass_time(1'000'000);
    }
    return true;
}

}  // namespace

int main() {
    for (int32_t threads = 1; threads <= kMaxThreads; ++threads) {
        for (int32_t number = 0; number < kTeams; ++number) {
            pio::Team* team = pio::team_new(threads);
            if (team == nullptr || !calls_are_right(team)) return 1;
            pio::team_free(team);
        }
    }
    return 0;
}
