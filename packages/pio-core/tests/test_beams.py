"""Beam search against transformers, token for token and score for score."""

from __future__ import annotations

import math

import pytest

from inference_pio.core._beams import Beam, BeamSearch, BeamStep
from inference_pio.interfaces import BeamSearchParams


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    pytest.importorskip("torch", reason="the oracle runs on torch")
    transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
    testing = pytest.importorskip("inference_pio.testing", reason="writes the tiny checkpoint")
    folder = testing.tiny_checkpoint("llama", tmp_path_factory.mktemp("beams"), vocab_size=40, seed=3)
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def search(model, prompt, params, end_ids):
    """Run a search by recomputing each live beam from the start."""
    import torch

    beams = BeamSearch(params, end_ids)
    while not beams.done:
        ids = torch.tensor([[*prompt, *beam.token_ids] for beam in beams.live])
        with torch.no_grad():
            logprobs = model(ids).logits[:, -1].float().log_softmax(-1)
        best = logprobs.topk(min(beams.num_candidates, logprobs.shape[1]), dim=-1)
        before = beams.live
        steps = beams.advance(
            [
                list(zip(ids, values, strict=True))
                for ids, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
            ]
        )
        for step, beam in zip(steps, beams.live, strict=True):
            assert beam.token_ids == (*before[step.parent].token_ids, step.token_id)
    return beams.results()


@pytest.mark.parametrize("width", [1, 2, 4, 7])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("end_ids", [(), (2,), (2, 5, 9, 11, 30)], ids=str)
def test_hypotheses_equal_transformers(tiny_model, width, length_penalty, end_ids):
    """All returned sequences and scores are transformers', with no, one and many end tokens."""
    import torch

    params = BeamSearchParams(beam_width=width, max_tokens=9, length_penalty=length_penalty)
    for seed in range(3):
        prompt = torch.randint(12, 30, (5,), generator=torch.Generator().manual_seed(seed)).tolist()
        ids = torch.tensor([prompt])
        tiny_model.generation_config.eos_token_id = list(end_ids) or None
        if width == 1:  # transformers has no beam search of one beam: it is greedy
            output = tiny_model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=9, do_sample=False, pad_token_id=39
            )
            wanted, scores = output.tolist(), None
        else:
            output = tiny_model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=9,
                num_beams=width,
                num_return_sequences=width,
                do_sample=False,
                length_penalty=length_penalty,
                early_stopping=False,
                pad_token_id=39,
                return_dict_in_generate=True,
                output_scores=True,
            )
            wanted, scores = output.sequences.tolist(), output.sequences_scores.tolist()
        results = search(tiny_model, prompt, params, end_ids)
        if scores is None:
            assert results[0].token_ids == trimmed(wanted[0][5:], end_ids)
            continue
        assert [result.token_ids for result in results] == [trimmed(tokens[5:], end_ids) for tokens in wanted]
        assert [result.score for result in results] == pytest.approx(scores, abs=1e-4)
        for result in results:
            assert result.ended == (result.token_ids[-1] in end_ids)
            assert result.score == pytest.approx(result.cumulative_logprob / len(result.token_ids) ** length_penalty)


def trimmed(tokens, end_ids):
    """Up to the end token, without the padding after it."""
    for place, token_id in enumerate(tokens):
        if token_id in end_ids:
            return tuple(tokens[: place + 1])
    return tuple(tokens)


def test_a_step_by_hand():
    """The prompt alone lives first; the best continuations over all beams replace it, and end tokens finish."""
    beams = BeamSearch(BeamSearchParams(beam_width=2, max_tokens=5), end_ids=[0])
    assert beams.live == [Beam()]
    assert beams.num_candidates == 4
    assert beams.advance([[(7, -1.0), (8, -1.5), (0, -1.8), (9, -3.0)]]) == [BeamStep(0, 7), BeamStep(0, 8)]
    assert beams.live == [Beam((7,), -1.0), Beam((8,), -1.5)]
    assert beams.results() == [], "an end token beyond the width only stood by"
    steps = beams.advance([[(0, -0.1), (5, -2.0), (6, -2.5)], [(4, -0.1), (0, -3.0)]])
    assert steps == [BeamStep(1, 4), BeamStep(0, 5)]
    (ended,) = beams.results()
    assert (ended.token_ids, ended.cumulative_logprob, ended.ended) == ((7, 0), -1.1, True)
    assert ended.score == pytest.approx(-0.55)
    assert not beams.done


def test_it_stops_when_nothing_better_can_come():
    """With as many results as beams, a live beam that scores no better ends the search, and nothing lives on."""
    beams = BeamSearch(BeamSearchParams(beam_width=1, max_tokens=50), end_ids=[0])
    beams.advance([[(7, -1.0), (8, -1.1)]])
    assert beams.advance([[(0, -0.1), (3, -4.0)]]) == []
    assert beams.done
    assert beams.live == []
    assert [result.token_ids for result in beams.results()] == [(7, 0)]


def test_the_length_ends_it():
    """At ``max_tokens`` the live beams are the results, best first."""
    beams = BeamSearch(BeamSearchParams(beam_width=3, max_tokens=1), end_ids=[0])
    tokens = [(5, -0.5), (0, -0.7), (6, -0.9), (7, -1.0), (8, -2.0), (9, -math.inf)]
    assert beams.advance([tokens]) == []
    assert [(result.token_ids, result.ended) for result in beams.results()] == [
        ((5,), False),
        ((0,), True),
        ((6,), False),
    ]
    assert beams.done


def test_a_small_vocabulary_has_fewer_beams():
    """Where there are fewer continuations than beams, all of them live."""
    beams = BeamSearch(BeamSearchParams(beam_width=8, max_tokens=3), end_ids=[])
    assert len(beams.advance([[(0, -0.5), (1, -1.0)]])) == 2
    assert len(beams.advance([[(0, -0.5), (1, -1.0)]] * 2)) == 4


@pytest.mark.parametrize("count", [0, 2])
def test_candidates_are_one_list_per_beam(count):
    """Too many or too few lists of candidates are a mistake of the caller, as is a step after the end."""
    beams = BeamSearch(BeamSearchParams(beam_width=2, max_tokens=1), end_ids=[])
    with pytest.raises(ValueError, match=f"for 1 live beams, got {count}"):
        beams.advance([[(1, -1.0)]] * count)
    beams.advance([[(1, -1.0), (2, -2.0)]])
    with pytest.raises(ValueError, match="for 0 live beams, got 0"):
        beams.advance([])
