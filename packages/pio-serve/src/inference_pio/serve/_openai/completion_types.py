"""Plain completions on the wire."""

import msgspec
from msgspec import UNSET, UnsetType

from inference_pio.serve._openai.bounded import TopLogprobs
from inference_pio.serve._openai.sampling_fields import SamplingFields
from inference_pio.serve._openai.usage import Usage


class CompletionRequest(SamplingFields, kw_only=True, forbid_unknown_fields=True):
    """``POST /v1/completions``.

    Attributes:
        prompt: Text, token ids, or a list of either.
        echo: Begin each text with its prompt.
        logprobs: Report log-probabilities, and those of this many of the likeliest tokens.
        best_of: ``n``, or left out.
        suffix: Null: nothing can be inserted.
        add_special_tokens: Begin prompts of text with what the model expects there.
    """

    prompt: str | list[str | int | list[int]]
    echo: bool | None = None
    logprobs: TopLogprobs | None = None
    best_of: int | None = None
    suffix: str | None = None
    add_special_tokens: bool | None = None


class CompletionLogprobs(msgspec.Struct):
    """Log-probabilities of a text, as parallel lists by token.

    Attributes:
        tokens: Texts of the tokens.
        token_logprobs: Of the tokens; None for the first of a prompt, which nothing predicts.
        top_logprobs: Of the likeliest at each place, by their texts.
        text_offset: Where each begins in the text, in characters.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct, kw_only=True):
    """A text, or a piece of one.

    Attributes:
        index: Which: the prompt's place times ``n``, and which of its continuations.
        text: The text.
        logprobs: If they were asked for.
        finish_reason: Why it ended; None while it goes on.
    """

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None


class Completion(msgspec.Struct, kw_only=True):
    """The reply, or a piece of one.

    Attributes:
        id: Of the reply.
        object: ``"text_completion"``.
        created: When it was asked for, in seconds since 1970.
        model: Who continued.
        choices: The texts.
        usage: Tokens; in a stream in the last piece, where it was asked for.
    """

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
