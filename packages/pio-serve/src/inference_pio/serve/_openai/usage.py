"""What a request used, as every endpoint reports it."""

from __future__ import annotations

import msgspec


class PromptDetails(msgspec.Struct):
    """Of the prompt's tokens.

    Attributes:
        cached_tokens: Those that were found in the cache.
    """

    cached_tokens: int = 0


class CompletionDetails(msgspec.Struct):
    """Of the answer's tokens.

    Attributes:
        reasoning_tokens: Those of its reasoning.
    """

    reasoning_tokens: int = 0


class Usage(msgspec.Struct, kw_only=True):
    """Tokens of one request.

    Attributes:
        prompt_tokens: Of its prompts.
        completion_tokens: Of its continuations.
        total_tokens: Of both.
        prompt_tokens_details: More about the first.
        completion_tokens_details: More about the second.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


def usage(*, prompt: int, completion: int, cached: int = 0, reasoning: int = 0) -> Usage:
    """The report."""
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptDetails(cached),
        completion_tokens_details=CompletionDetails(reasoning),
    )
