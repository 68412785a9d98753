"""Tokens on the wire, in vLLM's shape."""

from typing import Any

import msgspec

from inference_pio.serve._openai.chat_types import ChatMessage, Tool


class TokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A text or a conversation.

    Attributes:
        model: Whose tokenizer.
        prompt: The text.
        messages: The conversation, instead.
        add_special_tokens: Begin a text with what the model expects there.
        add_generation_prompt: End a conversation with the header of the assistant's turn.
        tools: Tools that the template is to describe.
        chat_template_kwargs: Variables of the template.
        return_token_strs: Also spell the tokens.
    """

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    tools: list[Tool] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool = False


class Tokens(msgspec.Struct, kw_only=True):
    """Tokens.

    Attributes:
        count: How many.
        max_model_len: How many the model takes, prompt and answer together.
        tokens: Their ids.
        token_strs: As the vocabulary spells them, if that was asked for.
    """

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Tokens.

    Attributes:
        model: Whose tokenizer.
        tokens: Their ids.
    """

    model: str | None = None
    tokens: list[int]


class DetokenizedText(msgspec.Struct):
    """A text.

    Attributes:
        prompt: The text, special tokens included.
    """

    prompt: str
