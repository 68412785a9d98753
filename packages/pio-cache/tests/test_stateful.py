"""Whatever happens in whatever order: no page is lost or owned twice, and every sequence reads its own past."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from inference_pio.cache import CacheManager
from inference_pio.interfaces import CacheGroup

PAGE = 4
INTERVAL = 8
MAX_LEN = 40
KINDS = {
    "full": (("full", None),),
    "window": (("window", 6),),
    "state": (("state", None),),
    "full+window": (("full", None), ("window", 5)),
    "all": (("full", None), ("window", 1), ("window", 9), ("state", None)),
}


class Storage:
    """What an executor stores: tokens in pages, and as a state the whole history, which each token changes."""

    def __init__(self, groups):
        self.groups = groups
        self.pages = [self._empty(group.kind, group.num_pages) for group in groups]
        self.host = [self._empty(group.kind, group.num_host_pages) for group in groups]

    def _empty(self, kind, count):
        return [() if kind == "state" else [None] * PAGE for _ in range(count)]

    def execute(self, moves):
        """Carry out moves one page after the other."""
        for kind, group, sources, targets in moves:
            assert len(sources) == len(targets) > 0
            assert kind == "copy" or len(set(targets)) == len(targets)
            pages, host = self.pages[group], self.host[group]
            read, write = {"copy": (pages, pages), "out": (pages, host), "in": (host, pages)}[kind]
            for source, target in zip(sources, targets, strict=True):
                write[target] = read[source] if isinstance(read[source], tuple) else list(read[source])

    def step(self, seq, end):
        """Compute the tokens up to ``end``: write their keys, change the state."""
        for group, table in enumerate(seq.tables):
            if self.groups[group].kind == "state":
                state = self.pages[group][table[0]] if seq.num_computed else ()
                self.pages[group][table[0]] = state + tuple(seq.tokens[seq.num_computed : end])
            else:
                for position in range(seq.num_computed, end):
                    self.pages[group][table[position // PAGE]][position % PAGE] = seq.tokens[position]

    def read(self, seq):
        """Compare what the next query can see with the sequence's own tokens."""
        for group, table in enumerate(seq.tables):
            kind, window = self.groups[group].kind, self.groups[group].window
            if kind == "state":
                if seq.num_computed:
                    assert self.pages[group][table[0]] == tuple(seq.tokens[: seq.num_computed])
                continue
            start = 0 if window is None else max(0, seq.num_computed - window + 1)
            seen = [self.pages[group][table[at // PAGE]][at % PAGE] for at in range(start, seq.num_computed)]
            assert seen == seq.tokens[start : seq.num_computed]


class Interleavings(RuleBasedStateMachine):
    """Sequences that come, grow, fork, move and go in any order over small pools."""

    waiting = Bundle("waiting")
    running = Bundle("running")
    swapped = Bundle("swapped")

    @initialize(
        kind=st.sampled_from(sorted(KINDS)), pages=st.integers(4, 24), host=st.sampled_from([0, 3, 12]), data=st.data()
    )
    def start(self, kind, pages, host, data):
        groups = tuple(
            CacheGroup(kind=kind, window=window, num_pages=data.draw(st.integers(2, 8)) if kind == "state" else pages,
                       num_host_pages=host)
            for kind, window in KINDS[kind]
        )  # fmt: skip
        self.manager = CacheManager(
            groups, page_size=PAGE, prefix_caching=data.draw(st.integers(0, 4)) > 0, checkpoint_interval=INTERVAL
        )
        self.storage = Storage(groups)
        self.live = []

    # Few different tokens and lengths, so that many prefixes are equal.
    @rule(target=waiting, flips=st.lists(st.integers(0, 30), max_size=1), length=st.integers(1, 30),
          salt=st.sampled_from(["", "", "a"]), reuse=st.integers(0, 5))  # fmt: skip
    def arrive(self, flips, length, salt, reuse):
        return self.manager.open([int(at in flips) for at in range(length)], salt=salt, reuse=reuse > 0)

    @rule(seq=waiting)
    def look(self, seq):
        before = (vars_of(self.manager), len(seq.tokens))
        match = self.manager.lookup(seq)
        assert match == self.manager.lookup(seq)
        assert 0 <= match.cached <= match.promised < len(seq.tokens)
        assert match.cached % PAGE == match.promised % PAGE == 0
        assert before == (vars_of(self.manager), len(seq.tokens))

    @rule(target=running, seq=waiting, more=st.integers(0, 20), part=st.integers(0, 30))
    def admit(self, seq, more, part):
        if seq.admitted or seq.swapped:
            return multiple()
        cached = self.manager.lookup(seq).cached
        num_tokens = max(1, len(seq.tokens) - part)
        missing, before = self.manager.missing(seq, num_tokens), vars_of(self.manager)
        admitted = self.manager.admit(seq, num_tokens, expected=len(seq.tokens) + more)
        assert admitted == (missing == 0)
        if not admitted:
            assert before == vars_of(self.manager)
            return multiple()
        assert seq.num_cached == seq.num_computed == cached
        self.live.append(seq)
        return seq

    @rule(seq=running, count=st.integers(1, 12), drafts=st.integers(0, 6), pause=st.booleans())
    def step(self, seq, count, drafts, pause):
        if not seq.admitted or len(seq.tokens) >= MAX_LEN:
            return
        end = self.manager.chunk_end(seq, min(len(seq.tokens), seq.num_computed + count))
        before = vars_of(self.manager)
        if not self.manager.grow(seq, end + drafts):
            assert before == vars_of(self.manager)
            return
        self.storage.execute(self.manager.take_moves())
        self.storage.step(seq, end)
        if end == len(seq.tokens):
            seq.tokens.append(end % 2)
        self.manager.commit(seq, end)
        if not pause:
            self.manager.truncate(seq, end)

    @rule(target=running, seq=running, token=st.integers(0, 1))
    def fork(self, seq, token):
        if not seq.admitted:
            return multiple()
        before = vars_of(self.manager)
        twin = self.manager.fork(seq, [*seq.tokens[: seq.num_computed], token])
        if twin is None:
            assert before == vars_of(self.manager)
            return multiple()
        assert twin.admitted
        self.live.append(twin)
        return twin

    @rule(seq=consumes(running))
    def finish(self, seq):
        self.manager.release(seq)
        self.manager.release(seq)
        assert not seq.admitted
        assert not any(seq.tables)

    @rule(target=waiting, seq=consumes(running))
    def preempt(self, seq):
        self.manager.release(seq)
        return seq

    @rule(target=swapped, seq=running)
    def swap_out(self, seq):
        if not seq.admitted:
            return multiple()
        before = vars_of(self.manager)
        if not self.manager.swap_out(seq):
            assert before == vars_of(self.manager)
            return multiple()
        assert seq.swapped
        return seq

    @rule(seq=swapped)
    def swap_in(self, seq):
        if not seq.swapped:
            return
        before = vars_of(self.manager)
        if not self.manager.swap_in(seq):
            assert before == vars_of(self.manager)

    @rule()
    def forget(self):
        self.manager.clear()

    @rule()
    def run_moves(self):
        self.storage.execute(self.manager.take_moves())

    @invariant()
    def is_consistent(self):
        if hasattr(self, "manager"):
            self.manager.check()
            assert 0 <= self.manager.usage <= 1

    @rule()
    def everyone_reads_its_own_past(self):
        self.storage.execute(self.manager.take_moves())
        for seq in self.live:
            if seq.admitted:
                self.storage.read(seq)

    def teardown(self):
        if not hasattr(self, "manager"):
            return
        self.everyone_reads_its_own_past()
        for seq in self.live:
            self.manager.release(seq)
        self.manager.clear()
        self.manager.check()
        for group, pool in enumerate(self.manager.groups):
            assert self.manager.num_free(group) == pool.num_pages


def vars_of(manager):
    """What a failed call must leave as it was."""
    free = [manager.num_free(group) for group in range(len(manager.groups))]
    return (
        free,
        manager.usage,
        repr(manager.stats),
        [(repr(p.refs), repr(p.cached), dict(p.index)) for p in manager._pools],
    )


TestInterleavings = pytest.mark.filterwarnings("default")(Interleavings.TestCase)
TestInterleavings.settings = settings(
    max_examples=150, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
