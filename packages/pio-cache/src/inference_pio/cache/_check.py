"""What must hold between sequences and pools, whatever has happened."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inference_pio.cache._tokens import first_visible

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from inference_pio.cache._pool import PagePool
    from inference_pio.cache._sequence import SequencePages
    from inference_pio.interfaces import CacheGroup


def check_sequences(
    live: Collection[SequencePages], groups: Sequence[CacheGroup], pools: Sequence[PagePool], *, page_size: int
) -> None:
    """Verify that the counts of all pages are those of the tables, and that each table holds what it must.

    Raises:
        AssertionError: It is not so.
    """
    for number, (group, pool) in enumerate(zip(groups, pools, strict=True)):
        refs = [0] * pool.num_pages
        for seq in live:
            assert seq.admitted != seq.swapped, "a live sequence is neither on the device nor in host memory, or both"
            for page in seq.tables[number]:
                if page >= 0:
                    refs[page] += 1
            if seq.admitted:
                _check_table(seq, seq.tables[number], group, pool, page_size)
        assert refs == pool.refs, f"group {number}: reference counts differ from the tables"
        spares = {id(seq.spares[number]) for seq in live if seq.admitted}
        assert {id(spare) for spare in pool.spares()} <= spares, f"group {number}: pages are set aside for nobody"


def _check_table(seq: SequencePages, table: list[int], group: CacheGroup, pool: PagePool, page_size: int) -> None:
    if group.kind == "state":
        assert len(table) == 1, "a sequence has not exactly one page for its state"
        assert pool.refs[table[0]] == 1, "a state is shared"
        return
    assert len(table) * page_size >= seq.num_computed, "computed tokens have no page"
    gone = 0 if group.window is None else first_visible(seq.num_computed, group.window) // page_size
    assert [page < 0 for page in table] == [page < gone for page in range(len(table))], "a window keeps the wrong pages"
    # A partly filled page may be shared until somebody asks to write it.
    start = seq.num_computed // page_size if seq.writable > seq.num_computed else -(-seq.num_computed // page_size)
    for page in range(start, len(table)):
        assert pool.refs[table[page]] == 1, "a page that will be written is shared"
        assert pool.digests[table[page]] is None, "a page that will be written is published"
    whole = seq.num_computed // page_size
    for page, digest in zip(table[:whole], seq.digests, strict=False):
        assert page < 0 or pool.digests[page] in {None, digest}, "a page is published for another content"
