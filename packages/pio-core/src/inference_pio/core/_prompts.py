"""Prompts in all the shapes that callers give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, NamedTuple, TypeGuard, cast

from inference_pio.interfaces import InvalidRequestError, SamplingParams

if TYPE_CHECKING:
    from inference_pio.processing import Tokenizer

Prompt = str | Sequence[int] | Mapping[str, object]
"""Text, token ids, ``{"prompt": text}`` or ``{"prompt_token_ids": ids}``; with both, the tokens come from the text."""

Message = Mapping[str, object]
Conversation = Sequence[Message]


class TokenizedPrompt(NamedTuple):
    """A prompt as the engine takes it."""

    token_ids: tuple[int, ...]
    text: str | None


def as_prompt_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or many, always as a list.

    Raises:
        InvalidRequestError: Neither.
    """
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if isinstance(prompts, Sequence):
        if prompts and all(_is_integer(item) for item in prompts):
            return [cast("Sequence[int]", prompts)]
        return list(cast("Sequence[Prompt]", prompts))
    raise InvalidRequestError(f"prompts must be text, token ids or a list of either, got {type(prompts).__name__}")


def tokenize_prompt(prompt: Prompt, tokenizer: Tokenizer | None) -> TokenizedPrompt:
    """The tokens of ``prompt``; text needs a tokenizer.

    Raises:
        InvalidRequestError: The prompt has another shape, or is text and there is no tokenizer.
    """
    if isinstance(prompt, Mapping):
        if "prompt_token_ids" in prompt:
            text = prompt.get("prompt")
            ids = tokenize_prompt(cast("Sequence[int]", prompt["prompt_token_ids"]), tokenizer).token_ids
            return TokenizedPrompt(ids, text if isinstance(text, str) else None)
        if "prompt" not in prompt:
            raise InvalidRequestError(f"a prompt mapping needs 'prompt' or 'prompt_token_ids', got {sorted(prompt)}")
        prompt = cast("str", prompt["prompt"])
    if isinstance(prompt, str):
        if tokenizer is None:
            raise InvalidRequestError(
                "this model has no tokenizer files, so text cannot be tokenized", hint="give token ids instead"
            )
        return TokenizedPrompt(tuple(tokenizer.encode(prompt)), prompt)
    if isinstance(prompt, Sequence) and all(_is_integer(item) for item in prompt):
        return TokenizedPrompt(tuple(int(item) for item in prompt), None)
    raise InvalidRequestError(f"a prompt must be text or a list of token ids, got {type(prompt).__name__}")


def pair_with_params(
    count: int, params: SamplingParams | Sequence[SamplingParams] | None, default: SamplingParams
) -> list[SamplingParams]:
    """Sampling parameters for each of ``count`` prompts.

    Raises:
        InvalidRequestError: A list of another length, or something that is not sampling parameters.
    """
    if params is None:
        return [default] * count
    if isinstance(params, SamplingParams):
        return [params] * count
    if not isinstance(params, Sequence) or not all(isinstance(item, SamplingParams) for item in params):
        raise InvalidRequestError(f"sampling_params must be SamplingParams or a list of them, got {params!r}")
    if len(params) != count:
        raise InvalidRequestError(f"got {len(params)} sampling parameters for {count} prompts")
    return list(params)


def pair_with_priorities(count: int, priority: int | Sequence[int]) -> list[int]:
    """A priority for each of ``count`` prompts.

    Raises:
        InvalidRequestError: A list of another length, or something that is not an integer.
    """
    given: Sequence[object] = priority if isinstance(priority, Sequence) else [priority] * count
    if not all(_is_integer(item) for item in given):
        raise InvalidRequestError(f"priority must be an integer or a list of integers, got {priority!r}")
    if len(given) != count:
        raise InvalidRequestError(f"got {len(given)} priorities for {count} prompts")
    return [int(item) for item in cast("Sequence[int]", given)]


def as_conversations(messages: Conversation | Sequence[Conversation]) -> list[Conversation]:
    """One conversation or many, always as a list.

    Raises:
        InvalidRequestError: Neither, or an empty one.
    """
    items: object = messages  # a caller may hand over anything, whatever the signature says
    if not isinstance(items, Sequence) or isinstance(items, str) or not items:
        raise InvalidRequestError(f"messages must be a non-empty list of messages, got {items!r}")
    if all(isinstance(item, Mapping) for item in items):
        return [items]
    if all(isinstance(item, Sequence) and not isinstance(item, str) for item in items):
        return [conversation for item in items for conversation in as_conversations(item)]
    raise InvalidRequestError("messages must be dicts with 'role' and 'content', or lists of such lists")


def is_conversation(prompt: object) -> TypeGuard[Conversation]:
    """Whether ``prompt`` is a list of messages."""
    return (
        isinstance(prompt, Sequence)
        and not isinstance(prompt, str)
        and len(prompt) > 0
        and all(isinstance(item, Mapping) for item in prompt)
    )


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
