"""A draft model reads, guesses, and takes back: its cache always holds what its guesses are made from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_pio.core._draft_model import DraftModelProposer
from inference_pio.core._host_sampler import HostSampler
from inference_pio.core._proposers import DraftRequest
from inference_pio.core._speculation import count_accepted
from inference_pio.interfaces import CacheGroup, InvalidRequestError, SamplingBatch, SamplingParams

VOCAB = 53
PAGE = 4
GROUPS = {
    "full": (CacheGroup(kind="full", num_pages=64),),
    "window": (CacheGroup(kind="full", num_pages=64), CacheGroup(kind="window", window=6, num_pages=40)),
    "state": (CacheGroup(kind="full", num_pages=64), CacheGroup(kind="state", num_pages=24)),
    "only states": (CacheGroup(kind="state", num_pages=24),),
}


def history_logits(history, spoilt=0.0):
    """Logits that a reader of the whole history gives; ``spoilt`` mixes another model in."""
    seed = 0
    for token in history:
        seed = (seed * 1_000_003 + token + 1) % 2**61
    logits = np.random.default_rng(seed).normal(scale=2.0, size=VOCAB)
    if spoilt:
        logits += spoilt * np.random.default_rng([seed, 1]).normal(scale=2.0, size=VOCAB)
    return logits.astype(np.float32)


class HistoryExecutor:
    """Keeps token ids where keys would go, and the whole history where a state would; logits come from those."""

    name = "history"
    page_size = PAGE

    def __init__(self, groups=GROUPS["full"], spoilt=0.0):
        self.cache_groups = groups
        self.sampler = HostSampler()
        self.spoilt = spoilt
        self.slots = [np.full(group.num_pages * PAGE, -1, dtype=np.int64) for group in groups]
        self.states = [[()] * group.num_pages for group in groups]
        self.steps = []
        self.largest_wanted = []
        self.fail = False

    def step(self, batch):
        self.steps.append(np.diff(batch.query_starts).tolist())
        assert batch.token_ids.size == batch.positions.size == batch.query_starts[-1]
        wanted = {}
        for sequence, (start, end) in enumerate(zip(batch.query_starts, batch.query_starts[1:], strict=False)):
            past = int(batch.positions[start])
            assert batch.positions[start:end].tolist() == list(range(past, past + end - start))
            assert batch.seq_lens[sequence] == past + end - start
            histories = [self._read(group, batch, sequence, start, end) for group in range(len(self.cache_groups))]
            assert all(history == histories[0] for history in histories[1:])
            wanted[int(end) - 1] = histories[0]
        logits = np.array([history_logits(wanted[int(row)], self.spoilt) for row in batch.logit_rows], dtype=np.float32)
        self.largest_wanted.append(batch.largest_wanted.tolist())
        for row, count in zip(logits, self.largest_wanted[-1], strict=True):
            if count > 0:  # what is not wanted need not be given
                row[row < np.sort(row)[-count]] = -np.inf
        return logits.reshape(-1, VOCAB) * (np.nan if self.fail else 1)

    def _read(self, index, batch, sequence, start, end):
        """Write the new tokens of a sequence to one group and read its whole history back, as far as it is kept."""
        group = self.cache_groups[index]
        tables = (batch, *batch.others)[index]
        table = tables.block_tables[sequence]
        new = batch.token_ids[start:end].tolist()
        past = int(batch.positions[start])
        if group.kind == "state":
            page = int(table[0])
            assert page >= 0
            history = (*(() if past == 0 else self.states[index][page]), *new)
            assert len(history) == past + len(new), "the state is not that of the tokens before"
            self.states[index][page] = history
            return history
        self.slots[index][tables.slot_mapping[start:end]] = new
        positions = np.arange(past + len(new))
        pages = table[positions // PAGE].astype(np.int64)
        history = self.slots[index][pages * PAGE + positions % PAGE]
        first = 0 if group.window is None else max(0, past - group.window + 1)
        assert (pages[first:] >= 0).all()
        assert (history[first:] >= 0).all(), "history was never written"
        if group.window is not None:  # what has left the window is taken from the group that keeps all
            all_pages = batch.block_tables[sequence][positions // PAGE].astype(np.int64)
            history[:first] = self.slots[0][all_pages * PAGE + positions % PAGE][:first]
        return tuple(history.tolist())

    def copy_pages(self, group, sources, targets):
        for source, target in zip(sources, targets, strict=True):
            self.slots[group][target * PAGE : (target + 1) * PAGE] = self.slots[group][
                source * PAGE : (source + 1) * PAGE
            ]
            self.states[group][target] = self.states[group][source]

    def swap_out(self, group, pages, host_pages):
        raise AssertionError(f"nothing goes to host memory: {group} {pages} {host_pages}")

    def swap_in(self, group, host_pages, pages):
        raise AssertionError(f"nothing comes from host memory: {group} {host_pages} {pages}")

    def close(self):
        pass


def make(groups="full", *, spoilt=0.0, **options):
    options.setdefault("max_length", 200)
    executor = HistoryExecutor(GROUPS[groups] if isinstance(groups, str) else groups, spoilt)
    return DraftModelProposer(executor, vocab_size=VOCAB, target_vocab_size=VOCAB, **options), executor


def decode(tokens, count, uniforms=None, params=None, spoilt=0.0):
    """What plain decoding of a model gives, one token at a time, with its own sampling batch."""
    tokens = list(tokens)
    for index in range(count):
        batch = SamplingBatch(
            rows=np.zeros(1, dtype=np.int64),
            bias=None,
            repetition=None,
            penalties=None,
            masks=None,
            temperature=np.array([0.0 if params is None else params.temperature], dtype=np.float32),
            top_k=np.array([0 if params is None else params.top_k], dtype=np.int32),
            typical_p=np.array([1.0 if params is None else params.typical_p], dtype=np.float32),
            top_p=np.array([1.0 if params is None else params.top_p], dtype=np.float32),
            min_p=np.array([0.0 if params is None else params.min_p], dtype=np.float32),
            uniforms=np.array([0.0 if uniforms is None else uniforms[index]]),
        )
        logits = history_logits(tokens, spoilt)[None]
        tokens.append(int(HostSampler().sample(logits, batch)[0]))
    return tokens[len(tokens) - count :] if count else []


SAMPLED = SamplingParams(temperature=0.8, top_k=20, top_p=0.9, min_p=0.01)


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("params", [None, SAMPLED], ids=["greedy", "sampled"])
def test_drafts_are_the_draft_models_own_decoding(groups, params):
    """Proposals equal what the draft alone would give, greedy or with the same draws, of several sequences at once."""
    proposer, executor = make(groups)
    generator = np.random.default_rng(0)
    prompts = [generator.integers(VOCAB, size=size).tolist() for size in (1, 4, 7, 16)]
    uniforms = None if params is None else generator.random(5).tolist()
    requests = [DraftRequest(index, prompt, 5, uniforms, params) for index, prompt in enumerate(prompts)]
    assert proposer.propose(requests) == [decode(prompt, 5, uniforms, params) for prompt in prompts]
    assert executor.steps == [[1, 4, 7, 16], *[[1] * 4] * 4]  # one ragged step, then one token of each at a time
    assert executor.largest_wanted == [[1 if params is None else 20] * 4] * 5
    proposer.cache.check()


@pytest.mark.parametrize("groups", GROUPS)
@pytest.mark.parametrize("params", [None, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("spoilt", [0.0, 0.15, 3.0])
def test_text_is_plain_decoding_whatever_is_drafted(groups, params, spoilt):
    """Verified drafts give the target's own text; a draft like the target is always right, a poor one is rolled back.

    Every proposal is what the draft model would say from scratch, so nothing rejected stays in its cache.
    """
    proposer, _ = make(groups, spoilt=spoilt)
    draws = np.random.default_rng(1).random(200).tolist()
    prompt = [5, 9, 2, 6, 7]
    tokens = list(prompt)
    proposed = accepted = 0
    while len(tokens) < 60:
        ahead = draws[len(tokens) :]
        (drafts,) = proposer.propose([DraftRequest("a", tokens, 4, ahead, params)])
        assert drafts == decode(tokens, 4, ahead, params, spoilt)
        sampled = [decode([*tokens, *drafts[:i]], 1, ahead[i:], params)[0] for i in range(5)]
        right = count_accepted(drafts, sampled)
        tokens += sampled[: right + 1]
        proposed, accepted = proposed + 4, accepted + right
        proposer.cache.check()
    assert tokens[5:] == decode(prompt, len(tokens) - 5, draws[5:], params)
    if spoilt == 0.0:
        assert accepted == proposed
    else:
        assert accepted < proposed


def test_accepted_drafts_are_not_read_again():
    """After full acceptance the last draft and the token after it are new to the draft; after a rejection one token."""
    proposer, executor = make()
    tokens = [1, 2, 3]
    (drafts,) = proposer.propose([DraftRequest("a", tokens, 3, None, None)])
    tokens += [*drafts, 7]
    executor.steps.clear()
    (drafts,) = proposer.propose([DraftRequest("a", tokens, 3, None, None)])
    assert executor.steps == [[2], [1], [1]]
    tokens += [drafts[0], (drafts[1] + 1) % VOCAB]
    executor.steps.clear()
    assert proposer.propose([DraftRequest("a", tokens, 2, None, None)]) == [decode(tokens, 2)]
    assert executor.steps == [[1], [1]]


def test_changed_tokens_are_read_anew():
    """Tokens that were taken back or replaced leave no trace in what is proposed."""
    proposer, executor = make()
    tokens = list(range(1, 21))
    for changed in (tokens[:12], [*tokens[:12], 30, 31], [*tokens[:9], *tokens[1:12]], [3]):
        assert proposer.propose([DraftRequest("a", changed, 3, None, None)]) == [decode(changed, 3)]
        proposer.cache.check()
    executor.steps.clear()
    proposer.propose([DraftRequest("a", tokens, 1, None, None)])
    assert executor.steps[0][0] <= 12  # what is shared with what was read before is found again, by whole pages


def test_long_prompt_is_read_in_parts_while_others_go_on():
    """A call reads no more than its share; who has not been read to the end gets no drafts yet."""
    proposer, executor = make(max_step_tokens=10)
    short, long = [1, 2, 3], list(range(1, 26))
    requests = [DraftRequest("long", long, 2, None, None), DraftRequest("short", short, 2, None, None)]
    assert proposer.propose(requests) == [[], decode(short, 2)]
    assert executor.steps == [[3, 7], [1]]
    executor.steps.clear()
    for _ in range(3):
        drafts, _ = proposer.propose(requests)
    assert drafts == decode(long, 2)
    assert all(sum(step) <= 10 for step in executor.steps)


def test_idle_sequences_give_way_when_the_cache_is_full():
    """The least recently used goes first; when it comes back it is read anew."""
    proposer, _ = make((CacheGroup(kind="full", num_pages=8),))
    prompts = {key: [index] * 10 for index, key in enumerate("abcd")}  # three pages each with their drafts
    for key in "abacada":
        prompt = prompts[key]
        assert proposer.propose([DraftRequest(key, prompt, 2, None, None)]) == [decode(prompt, 2)]
        proposer.cache.check()
    assert set(proposer._readers) == {"a", "d"}


def test_full_cache_refuses_without_an_error_and_recovers():
    """Sequences of one call do not displace each other; the one left out comes in when another ends, or later."""
    proposer, executor = make((CacheGroup(kind="full", num_pages=8),))
    prompts = {key: [index] * 10 for index, key in enumerate("abc")}
    requests = [DraftRequest(key, prompt, 2, None, None) for key, prompt in prompts.items()]
    right = {key: decode(prompt, 2) for key, prompt in prompts.items()}
    assert proposer.propose(requests) == [right["a"], right["b"], []]
    executor.steps.clear()
    assert proposer.propose(requests) == [right["a"], right["b"], []]
    assert sum(sum(step) for step in executor.steps) <= 6  # it is not tried again and again
    proposer.forget("a")
    assert proposer.propose(requests[1:]) == [right["b"], right["c"]]
    assert proposer.propose([DraftRequest("huge", [1] * 40, 2, None, None)]) == [[]]
    assert set(proposer._readers) == {"b", "c"}  # what can never fit displaces nobody
    proposer.cache.check()
    for key in "bc":
        proposer.forget(key)
        proposer.forget(key)
    proposer.cache.check()
    assert proposer.cache.usage == 0.0


def test_refused_sequence_is_tried_again_after_a_while():
    """Without any end in sight, 64 calls later."""
    proposer, _ = make((CacheGroup(kind="full", num_pages=4),))
    first, second = DraftRequest("a", [1] * 10, 1, None, None), DraftRequest("b", [2] * 10, 1, None, None)
    assert proposer.propose([first, second]) == [decode([1] * 10, 1), []]
    for _ in range(62):
        assert proposer.propose([second]) == [[]]
    proposer.propose([])
    assert proposer.propose([second]) == [decode([2] * 10, 1)]


def test_no_room_for_a_fork_leaves_one_draft():
    """A recurrent draft without a page for the copy of its state proposes what it can read without one."""
    proposer, _ = make((CacheGroup(kind="state", num_pages=1),))
    tokens = [1, 2, 3]
    for _ in range(5):
        assert proposer.propose([DraftRequest("a", tokens, 4, None, None)]) == [decode(tokens, 1)]
        tokens = [*tokens, 4]
        proposer.cache.check()


def test_drafts_stop_where_the_draft_model_ends():
    """Beyond its context nothing is proposed."""
    proposer, _ = make(max_length=10)
    tokens = list(range(8))
    assert proposer.propose([DraftRequest("a", tokens, 5, None, None)]) == [decode(tokens, 3)]
    assert proposer.propose([DraftRequest("a", [*tokens, 1, 2], 5, None, None)]) == [decode([*tokens, 1, 2], 1)]
    assert proposer.propose([DraftRequest("a", [*tokens, 1, 2, 3], 5, None, None)]) == [[]]


def test_nothing_asked_nothing_done():
    """No requests, no tokens and no drafts wanted cost no step."""
    proposer, executor = make()
    assert proposer.propose([]) == []
    assert proposer.propose([DraftRequest("a", [], 2, None, None), DraftRequest("b", [1], 0, None, None)]) == [[], []]
    assert executor.steps == []


def test_model_that_fails_in_numbers_proposes_nothing():
    """Logits that are no numbers end a proposal; the target does without."""
    proposer, executor = make()
    executor.fail = True
    assert proposer.propose([DraftRequest("a", [1, 2], 3, None, None)]) == [[]]
    executor.fail = False
    assert proposer.propose([DraftRequest("a", [1, 2, 3], 3, None, None)]) == [decode([1, 2, 3], 3)]


def test_prefixes_are_shared_within_one_salt_only():
    """A second sequence with the same prompt is not read again, unless it is another tenant's."""
    proposer, executor = make()
    prompt = list(range(20))
    proposer.propose([DraftRequest("a", prompt, 1, None, None, "one")])
    proposer.propose([DraftRequest("b", prompt, 1, None, None, "one")])
    proposer.propose([DraftRequest("c", prompt, 1, None, None, "other")])
    assert executor.steps[0] == [20]
    assert executor.steps[1][0] <= 4
    assert executor.steps[2] == [20]


def test_other_vocabulary_is_refused():
    """Token ids of another vocabulary mean other things."""
    with pytest.raises(InvalidRequestError, match=r"a vocabulary of 97 tokens, the model one of 53.*same family"):
        DraftModelProposer(HistoryExecutor(), vocab_size=97, target_vocab_size=53, max_length=10)
    with pytest.raises(ValueError, match="must be at least 1, got 0 and 2048"):
        DraftModelProposer(HistoryExecutor(), vocab_size=53, target_vocab_size=53, max_length=0)


operations = st.lists(
    st.tuples(
        st.sampled_from("abcd"),
        st.integers(0, 5),
        st.integers(0, 6),
        st.lists(st.integers(0, 2), max_size=5),
        st.booleans(),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(GROUPS)), st.integers(6, 20), operations)
def test_any_history_leaves_the_cache_sound(groups, num_pages, steps):
    """After any interleaving of growth, change, pressure and end, a proposal is the draft's decoding, or shorter."""
    small = tuple(CacheGroup(kind=group.kind, window=group.window, num_pages=num_pages) for group in GROUPS[groups])
    proposer, _ = make(small, max_step_tokens=8)
    texts = {key: [1] for key in "abcd"}
    for key, num_draft, back, new, ends in steps:
        if ends:
            proposer.forget(key)
            texts[key] = [1]
            continue
        texts[key] = texts[key][: max(1, len(texts[key]) - back)] + new
        asked = [key, "a"] if key != "a" else ["a"]
        requests = [DraftRequest(one, texts[one], num_draft, None, None) for one in asked]
        for one, drafts in zip(asked, proposer.propose(requests), strict=True):
            assert drafts == decode(texts[one], num_draft)[: len(drafts)]
        proposer.cache.check()
