"""Embeddings on the wire."""

from typing import Literal

import msgspec


class EmbeddingRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``POST /v1/embeddings``.

    Attributes:
        input: Text, token ids, or a list of either.
        model: Which model.
        encoding_format: Numbers, or the bytes of float32 numbers, little-endian, in base64.
        dimensions: The model's own number of them, or left out.
        user: Taken without effect.
        pooling: Of vectors by token, their mean or that of the last.
        normalize: Give each vector the length one.
        add_special_tokens: Begin texts with what the model expects there.
    """

    input: str | list[str | int | list[int]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None
    pooling: Literal["mean", "last"] | None = None
    normalize: bool | None = None
    add_special_tokens: bool | None = None


class Embedding(msgspec.Struct, kw_only=True):
    """A vector.

    Attributes:
        object: ``"embedding"``.
        index: Which input it stands for.
        embedding: The vector, as it was asked for.
    """

    object: str = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(msgspec.Struct, kw_only=True):
    """Tokens of one request.

    Attributes:
        prompt_tokens: Of its inputs.
        total_tokens: The same: nothing is generated.
    """

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, kw_only=True):
    """The reply.

    Attributes:
        object: ``"list"``.
        data: A vector for each input, in their order.
        model: Who made them.
        usage: Tokens.
    """

    object: str = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
