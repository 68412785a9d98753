// A persistent team of threads that works through a list of phases.
//
// A phase is a number of chunks, of which any thread may take any. Each begins with a range of its own, so that what it
// reads lies in one piece, and then takes what others have not got to. It takes half of what is left of a range at a time:
// few turns, for each holds up the reading of memory, and little to wait for at the end (guided self-scheduling,
// Polychronopoulos and Kuck 1987). A phase is over when all of its chunks are done, not when all threads have arrived: on
// a busy machine, a thread that the system has put aside between two phases holds up nobody, the others take its share.
// Who has to wait spins for a bounded time and then sleeps, which lets the system run the one that is waited for.
#pragma once

#include <stdint.h>

namespace pio {

// Runs chunks [first, last) of phase `phase`; `thread` is the number of the thread that does it.
using RunChunks = void (*)(void* context, int32_t phase, int32_t first, int32_t last, int32_t thread);

class Team;

// A team of `threads` threads, the caller's own included; null where the system has none.
Team* team_new(int32_t threads);
void team_free(Team* team);
int32_t team_threads(const Team* team);

// Works through `phases` phases of chunks[p] chunks each, in order, with the calling thread as number 0; returns when all
// are done. One call at a time.
void team_run(Team* team, const int32_t* chunks, int32_t phases, RunChunks run, void* context);

}  // namespace pio
