"""What plain decoding gives, as a judge of continuations: one forward of each whole sequence, alone, without an engine.

Every position is judged by itself, given the tokens before it, so that a tie broken the other way ends nothing: a token
is right if plain decoding with a logarithm of the probabilities that is off by no more than a tolerance could give it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from inference_pio.core import SamplerState
from inference_pio.interfaces import FinishReason, SamplingParams
from inference_pio.testing._compare import ParityError, compare
from inference_pio.testing._run import run_whole

if TYPE_CHECKING:
    from torch import Tensor

    from inference_pio.interfaces import CompletionOutput, Logprob, Request, RequestOutput
    from inference_pio.testing._load import LoadedModel


def judge(what: str, loaded: LoadedModel, request: Request, output: RequestOutput, *, tolerance: float) -> None:
    """Hold each continuation of ``request`` to plain decoding: tokens, and their log-probabilities.

    Args:
        what: How the output came about, for the report.
        loaded: The model.
        request: As :func:`make_request` makes it.
        output: What the engine gave.
        tolerance: Largest absolute difference of log-probabilities.

    Raises:
        ParityError: A continuation failed, is too short or too long, or is another one.
    """
    params = request.params
    assert isinstance(params, SamplingParams)
    prompt = request.prompt_token_ids
    for completion in output.outputs:
        place = f"{what}, {request.request_id!r}, continuation {completion.index}"
        _check_length(place, params, output, completion)
        tokens = torch.tensor(completion.token_ids)
        logits = run_whole(loaded, [*prompt, *completion.token_ids[:-1]])[len(prompt) - 1 :]
        logprobs = logits.cpu().double().log_softmax(dim=-1)  # (tokens, V)
        reported = [position[token].logprob for token, position in _reported(completion)]
        chosen = logprobs.gather(1, tokens[:, None])
        compare(f"{place}: log-probabilities", torch.tensor(reported)[:, None], chosen, tolerance=tolerance)
        if params.greedy:
            _check_greedy(place, tokens, logprobs, tolerance)
        else:
            sampler = SamplerState(params, prompt, index=completion.index, end_ids=())
            draws = torch.tensor([sampler.uniform(ahead) for ahead in range(len(tokens))], dtype=torch.float64)
            _check_drawn(place, tokens, logprobs, draws, tolerance)


def _reported(completion: CompletionOutput) -> list[tuple[int, dict[int, Logprob]]]:
    return list(zip(completion.token_ids, completion.logprobs or [], strict=True))


def _check_length(place: str, params: SamplingParams, output: RequestOutput, completion: CompletionOutput) -> None:
    if output.error is not None:
        raise ParityError(f"{place}: {output.error}")
    count = len(completion.token_ids)
    if count != params.max_tokens or completion.finish_reason is not FinishReason.LENGTH:
        raise ParityError(f"{place}: {params.max_tokens} tokens wanted, got {count} ({completion.finish_reason})")


def _check_greedy(place: str, tokens: Tensor, logprobs: Tensor, tolerance: float) -> None:
    lost = logprobs.max(dim=1).values - logprobs.gather(1, tokens[:, None])[:, 0]
    for row in torch.nonzero(lost > tolerance)[:1, 0].tolist():
        raise ParityError(
            f"{place}: token {row} is {int(tokens[row])}, and {int(logprobs[row].argmax())} is more likely: its "
            f"log-probability is higher by {float(lost[row]):.3g}"
        )


def _check_drawn(place: str, tokens: Tensor, logprobs: Tensor, draws: Tensor, tolerance: float) -> None:
    """A draw lies in the chosen token's share of the cumulative probability, in order of token ids."""
    ends = logprobs.exp().cumsum(dim=1)
    high = ends.gather(1, tokens[:, None])[:, 0]
    low = high - logprobs.exp().gather(1, tokens[:, None])[:, 0]
    for row in torch.nonzero((draws < low - tolerance) | (draws > high + tolerance))[:1, 0].tolist():
        right = int((ends[row] > draws[row]).int().argmax())
        raise ParityError(f"{place}: token {row} is {int(tokens[row])}, and its draw gives {right}")
