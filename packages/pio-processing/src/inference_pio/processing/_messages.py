"""Conversations as templates see them: plain JSON values, nothing with methods of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from inference_pio.interfaces import InvalidRequestError

MAX_DEPTH = 64
_REASONING = ("reasoning_content", "thinking", "reasoning")


def plain(value: object, where: str, depth: int = 0) -> object:
    """A copy of ``value`` made of exact built-in types: None, bool, int, float, str, list, tuple and dict.

    Args:
        value: A JSON value; mappings and subclasses of the built-in types are brought back to those.
        where: What it is, for messages.
        depth: How deep it is nested already.

    Raises:
        InvalidRequestError: Anything else, a key that is not a string, or nesting deeper than :data:`MAX_DEPTH`.
    """
    if value is None or type(value) in (str, int, float, bool):
        return value
    if depth >= MAX_DEPTH:
        raise InvalidRequestError(f"{where} is nested deeper than {MAX_DEPTH}")
    if isinstance(value, Mapping):
        made: dict[str, object] = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise InvalidRequestError(f"{where} must have strings as keys, got {key!r:.40}")
            made[str.__str__(key)] = plain(item, f"{where}.{key:.40}", depth + 1)
        return made
    if isinstance(value, list | tuple):
        items = [plain(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    raise InvalidRequestError(
        f"{where} is a {type(value).__name__}; chat templates take JSON values only",
        hint="text, numbers, lists and dicts",
    )


def plain_messages(messages: object, *, keep_parts: bool) -> list[dict[str, object]]:
    """A checked copy of a conversation.

    Reasoning given as ``reasoning_content``, ``thinking`` or ``reasoning`` is there under the first two names, as in
    transformers.

    Args:
        messages: Mappings with ``role``, and mostly ``content``: text, None or a list of parts.
        keep_parts: Leave lists of parts as they are; otherwise their texts are joined by newlines.

    Raises:
        InvalidRequestError: Messages of the wrong shape, or a part that is not text where text is needed.
    """
    if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
        raise InvalidRequestError(f"messages must be a list of dicts, got {type(messages).__name__}")
    checked = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        made = plain(message, where)
        if not isinstance(made, dict):
            raise InvalidRequestError(f"{where} must be a dict with 'role' and 'content', got {type(message).__name__}")
        if not isinstance(made.get("role"), str):
            raise InvalidRequestError(f"{where} must have a 'role' such as 'user', got {made.get('role')!r:.40}")
        if isinstance(made.get("content"), list | tuple) and not keep_parts:
            made["content"] = _joined_parts(made["content"], f"{where}.content")
        checked.append(_with_reasoning(made))
    return checked


def _joined_parts(parts: Sequence[object], where: str) -> str:
    texts = []
    for index, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(text, str):
            raise InvalidRequestError(
                f"{where}[{index}] must be a text part for this model, got {part if kind is None else kind!r:.60}",
                hint="write {'type': 'text', 'text': ...}, or plain text as content",
            )
        texts.append(text)
    return "\n".join(texts)


def _with_reasoning(message: dict[str, object]) -> dict[str, object]:
    reasoning = next((message[key] for key in _REASONING if message.get(key) is not None), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}
