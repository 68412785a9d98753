"""Which replica answers a request: the one that has read its beginning, unless others have much less to do.

The idea is the cache-aware routing of SGLang's router (Zheng et al., "SGLang: Efficient Execution of Structured
Language Model Programs", 2024) and of vLLM's production stack: prefixes are remembered where requests are handed out,
from the requests alone, so replicas need not tell what they hold. Theirs are trees of characters; blocks that stand for
all that is before them answer the same question with one look-up each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from inference_pio.serve._router.prefixes import MEMORY_BLOCKS, PrefixMemory

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

SLACK = 4
"""Open requests that a replica may have above the least, and still be chosen for what it has read."""
MIN_SHARE = 0.5
"""Of a prompt's blocks that must be known for that to count: with less, more is to be read than is saved."""


@dataclass(slots=True)
class ReplicaLoad:
    """What one replica has to do, and has done.

    Attributes:
        prefixes: Beginnings of the prompts that it was given.
        open: Requests that it has not finished.
        requests: Requests that it was given, since the router's start.
        chosen_at: The choice that it was last given one by; smaller is longer ago.
    """

    prefixes: PrefixMemory
    open: int = 0
    requests: int = 0
    chosen_at: int = -1


class Balance:
    """Hands requests out to replicas 0 to ``count - 1``. For one event loop.

    Args:
        count: How many replicas there are.
        slack: Open requests that a replica may have above the least, and still be chosen for what it has read.
        min_share: Share of a prompt's blocks that must be known for that to count, 0 to 1.
        capacity: Blocks that are remembered of each replica.

    Attributes:
        loads: Of each replica.
        blocks: Whole blocks of all prompts that were handed out.
        matched_blocks: Those of them that the chosen replica was given before.
    """

    def __init__(
        self, count: int, *, slack: int = SLACK, min_share: float = MIN_SHARE, capacity: int = MEMORY_BLOCKS
    ) -> None:
        self.loads = [ReplicaLoad(PrefixMemory(capacity)) for _ in range(count)]
        self.blocks = 0
        self.matched_blocks = 0
        self._slack = slack
        self._min_share = min_share
        self._choices = 0

    def choose(self, ready: Collection[int], blocks: Sequence[int]) -> int:
        """The replica for a prompt; changes nothing.

        Of those with at most ``slack`` more open requests than the least, the one that knows the most of the prompt, if
        it knows enough; then the one with the fewest open requests; then the one that was not chosen for longest.

        Args:
            ready: Those that may be chosen; at least one.
            blocks: Of the prompt.
        """
        least = min(self.loads[place].open for place in ready)
        enough = max(1.0, self._min_share * len(blocks))

        def order(place: int) -> tuple[int, int, int]:
            load = self.loads[place]
            known = load.prefixes.matched(blocks) if load.open <= least + self._slack else 0
            return (-known if known >= enough else 0, load.open, load.chosen_at)

        return min(ready, key=order)

    def begin(self, place: int, blocks: Sequence[int]) -> None:
        """A replica is given a prompt."""
        load = self.loads[place]
        self.blocks += len(blocks)
        self.matched_blocks += load.prefixes.matched(blocks)
        load.prefixes.add(blocks)
        load.open += 1
        load.requests += 1
        load.chosen_at = self._choices
        self._choices += 1

    def end(self, place: int) -> None:
        """A replica is done with one, however that ended."""
        self.loads[place].open -= 1

    def forget(self, place: int) -> None:
        """A replica was started anew and has read nothing."""
        self.loads[place].prefixes.clear()
