"""The pages of one sequence."""

from __future__ import annotations

from inference_pio.cache._pool import Spare


class SequencePages:
    """Handle of one sequence. Callers read it; only the manager that opened it changes it.

    Attributes:
        tokens: The caller's own list, append-only; read for hashing.
        tables: Per group the page numbers in order; -1 where a window has given a page back. ``[page]`` for a state.
        num_cached: Tokens found at the last admission.
        num_computed: Tokens whose keys, values and effect on the states are stored.
        admitted: Whether the sequence has pages on the device.
        swapped: Whether its pages lie in host memory.
        root: Digest before the first page, particular to the salt.
        reuse: Whether cached prefixes may be taken.
        digests: Content of the whole pages of ``tokens``, as far as they were needed.
        published: Pages of ``tokens`` that were computed and offered to others.
        promised: Pages that were promised at admission.
        expected: Pages that the sequence may grow to.
        writable: Positions before this one, from ``num_computed`` on, lie in pages that nobody else owns.
        next_event: Computing up to here fills a page or lets one leave a window.
        first: Per group the first page that was not given back.
        spares: Per group what is set aside.
        host: Per group the host pages, in the order of the table, while swapped.
    """

    __slots__ = (
        "admitted",
        "digests",
        "expected",
        "first",
        "host",
        "next_event",
        "num_cached",
        "num_computed",
        "promised",
        "published",
        "reuse",
        "root",
        "spares",
        "swapped",
        "tables",
        "tokens",
        "writable",
    )

    def __init__(self, tokens: list[int], *, root: bytes, reuse: bool, num_groups: int) -> None:
        self.tokens = tokens
        self.root = root
        self.reuse = reuse
        self.digests: list[bytes] = []
        self.num_cached = 0
        self.spares = tuple(Spare() for _ in range(num_groups))
        self.reset()

    def reset(self) -> None:
        """Forget all pages."""
        self.tables: tuple[list[int], ...] = tuple([] for _ in self.spares)
        self.host: tuple[list[int], ...] = ()
        self.first = [0] * len(self.spares)
        self.num_computed = 0
        self.admitted = False
        self.swapped = False
        self.published = 0
        self.promised = 0
        self.expected = 0
        self.writable = 0
        self.next_event = 0
