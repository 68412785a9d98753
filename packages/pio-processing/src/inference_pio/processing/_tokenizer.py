"""The tokenizer: text to token ids and back, whatever file it came from."""

from __future__ import annotations

from functools import cached_property
from itertools import groupby
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, overload

from inference_pio.interfaces import InvalidRequestError, TemplateError
from inference_pio.processing._detokenizer import strip_leading_spaces
from inference_pio.processing._template import ChatTemplate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import tokenizers

    from inference_pio.processing._pieces import PieceRule

DEFAULT_TEMPLATE = "default"
TOOL_TEMPLATE = "tool_use"


class Tokenizer:
    """Text to token ids and back, with the chat templates that came along.

    Made by :func:`tokenizer_from_folder` or :func:`tokenizer_from_gguf`. Safe to share between threads.

    Args:
        backend: The vocabulary, normaliser and pre-tokenizer. Owned by this object from now on.
        rule: How its tokens turn into bytes.
        special_tokens: Named special tokens by role, such as ``{"bos_token": "<s>"}``: what templates see.
        chat_templates: Jinja sources by name; ``"default"`` is the one used unless another is asked for.
        prefix: Ids put before every encoded text, beyond what ``backend`` itself does.
        suffix: Ids put after it.
        end_token_ids: Tokens that end an answer, beyond the end-of-sequence token.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        rule: PieceRule,
        *,
        special_tokens: Mapping[str, str],
        chat_templates: Mapping[str, str],
        prefix: Sequence[int] = (),
        suffix: Sequence[int] = (),
        end_token_ids: Sequence[int] = (),
    ) -> None:
        self._backend = backend
        self._rule = rule
        self._special_tokens = MappingProxyType(dict(special_tokens))
        self._prefix = list(prefix)
        self._suffix = list(suffix)
        self._special_ids = frozenset(
            token_id for token_id, token in backend.get_added_tokens_decoder().items() if token.special
        )
        eos = self.eos_token_id
        self._end_token_ids = tuple(dict.fromkeys((*(() if eos is None else (eos,)), *end_token_ids)))
        self._templates = MappingProxyType(
            {name: ChatTemplate(source, special_tokens=special_tokens) for name, source in chat_templates.items()}
        )
        self._bytes: dict[int, bytes] = {}

    def encode(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of ``text``.

        Args:
            text: Any string.
            add_special_tokens: Add the tokens that the model expects around a text, such as the beginning of sequence.
                Rendered chat templates carry their own: leave this off for them.
            parse_special: Whether special tokens spelled out in ``text`` become those tokens; otherwise they are
                ordinary text.

        Raises:
            InvalidRequestError: ``text`` has a lone surrogate, which has no UTF-8.
        """
        backend = self._backend if parse_special else self._literal_backend
        try:
            ids: list[int] = backend.encode(text, add_special_tokens=add_special_tokens).ids
        except TypeError:
            if isinstance(text, str):
                _check_utf8(text)
            raise
        return [*self._prefix, *ids, *self._suffix] if add_special_tokens else ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of ``ids``; every maximal invalid part of its UTF-8 becomes one U+FFFD.

        Raises:
            InvalidRequestError: An id that the tokenizer does not have.
        """
        if skip_special_tokens:
            ids = [token_id for token_id in ids if token_id not in self._special_ids]
        joined = b"".join([self.token_bytes(token_id, first=index == 0) for index, token_id in enumerate(ids)])
        text = joined.decode(errors="replace")
        return strip_leading_spaces(text, self._rule.strip)[0] if self._rule.strip else text

    def token_bytes(self, token_id: int, *, first: bool = False) -> bytes:
        """What a token contributes to the UTF-8 of a text; ``first`` if it is the first of the text.

        Raises:
            InvalidRequestError: The tokenizer has no such token.
        """
        if first:
            return self._rule.first_to_bytes(self.id_to_token(token_id))
        piece = self._bytes.get(token_id)
        if piece is None:
            piece = self._bytes[token_id] = self._rule.to_bytes(self.id_to_token(token_id))
        return piece

    def id_to_token(self, token_id: int) -> str:
        """A token as the vocabulary spells it.

        Raises:
            InvalidRequestError: The tokenizer has no such token.
        """
        token = self._backend.id_to_token(token_id) if 0 <= token_id < 2**32 else None
        if token is None:
            raise InvalidRequestError(
                f"token id {token_id} is not in the vocabulary", hint=f"ids go up to {self._largest_id}"
            )
        return token

    def token_to_id(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it, or None if it has none."""
        return self._backend.token_to_id(token)

    @cached_property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included. Ids may have gaps, and a model's embedding may be larger."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens that are left out of decoded text unless asked for."""
        return self._special_ids

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """Named special tokens by role, such as ``{"bos_token": "<s>"}``."""
        return self._special_tokens

    @property
    def bos_token_id(self) -> int | None:
        """The beginning-of-sequence token."""
        return self._named_id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        """The end-of-sequence token."""
        return self._named_id("eos_token")

    @property
    def end_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: the end of sequence, and those that end a turn or a message."""
        return self._end_token_ids

    @property
    def leading_spaces_stripped(self) -> int:
        """How many leading spaces decoding removes at most, because encoding puts them there."""
        return self._rule.strip

    @property
    def chat_template(self) -> ChatTemplate | None:
        """The template used unless another is asked for, or None."""
        return self._templates.get(DEFAULT_TEMPLATE)

    @property
    def chat_templates(self) -> Mapping[str, ChatTemplate]:
        """All templates that came with the tokenizer, by name."""
        return self._templates

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = ...,
        tools: Sequence[Mapping[str, object]] | None = ...,
        tokenize: Literal[False] = ...,
        chat_template: str | None = ...,
        documents: Sequence[Mapping[str, object]] | None = ...,
        **kwargs: object,
    ) -> str: ...

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = ...,
        tools: Sequence[Mapping[str, object]] | None = ...,
        tokenize: Literal[True],
        chat_template: str | None = ...,
        documents: Sequence[Mapping[str, object]] | None = ...,
        **kwargs: object,
    ) -> list[int]: ...

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = ...,
        tools: Sequence[Mapping[str, object]] | None = ...,
        tokenize: bool,
        chat_template: str | None = ...,
        documents: Sequence[Mapping[str, object]] | None = ...,
        **kwargs: object,
    ) -> str | list[int]: ...

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        tokenize: bool = False,
        chat_template: str | None = None,
        documents: Sequence[Mapping[str, object]] | None = None,
        **kwargs: object,
    ) -> str | list[int]:
        """The prompt of a conversation.

        Args:
            messages: Mappings with ``role`` and ``content`` (text, or text parts).
            add_generation_prompt: End with what starts the assistant's answer.
            tools: JSON schemas of the tools that the model may call.
            tokenize: Return token ids instead of text.
            chat_template: Name of one of :attr:`chat_templates`, or the source of another template. By default
                ``tool_use`` where there is one and ``tools`` are given, else ``default``.
            documents: Documents for templates that know them.
            kwargs: More variables for the template.

        Raises:
            TemplateError: There is no template, or it fails, refuses the messages or exceeds its limits.
            InvalidRequestError: Messages, tools or variables of the wrong shape.
        """
        template = self._choose_template(chat_template, with_tools=tools is not None)
        text = template.render(
            messages, add_generation_prompt=add_generation_prompt, tools=tools, documents=documents, **kwargs
        )
        return self.encode(text, add_special_tokens=False) if tokenize else text

    def _choose_template(self, wanted: str | None, *, with_tools: bool) -> ChatTemplate:
        if wanted is not None:
            return self._templates.get(wanted) or ChatTemplate(wanted, special_tokens=self._special_tokens)
        name = TOOL_TEMPLATE if with_tools and TOOL_TEMPLATE in self._templates else DEFAULT_TEMPLATE
        if name in self._templates:
            return self._templates[name]
        raise TemplateError(
            "the model has no chat template",
            hint=f"give one with chat_template= (its own are named {', '.join(sorted(self._templates))})"
            if self._templates
            else "give one with chat_template=, or a plain prompt instead of messages",
        )

    def _named_id(self, role: str) -> int | None:
        token = self._special_tokens.get(role)
        return None if token is None else self._backend.token_to_id(token)

    @cached_property
    def _largest_id(self) -> int:
        return max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1)

    @cached_property
    def _literal_backend(self) -> tokenizers.Tokenizer:
        """The same tokenizer, blind to special tokens in the text: another object, so that no thread is affected."""
        import tokenizers

        twin = tokenizers.Tokenizer(self._backend.model)
        for part in ("normalizer", "pre_tokenizer", "post_processor"):
            if (value := getattr(self._backend, part)) is not None:
                setattr(twin, part, value)
        # In the order of their ids, tokens beyond the model's own vocabulary get the ids that they have.
        added = [token for _, token in sorted(self._backend.get_added_tokens_decoder().items())]
        for special, group in groupby(added, key=lambda token: token.special):
            if special:
                twin.add_special_tokens(list(group))
            else:
                twin.add_tokens(list(group))
        twin.encode_special_tokens = True
        return twin


def _check_utf8(text: str) -> None:
    """Say where a string has no UTF-8; the library below only says that it is not a string."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"text has a lone surrogate {text[error.start]!r} at position {error.start}",
            hint="replace it, or decode the bytes it came from as UTF-8",
        ) from None
