"""Prompts from a file: a JSON object per line, or ShareGPT's list of conversations.

A line is ``{"prompt": text}`` or ``{"messages": [{"role": ..., "content": ...}, ...]}``, with ``"output_tokens"`` (or
``"output_len"``, ``"max_tokens"``) if the length of the answer is known. An entry of ShareGPT is
``{"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": text}, ...]}``: its first turn is the
prompt, and the length of the second that of the answer, at four characters per token, since no tokenizer is here.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from inference_pio.benchmarks._serve_prompts import Prompt
from inference_pio.interfaces import InvalidRequestError, LimitExceededError, MalformedFileError, ModelNotFoundError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from inference_pio.benchmarks._serve_client import Endpoint

MAX_FILE_BYTES = 2 << 30
_CHARACTERS_PER_TOKEN = 4
_LENGTH_KEYS = ("output_tokens", "output_len", "max_tokens")


def read_dataset(path: Path, output_len: int | None, *, default_len: int = 128) -> list[Prompt]:
    """The prompts of a file, in its order.

    Args:
        path: The file.
        output_len: Length of all answers; None for what the file says.
        default_len: Length of an answer where it says nothing.

    Raises:
        ModelNotFoundError: There is no such file.
        MalformedFileError: It holds something else, or no prompt.
        LimitExceededError: It is larger than 2 GiB.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise LimitExceededError(
                path, "document", f"is larger than {MAX_FILE_BYTES} bytes", hint="give a part of it"
            )
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ModelNotFoundError(
            f"no dataset {path}", hint="give a file of JSON lines or in ShareGPT's form"
        ) from error
    except UnicodeDecodeError as error:
        raise MalformedFileError(path, "document", f"is no text in UTF-8: {error}") from error
    if text.lstrip().startswith("["):
        entries = [(f"[{index}]", entry) for index, entry in enumerate(_parse_list(path, text))]
    else:
        lines = enumerate(text.split("\n"), 1)
        entries = [(f"line {number}", _parse(path, f"line {number}", line)) for number, line in lines if line.strip()]
    found = [_prompt(path, place, entry, output_len, default_len) for place, entry in entries]
    prompts = [prompt for prompt in found if prompt is not None]
    if not prompts:
        raise MalformedFileError(path, "document", "holds no prompt")
    return prompts


def choose_prompts(prompts: list[Prompt], count: int | None, generator: np.random.Generator) -> list[Prompt]:
    """``count`` of the prompts in a random order, none twice; None for all in their own order.

    Raises:
        InvalidRequestError: There are fewer.
    """
    if count is None:
        return prompts
    if count > len(prompts):
        problem = f"--num-prompts {count}: the dataset has {len(prompts)}"
        raise InvalidRequestError(problem, hint="asked twice, a prompt would be found in the server's prefix cache")
    return [prompts[index] for index in generator.permutation(len(prompts))[:count]]


def check_endpoint(prompts: list[Prompt], endpoint: Endpoint) -> None:
    """Hold prompts to what the endpoint takes.

    Raises:
        InvalidRequestError: Messages for ``/v1/completions``.
    """
    if endpoint == "completions" and not all(isinstance(prompt.content, str) for prompt in prompts):
        raise InvalidRequestError("the dataset holds messages of chats", hint="add --endpoint chat")


def _parse_list(path: Path, text: str) -> list[object]:
    found = _parse(path, "document", text)
    assert isinstance(found, list)
    return found


def _parse(path: Path, place: str, text: str) -> object:
    try:
        found: object = json.loads(text)
    except RecursionError as error:
        raise MalformedFileError(path, place, "is nested too deeply") from error
    except ValueError as error:
        raise MalformedFileError(path, place, f"is no JSON: {error}") from error
    return found


def _prompt(path: Path, place: str, entry: object, output_len: int | None, default_len: int) -> Prompt | None:
    """The prompt of an entry; None for a conversation without an answer, which ShareGPT has."""
    if not isinstance(entry, dict):
        raise MalformedFileError(path, place, "is no object")
    if "conversations" in entry:
        return _share_gpt(path, place, entry["conversations"], output_len)
    length = output_len if output_len is not None else _length(path, place, entry, default_len)
    if isinstance(entry.get("prompt"), str) and entry["prompt"]:
        return Prompt(entry["prompt"], length)
    messages = entry.get("messages")
    if isinstance(messages, list) and messages and all(_is_message(message) for message in messages):
        return Prompt(tuple(messages), length)
    raise MalformedFileError(path, place, 'has neither "prompt" (text), "messages" nor "conversations"')


def _share_gpt(path: Path, place: str, turns: object, output_len: int | None) -> Prompt | None:
    if not isinstance(turns, list) or not all(
        isinstance(turn, dict) and isinstance(turn.get("value"), str) for turn in turns
    ):
        raise MalformedFileError(path, f"{place}.conversations", 'is no list of {"from", "value"}')
    if len(turns) < 2 or not turns[0]["value"] or not turns[1]["value"]:
        return None
    length = output_len or -(-len(turns[1]["value"]) // _CHARACTERS_PER_TOKEN)
    return Prompt(turns[0]["value"], length)


def _length(path: Path, place: str, entry: dict[str, object], default_len: int) -> int:
    for key in _LENGTH_KEYS:
        if key in entry:
            value = entry[key]
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 10**7:
                raise MalformedFileError(path, f"{place}.{key}", "is no number of tokens")
            return value
    return default_len


def _is_message(message: object) -> bool:
    return isinstance(message, dict) and isinstance(message.get("role"), str) and "content" in message
