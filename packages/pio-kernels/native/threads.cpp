#include "threads.h"

#include "program.h"
#include "system.h"

namespace pio {

namespace {

constexpr int64_t kSpinInStep = 50'000;        // ns that a thread spins for the others' chunks
constexpr int64_t kSpinBetweenSteps = 100'000;  // ns that a thread spins for the next call
constexpr int kPausesPerLook = 32;              // the clock is read once per so many pauses

constexpr int32_t kMostRanges = 15;

// On a cache line of its own, which threads need not pass back and forth as long as each works in its own range.
struct alignas(64) Counter {
    int32_t value;
};

inline int32_t load(const int32_t* number) { return __atomic_load_n(number, __ATOMIC_ACQUIRE); }

}  // namespace

class Team {
   public:
    int32_t threads = 1;
    int32_t workers = 0;  // threads that were started
    int32_t ranges = 1;   // that chunks are dealt out in
    Thread* handles = nullptr;
    struct Worker {
        Team* team;
        int32_t number;
    }* worker_arguments = nullptr;

    // The call that is open. Written by the caller while no worker is inside.
    const int32_t* chunks = nullptr;
    int32_t phases = 0;
    RunChunks run = nullptr;
    void* context = nullptr;
    Counter* counters = nullptr;  // of each phase: chunks that are done, then chunks that are taken, of each range
    int32_t counters_capacity = 0;

    alignas(64) int32_t call = 0;  // number of calls so far; odd while one is open
    alignas(64) int32_t inside = 0;  // workers that are in the open call
    alignas(64) int32_t sleepers = 0;
    int32_t ending = 0;
    Monitor monitor;

    // Waits until `ready()`, which some thread makes true and then calls `wake`.
    template <typename Ready>
    void wait(int64_t spin, const Ready& ready) {
        if (ready()) return;
        const int64_t deadline = now() + spin;
        do {
            for (int i = 0; i < kPausesPerLook; ++i) {
                cpu_pause();
                if (ready()) return;
            }
        } while (now() < deadline);
        monitor.enter();
        __atomic_fetch_add(&sleepers, 1, __ATOMIC_SEQ_CST);
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        while (!ready()) monitor.sleep();
        __atomic_fetch_sub(&sleepers, 1, __ATOMIC_SEQ_CST);
        monitor.leave();
    }

    // Wakes who sleeps. What made them ready was written before, sequentially consistent: either this thread sees the
    // sleeper, or the sleeper sees what was written.
    void wake() {
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        if (__atomic_load_n(&sleepers, __ATOMIC_SEQ_CST) == 0) return;
        monitor.enter();
        monitor.wake_all();
        monitor.leave();
    }

    int32_t& done(int32_t phase) const { return counters[phase * (ranges + 1)].value; }
    int32_t& taken(int32_t phase, int32_t range) const { return counters[phase * (ranges + 1) + 1 + range].value; }

    // Does what is left of a range of a phase's chunks, half of it at a time; how many that was.
    int32_t take_range(int32_t phase, int32_t range, int32_t thread) {
        const int32_t count = chunks[phase];
        const auto first = static_cast<int32_t>(static_cast<int64_t>(count) * range / ranges);
        const auto last = static_cast<int32_t>(static_cast<int64_t>(count) * (range + 1) / ranges);
        int32_t& counter = taken(phase, range);
        int32_t mine = 0;
        for (;;) {
            const int32_t left = last - first - __atomic_load_n(&counter, __ATOMIC_RELAXED);
            if (left <= 0) return mine;
            const int32_t share = left > 1 ? left / 2 : 1;
            const int32_t from = first + __atomic_fetch_add(&counter, share, __ATOMIC_RELAXED);
            if (from >= last) return mine;
            const int32_t to = from + share < last ? from + share : last;
            run(context, phase, from, to, thread);
            mine += to - from;
        }
    }

    void work(int32_t thread) {
        for (int32_t phase = 0; phase < phases; ++phase) {
            const int32_t count = chunks[phase];
            if (load(&done(phase)) == count) continue;
            int32_t mine = 0;
            for (int32_t i = 0; i < ranges; ++i) mine += take_range(phase, (thread + i) % ranges, thread);
            if (mine > 0 && __atomic_add_fetch(&done(phase), mine, __ATOMIC_ACQ_REL) == count) wake();
            wait(kSpinInStep, [&] { return load(&done(phase)) == count; });
        }
    }

    // A worker enters a call if it is still open once the worker is counted as inside: the caller closes a call first
    // and then waits for those inside, so no worker can look at a call that is being replaced.
    void serve(int32_t thread) {
        int32_t seen = 0;
        for (;;) {
            wait(kSpinBetweenSteps, [&] { return load(&call) != seen || load(&ending); });
            if (load(&ending)) return;
            __atomic_fetch_add(&inside, 1, __ATOMIC_SEQ_CST);
            const int32_t current = __atomic_load_n(&call, __ATOMIC_SEQ_CST);
            if (current % 2 != 0 && current != seen) work(thread);
            seen = current;
            __atomic_fetch_sub(&inside, 1, __ATOMIC_SEQ_CST);
            wake();
        }
    }

    bool reserve(int32_t count) {
        const int32_t needed = count * (ranges + 1);
        if (needed <= counters_capacity) return true;
        auto* larger = static_cast<Counter*>(pio_memory_new(static_cast<int64_t>(needed) * sizeof(Counter)));
        if (larger == nullptr) return false;
        pio_memory_free(counters, static_cast<int64_t>(counters_capacity) * sizeof(Counter));
        counters = larger;
        counters_capacity = needed;
        return true;
    }

    void call_all(const int32_t* chunk_counts, int32_t count, RunChunks function, void* argument) {
        chunks = chunk_counts;
        phases = count;
        run = function;
        context = argument;
        for (int32_t i = 0; i < count * (ranges + 1); ++i) counters[i].value = 0;
        __atomic_add_fetch(&call, 1, __ATOMIC_SEQ_CST);  // opens
        wake();
        work(0);
        __atomic_add_fetch(&call, 1, __ATOMIC_SEQ_CST);  // closes
        wait(kSpinInStep, [&] { return load(&inside) == 0; });
    }
};

namespace {

void serve_as_worker(void* argument) {
    const auto* worker = static_cast<Team::Worker*>(argument);
    worker->team->serve(worker->number);
}

}  // namespace

Team* team_new(int32_t threads) {
    auto* team = static_cast<Team*>(pio_memory_new(sizeof(Team)));
    if (team == nullptr) return nullptr;
    team->threads = threads;
    team->ranges = threads < kMostRanges ? threads : kMostRanges;
    team->monitor.open();
    team->handles = static_cast<Thread*>(pio_memory_new(threads * static_cast<int64_t>(sizeof(Thread))));
    team->worker_arguments = static_cast<Team::Worker*>(pio_memory_new(threads * static_cast<int64_t>(sizeof(Team::Worker))));
    bool sound = team->handles != nullptr && team->worker_arguments != nullptr;
    for (int32_t number = 1; sound && number < threads; ++number) {
        team->worker_arguments[number] = {team, number};
        sound = thread_start(team->handles[number], serve_as_worker, &team->worker_arguments[number]);
        team->workers += sound;
    }
    if (sound) return team;
    team_free(team);
    return nullptr;
}

void team_free(Team* team) {
    if (team == nullptr) return;
    __atomic_store_n(&team->ending, 1, __ATOMIC_SEQ_CST);
    team->wake();
    for (int32_t number = 1; number <= team->workers; ++number) thread_join(team->handles[number]);
    team->monitor.close();
    pio_memory_free(team->counters, static_cast<int64_t>(team->counters_capacity) * sizeof(Counter));
    pio_memory_free(team->worker_arguments, team->threads * static_cast<int64_t>(sizeof(Team::Worker)));
    pio_memory_free(team->handles, team->threads * static_cast<int64_t>(sizeof(Thread)));
    pio_memory_free(team, sizeof(Team));
}

int32_t team_threads(const Team* team) { return team->threads; }

void team_run(Team* team, const int32_t* chunks, int32_t phases, RunChunks run, void* context) {
    if (team->threads > 1 && team->reserve(phases)) {
        team->call_all(chunks, phases, run, context);
        return;
    }
    for (int32_t phase = 0; phase < phases; ++phase) run(context, phase, 0, chunks[phase], 0);
}

}  // namespace pio
