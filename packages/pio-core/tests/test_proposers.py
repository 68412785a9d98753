"""Prompt lookup: what it finds, what it costs and what it forgets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_pio.core._proposers import DraftRequest, NgramProposer


def ask(proposer, tokens, num_draft=4, key="a"):
    (proposal,) = proposer.propose([DraftRequest(key, tokens, num_draft, None, None)])
    return proposal


def brute_force(tokens, num_draft, max_ngram=4, min_ngram=2):
    """The definition: longest suffix that occurs earlier, latest occurrence, continued into itself."""
    for size in range(min(max_ngram, len(tokens) - 1), min_ngram - 1, -1):
        for end in range(len(tokens) - 1, size - 1, -1):
            if tokens[end - size : end] == tokens[-size:]:
                copied = list(tokens)
                for _ in range(num_draft):
                    copied.append(copied[len(copied) - (len(tokens) - end)])
                return copied[len(tokens) :]
    return []


@pytest.mark.parametrize(
    ("tokens", "proposal"),
    [
        ([], []),
        ([7], []),
        ([7, 7], []),
        ([7, 7, 7], [7, 7, 7, 7]),  # a suffix of two that overlaps itself
        ([1, 2, 3, 4, 5], []),
        ([1, 2, 3, 4, 1, 2], [3, 4, 1, 2]),
        ([1, 2, 3, 1, 2, 4, 1, 2], [4, 1, 2, 4]),  # the latest occurrence
        ([9, 1, 2, 3, 8, 1, 2, 4, 9, 1, 2], [3, 8, 1, 2]),  # the longest suffix before the latest occurrence
        ([1, 2, 3, 5, 3], []),  # one token is too little
    ],
)
def test_prompt_lookup_examples(tokens, proposal):
    """Longest suffix first, then latest occurrence; loops go on as loops."""
    assert ask(NgramProposer(), tokens) == proposal


def test_prompt_lookup_matches_transformers():
    """Where the longest suffix occurs once before, transformers proposes the same (ours goes on past the end)."""
    torch = pytest.importorskip("torch", reason="transformers' candidate generator computes with torch")
    transformers = pytest.importorskip("transformers", reason="the oracle of prompt lookup")
    from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

    assert transformers.__version__
    oracle = PromptLookupCandidateGenerator(num_output_tokens=5, max_matching_ngram_size=3, max_length=10**6)
    generator = np.random.default_rng(3)
    compared = found = 0
    for _ in range(400):
        tokens = generator.integers(12, size=generator.integers(3, 40)).tolist()
        size = next((n for n in (3, 2, 1) if _earlier(tokens, n)), 0)
        if len(_earlier(tokens, size)) > 1:
            continue
        candidates, _ = oracle.get_candidates(torch.tensor([tokens]))
        theirs = candidates[0, len(tokens) :].tolist()
        ours = ask(NgramProposer(max_ngram=3, min_ngram=1), tokens, 5)
        assert ours[: len(theirs)] == theirs
        assert bool(ours) == bool(theirs)
        compared += 1
        found += bool(theirs)
    assert compared > 100
    assert found > 50


def _earlier(tokens, size):
    if not 0 < size < len(tokens):
        return []
    return [end for end in range(size, len(tokens)) if tokens[end - size : end] == tokens[-size:]]


edits = st.lists(
    st.tuples(st.integers(0, 12), st.lists(st.integers(0, 3), max_size=6), st.integers(0, 5)), min_size=1, max_size=12
)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 3), st.integers(0, 2), edits)
def test_incremental_index_equals_the_definition(min_ngram, more, steps):
    """After any sequence of appends and tokens taken back, a proposal is what a search from scratch gives."""
    sizes = {"min_ngram": min_ngram, "max_ngram": min_ngram + more}
    proposer = NgramProposer(**sizes)
    tokens = []
    for back, new, num_draft in steps:
        # Changes stay within the 32 tokens that are compared.
        tokens = tokens[: len(tokens) - min(back, len(tokens))] + new
        assert ask(proposer, tokens, num_draft) == brute_force(tokens, num_draft, **sizes)


def test_proposal_after_a_change_far_back_is_still_a_copy():
    """A change out of sight of the comparison can cost a guess, and never makes one up."""
    proposer = NgramProposer()
    filler = list(range(100, 200))
    ask(proposer, [1, 2, 3, 4, *filler])
    changed = [5, 6, 7, 8, *filler, 1, 2]
    assert ask(proposer, changed) in ([], [3, 4, 100, 101])
    proposer.forget("a")
    assert ask(proposer, changed) == []


def test_index_of_one_key_is_not_used_for_another():
    """Each sequence is searched in its own tokens."""
    proposer = NgramProposer()
    requests = [DraftRequest("a", [1, 2, 3, 1, 2], 1, None, None), DraftRequest("b", [1, 2, 4, 1, 2], 1, None, None)]
    assert proposer.propose(requests) == [[3], [4]]
    assert proposer.propose([DraftRequest("c", [1, 2], 1, None, None)]) == [[]]
    assert proposer.propose([]) == []


def test_step_costs_its_new_tokens():
    """A call reads the tokens that are new and the few that are compared, however long the sequence is."""

    class Counted(list):
        read = 0

        def __getitem__(self, where):
            taken = super().__getitem__(where)
            Counted.read += len(taken) if isinstance(where, slice) else 1
            return taken

        def __iter__(self):
            raise AssertionError("the whole sequence was read")

    proposer = NgramProposer()
    tokens = Counted(i * 7919 % 1009 for i in range(20_000))
    ask(proposer, tokens)
    for token in range(50):
        tokens.append(token)
        Counted.read = 0
        ask(proposer, tokens)
        assert Counted.read <= 40


def test_index_keeps_its_bound_and_old_sequences_give_way():
    """No more than max_tokens are indexed; a full index refuses a newcomer until a sequence falls idle or ends."""
    proposer = NgramProposer(max_tokens=40)
    loop = [1, 2, 3] * 6
    assert ask(proposer, loop, 1, "a") == [1]
    assert ask(proposer, loop, 1, "b") == [1]
    assert ask(proposer, loop, 1, "c") == []
    assert proposer.num_tokens == 36
    proposer.forget("a")
    assert ask(proposer, loop, 1, "c") == [1]
    for _ in range(63):
        assert ask(proposer, loop, 1, "c") == [1]
    assert ask(proposer, loop, 1, "d") == [1]  # b was idle for 64 calls
    assert proposer.num_tokens == 36
    for key in "abcde":
        proposer.forget(key)
    assert proposer.num_tokens == 0


def test_sequence_longer_than_the_index_is_searched_at_its_end():
    """The bound holds while one sequence outgrows it, and what is proposed is right."""
    proposer = NgramProposer(max_tokens=40)
    tokens = []
    for step in range(300):
        tokens.append(step % 7)
        proposal = ask(proposer, tokens, 3)
        assert proposer.num_tokens <= 40
        if step > 8:
            assert proposal == [(step + ahead) % 7 for ahead in (1, 2, 3)]


def test_bad_arguments_of_proposers_are_refused():
    """Sizes that contradict each other, and requests without enough draws."""
    with pytest.raises(ValueError, match="1 <= min_ngram <= max_ngram, got 3 and 2"):
        NgramProposer(min_ngram=3, max_ngram=2)
    with pytest.raises(ValueError, match="max_tokens must be at least twice max_ngram, got 7 and 4"):
        NgramProposer(max_tokens=7)
    with pytest.raises(ValueError, match="num_draft must be at least 0, got -1"):
        DraftRequest("a", [1], -1, None, None)
    with pytest.raises(ValueError, match="2 drafts need as many uniforms, got 1"):
        DraftRequest("a", [1], 2, [0.5], None)
