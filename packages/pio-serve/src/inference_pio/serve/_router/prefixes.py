"""How prompts begin: fingerprints of their blocks, and a bounded memory of those that a replica has read."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

BLOCK_BYTES = 256
"""Of a request's JSON; about 64 tokens of English, a few pages of a cache."""
MAX_BLOCKS = 1024
"""Of one prompt. Where two agree in so much, what follows decides nothing."""
MEMORY_BLOCKS = 32_768
"""Of one replica: 8 MiB of text, about two million tokens, more than most caches hold."""


class _Prompt(msgspec.Struct):
    """What prompts are made of, in the order in which templates write it. Kept as it came."""

    model: msgspec.Raw = msgspec.Raw()
    tools: msgspec.Raw = msgspec.Raw()
    system: msgspec.Raw = msgspec.Raw()
    instructions: msgspec.Raw = msgspec.Raw()
    messages: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()


def prompt_blocks(body: bytes, owner: str) -> list[int]:
    """Fingerprints of the whole blocks of a request's prompt; each stands for its block and all before it.

    Blocks are of the JSON as the client spelled it: a conversation that goes on repeats what it had byte by byte, and
    to read more into it would cost more than a guess is worth.

    Args:
        body: The request. One that is none has no blocks.
        owner: Whose it is; prompts of different owners share no cache.

    Returns:
        At most :data:`MAX_BLOCKS` numbers, made with a secret of this process.
    """
    try:
        prompt = msgspec.json.decode(body, type=_Prompt)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return []  # what is wrong with it, a replica says
    text = b"\0".join(bytes(part) for part in msgspec.structs.astuple(prompt))
    chain = hash(owner)
    blocks: list[int] = []
    for start in range(0, min(len(text) // BLOCK_BYTES, MAX_BLOCKS) * BLOCK_BYTES, BLOCK_BYTES):
        chain = hash((chain, text[start : start + BLOCK_BYTES]))
        blocks.append(chain)
    return blocks


class PrefixMemory:
    """The blocks that came last, up to a number.

    Args:
        capacity: How many.
    """

    def __init__(self, capacity: int = MEMORY_BLOCKS) -> None:
        self._capacity = capacity
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def matched(self, blocks: Sequence[int]) -> int:
        """How many of ``blocks``, from the first on, are known."""
        for place, block in enumerate(blocks):
            if block not in self._blocks:
                return place
        return len(blocks)

    def add(self, blocks: Sequence[int]) -> None:
        """Know ``blocks``, and forget what was not seen for longest where there are too many."""
        # Backwards, so that the ends of prompts are forgotten before what they begin with: without that they are lost.
        for block in reversed(blocks):
            self._blocks[block] = None
            self._blocks.move_to_end(block)
        while len(self._blocks) > self._capacity:
            self._blocks.popitem(last=False)

    def clear(self) -> None:
        """Know nothing."""
        self._blocks.clear()
