"""How the threads of CPU operators wait for each other. Must be settled before torch is loaded."""

from __future__ import annotations

import os

SPIN_COUNT = "1000"
"""Rounds of busy waiting, some microseconds, before an idle OpenMP thread sleeps."""


def limit_spinning() -> None:
    """Keep idle OpenMP threads from spinning on cores that others need.

    A decode step is hundreds of short parallel regions, and GNU OpenMP's threads spin for milliseconds at the end of
    each. On a machine with other work that is the end of all speed: a thread spins out the time slice in which the one
    that it waits for should run. What the user has set in the environment stands. Has no effect once torch is loaded.
    """
    if not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
        os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
