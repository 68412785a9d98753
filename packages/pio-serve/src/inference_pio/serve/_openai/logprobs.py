"""Log-probabilities of tokens, in the shape of each endpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inference_pio.interfaces import FinishReason
from inference_pio.serve._openai.chat_types import PositionLogprob, TokenLogprob
from inference_pio.serve._openai.completion_types import CompletionLogprobs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inference_pio.interfaces import PositionLogprobs, TokenEvent
    from inference_pio.processing import Tokenizer

_LEAST = -9999.0
"""JSON has no infinity: what cannot come at all is this unlikely, as in vLLM."""


def names_token(event: TokenEvent) -> bool:
    """Whether a token of the text comes with the event; the model's end token is none."""
    ends = event.finish_reason is FinishReason.STOP and not isinstance(event.stop_reason, str)
    return event.token_id is not None and event.logprobs is not None and not ends


def chat_logprob(event: TokenEvent, tokenizer: Tokenizer, top: int) -> PositionLogprob:
    """The entry of one token.

    Args:
        event: One that names a token.
        tokenizer: Spells it.
        top: How many candidates to list.
    """
    assert event.token_id is not None
    assert event.logprobs is not None
    chosen = _candidate(tokenizer, event.token_id, event.logprobs)
    best = sorted(event.logprobs, key=lambda token_id: event.logprobs[token_id].rank)[:top]  # type: ignore[index]  # checked
    listed = [_candidate(tokenizer, token_id, event.logprobs) for token_id in best]
    return PositionLogprob(chosen.token, chosen.logprob, chosen.bytes, listed)


class CompletionLogprobList:
    """Collects the parallel lists of one text.

    Args:
        tokenizer: Spells the tokens.
        top: How many candidates to list.
        offset: Where the text begins, in characters.
    """

    def __init__(self, tokenizer: Tokenizer, top: int, offset: int = 0) -> None:
        self._tokenizer = tokenizer
        self._top = top
        self._offset = offset
        self._lists = CompletionLogprobs([], [], [], [])

    def add(self, token_id: int, candidates: PositionLogprobs | None) -> None:
        """One more token, with the candidates at its place; None where nothing predicts it."""
        token = _text(self._tokenizer, token_id)
        lists = self._lists
        lists.tokens.append(token)
        lists.text_offset.append(self._offset)
        self._offset += len(token)
        if candidates is None:
            lists.token_logprobs.append(None)
            lists.top_logprobs.append(None)
            return
        lists.token_logprobs.append(max(candidates[token_id].logprob, _LEAST))
        best = sorted(candidates, key=lambda one: candidates[one].rank)[: self._top]
        lists.top_logprobs.append({_text(self._tokenizer, one): max(candidates[one].logprob, _LEAST) for one in best})

    def add_prompt(self, token_ids: Sequence[int], candidates: Sequence[PositionLogprobs | None]) -> None:
        """The tokens of a prompt."""
        for token_id, one in zip(token_ids, candidates, strict=True):
            self.add(token_id, one)

    def take(self) -> CompletionLogprobs:
        """What was added since the last call."""
        taken, self._lists = self._lists, CompletionLogprobs([], [], [], [])
        return taken


def _candidate(tokenizer: Tokenizer, token_id: int, candidates: PositionLogprobs) -> TokenLogprob:
    raw = tokenizer.token_bytes(token_id)
    return TokenLogprob(raw.decode(errors="replace"), max(candidates[token_id].logprob, _LEAST), list(raw))


def _text(tokenizer: Tokenizer, token_id: int) -> str:
    return tokenizer.token_bytes(token_id).decode(errors="replace")
