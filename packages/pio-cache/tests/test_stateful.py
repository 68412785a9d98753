"""Whatever happens in whatever order: no page is lost or owned twice, and every sequence reads its own past."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from inference_pio.cache import CacheManager
from inference_pio.interfaces import CacheGroup

PAGE = 4
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
            assert -1 not in table[start // PAGE :]
            seen = [self.pages[group][table[at // PAGE]][at % PAGE] for at in range(start, seq.num_computed)]
            assert seen == seq.tokens[start : seq.num_computed]


CHOICE = st.integers(0, 5)


class Interleavings(RuleBasedStateMachine):
    """Sequences that come, grow, fork, move and go in any order over small pools."""

    def __init__(self):
        super().__init__()
        self.waiting, self.live = [], []

    def pick(self, choice, *, swapped=False):
        """One of the sequences that run, or that lie in host memory."""
        seqs = [seq for seq in self.live if seq.swapped == swapped]
        return seqs[choice % len(seqs)]

    def runs(self):
        return any(seq.admitted for seq in self.live)

    @initialize(
        kind=st.sampled_from(sorted(KINDS)),
        pages=st.integers(4, 24),
        states=st.integers(2, 8),
        host=st.sampled_from([0, 3, 12]),
        caching=st.integers(0, 4),
        interval=st.sampled_from([PAGE, 2 * PAGE]),
    )
    def start(self, kind, pages, states, host, caching, interval):
        groups = tuple(
            CacheGroup(kind=kind, window=window, num_pages=states if kind == "state" else pages, num_host_pages=host)
            for kind, window in KINDS[kind]
        )
        self.manager = CacheManager(groups, page_size=PAGE, prefix_caching=caching > 0, checkpoint_interval=interval)
        self.storage = Storage(groups)

    # Few different tokens, so that many prefixes are equal.
    @precondition(lambda self: len(self.waiting) < 4)
    @rule(
        flip=st.sampled_from([99, 99, 99, 2, 9, 18]),
        length=st.integers(1, 30),
        salt=st.sampled_from(["", "", "a"]),
        reuse=CHOICE,
    )
    def arrive(self, flip, length, salt, reuse):
        tokens = [int(at == flip) for at in range(length)]
        self.waiting.append(self.manager.open(tokens, salt=salt, reuse=reuse > 0))

    @precondition(lambda self: self.waiting)
    @rule(choice=CHOICE, more=st.integers(0, 20), part=st.integers(0, 12))
    def admit(self, choice, more, part):
        seq = self.waiting[choice % len(self.waiting)]
        before = vars_of(self.manager)
        match = self.manager.lookup(seq)
        assert match == self.manager.lookup(seq)
        assert 0 <= match.cached <= match.promised < len(seq.tokens)
        assert match.cached % PAGE == match.promised % PAGE == 0
        num_tokens = max(1, len(seq.tokens) - part)
        missing = self.manager.missing(seq, num_tokens)
        assert before == vars_of(self.manager)
        admitted = self.manager.admit(seq, num_tokens, expected=len(seq.tokens) + more)
        assert admitted == (missing == 0)
        if not admitted:
            assert before == vars_of(self.manager)
            return
        assert seq.num_cached == seq.num_computed == match.cached
        self.waiting.remove(seq)
        self.live.append(seq)

    @precondition(runs)
    @rule(counts=st.lists(st.integers(0, 12), min_size=1, max_size=6), drafts=st.integers(0, 6), cut=st.booleans())
    def step(self, counts, drafts, cut):
        """Grow several, carry out the moves, then compute: as an engine does."""
        batch = []
        for seq, count in zip([seq for seq in self.live if seq.admitted], counts, strict=False):
            end = self.manager.chunk_end(seq, min(len(seq.tokens), seq.num_computed + count))
            before = vars_of(self.manager)
            if self.manager.grow(seq, end + drafts):
                batch.append((seq, end))
            else:
                assert before == vars_of(self.manager)
        self.everyone_reads_its_own_past()
        for seq, end in batch:
            self.storage.step(seq, end)
            if end == len(seq.tokens) < MAX_LEN:
                seq.tokens.append(end % 2)
            self.manager.commit(seq, end)
            if cut:
                self.manager.truncate(seq, end)

    @precondition(lambda self: self.runs() and len(self.live) < 8)
    @rule(choice=CHOICE, token=st.integers(2, 4))
    def fork(self, choice, token):
        seq = self.pick(choice)
        before = vars_of(self.manager)
        twin = self.manager.fork(seq, [*seq.tokens[: seq.num_computed], token])
        if twin is None:
            assert before == vars_of(self.manager)
        else:
            assert twin.admitted
            self.live.append(twin)

    @precondition(runs)
    @rule(choice=CHOICE, again=st.booleans())
    def finish_or_preempt(self, choice, again):
        seq = self.pick(choice)
        self.live.remove(seq)
        self.release(seq)
        if again:
            self.waiting.append(seq)

    @precondition(lambda self: any(seq.swapped for seq in self.live))
    @rule(choice=CHOICE)
    def cancel_swapped(self, choice):
        seq = self.pick(choice, swapped=True)
        self.live.remove(seq)
        self.release(seq)

    @precondition(runs)
    @rule(choice=CHOICE)
    def swap_out(self, choice):
        before = vars_of(self.manager)
        if not self.manager.swap_out(self.pick(choice)):
            assert before == vars_of(self.manager)

    @precondition(lambda self: any(seq.swapped for seq in self.live))
    @rule(choice=CHOICE)
    def swap_in(self, choice):
        before = vars_of(self.manager)
        if not self.manager.swap_in(self.pick(choice, swapped=True)):
            assert before == vars_of(self.manager)

    @precondition(runs)
    @rule(forget=st.integers(0, 3))
    def run_moves(self, forget):
        if not forget:
            self.manager.clear()
        self.everyone_reads_its_own_past()

    @invariant()
    def is_consistent(self):
        if hasattr(self, "manager"):
            self.manager.check()
            assert 0 <= self.manager.usage <= 1

    def release(self, seq):
        for _ in range(2):
            self.manager.release(seq)
            assert not seq.admitted
            assert not any(seq.tables)

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


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(
    max_examples=150, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
