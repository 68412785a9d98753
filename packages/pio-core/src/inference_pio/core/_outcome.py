"""What a chosen token does to its sequence, and what callers see of a request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inference_pio.interfaces import (
    CompletionOutput,
    FinishReason,
    InvalidRequestError,
    Logprob,
    RequestOutput,
    TokenEvent,
)

if TYPE_CHECKING:
    from collections.abc import Collection

    from inference_pio.core._sequence import RequestState, Sequence
    from inference_pio.interfaces import PositionLogprobs
    from inference_pio.processing import Tokenizer


def take_token(sequence: Sequence, token_id: int, eos_token_ids: Collection[int]) -> str:
    """Append ``token_id`` to ``sequence`` and see whether it ends there; returns the text that became certain."""
    params, output, detokenizer = sequence.state.params, sequence.output, sequence.detokenizer
    assert sequence.sampler is not None
    sequence.sampler.record(token_id)
    sequence.tokens.append(token_id)
    output.token_ids.append(token_id)
    stopped_by_id = token_id in (params.stop_token_ids or ())
    if stopped_by_id or (token_id in eos_token_ids and not params.ignore_eos):
        output.finish_reason = FinishReason.STOP
        output.stop_reason = token_id if stopped_by_id else None
    elif sequence.structure is not None:
        sequence.structure.advance(token_id)
    if detokenizer is None:
        text = ""
    elif output.finished:
        text = detokenizer.finish()  # the token that ends a text is not part of it
    else:
        text = detokenizer.push(token_id)
        if detokenizer.stopped_by is not None:
            output.finish_reason = FinishReason.STOP
            output.stop_reason = detokenizer.stopped_by
    if not output.finished and len(sequence.tokens) >= sequence.max_length:
        output.finish_reason = FinishReason.LENGTH
        text += detokenizer.finish() if detokenizer is not None else ""
    output.text += text
    return text


def named_logprobs(candidates: dict[int, tuple[float, int]], tokenizer: Tokenizer | None) -> PositionLogprobs:
    """Candidates of one position with the text of each."""
    return {
        token_id: Logprob(logprob, rank, _decode(tokenizer, token_id))
        for token_id, (logprob, rank) in candidates.items()
    }


def request_output(state: RequestState, tokenizer: Tokenizer | None) -> RequestOutput:
    """The request so far. The lists of a sampled continuation are the engine's own, so read only."""
    finished = state.finished
    return RequestOutput(
        request_id=state.request.request_id,
        prompt=state.request.prompt,
        prompt_token_ids=list(state.request.prompt_token_ids),
        prompt_logprobs=state.prompt_logprobs,
        outputs=_outputs(state, tokenizer, finished=finished),
        finished=finished,
        metrics=state.metrics() if finished else None,
        error=state.error,
        embedding=state.embedding,
    )


def final_events(state: RequestState, tokenizer: Tokenizer | None) -> list[TokenEvent]:
    """One event per continuation that comes back, for requests whose continuations are known only at the end."""
    return [
        TokenEvent(
            request_id=state.request.request_id,
            index=output.index,
            token_id=output.token_ids[-1] if output.token_ids else None,
            text=output.text,
            finish_reason=output.finish_reason,
            stop_reason=output.stop_reason,
            metrics=state.metrics(),
            error=state.error,
        )
        for output in _outputs(state, tokenizer, finished=True)
    ]


def _outputs(state: RequestState, tokenizer: Tokenizer | None, *, finished: bool) -> list[CompletionOutput]:
    if state.beams is not None:
        return _beam_outputs(state, tokenizer) if finished else []
    outputs = [sequence.output for sequence in state.sequences]
    if not state.picks_best:
        return outputs
    if not finished:
        return []
    ranked = sorted(outputs, key=lambda output: -(output.cumulative_logprob or 0.0))[: state.params.n]
    for index, output in enumerate(ranked):
        output.index = index
    return ranked


def _beam_outputs(state: RequestState, tokenizer: Tokenizer | None) -> list[CompletionOutput]:
    beams = state.beams
    assert beams is not None
    found = [(beam.token_ids, beam.cumulative_logprob, beam.ended) for beam in beams.results()]
    if state.finish_reason is not None:  # ended before its time: what lives is what there is
        found += [(beam.token_ids, beam.cumulative_logprob, False) for beam in beams.live]
    return [
        CompletionOutput(
            index=index,
            text="" if tokenizer is None else tokenizer.decode(token_ids),
            token_ids=list(token_ids),
            cumulative_logprob=logprob,
            finish_reason=state.finish_reason or (FinishReason.STOP if ended else FinishReason.LENGTH),
        )
        for index, (token_ids, logprob, ended) in enumerate(found[: beams.params.beam_width])
    ]


def _decode(tokenizer: Tokenizer | None, token_id: int) -> str | None:
    """Text of one token by itself, its leading space included; partial UTF-8 shows as U+FFFD."""
    if tokenizer is None:
        return None
    try:
        return tokenizer.token_bytes(token_id).decode(errors="replace")
    except InvalidRequestError:
        return None  # embeddings are often padded beyond the tokenizer's vocabulary
