"""What a router and its replicas tell each other over the pipes between them: a line of JSON each."""

from typing import Any

import msgspec

KEY_HEADER = b"x-pio-key-id"
"""Whose request it is that a router hands on. Taken from nobody else."""
LABEL_HEADER = b"x-pio-key-label"
"""What metrics and traces call that key. Likewise."""
STOP = b"stop\n"
"""Tells a replica to end what it does, with an error to each open request."""


class Order(msgspec.Struct, kw_only=True):
    """What a replica is to be. It comes through a pipe: arguments and environments can be read by others.

    Attributes:
        place: Its number, from 0.
        socket: Path of the socket to listen at.
        key: What the router shows to be let in.
        models: As ``pio serve`` was told.
        options: Of ``pio serve``, without what only the router needs.
        paths: Names of the options that are paths.
        cpus: Logical processors to run on; None for all that its parent runs on.
    """

    place: int
    socket: str
    key: str
    models: tuple[str, ...]
    options: dict[str, Any]
    paths: list[str] = []
    cpus: list[int] | None = None


class Loaded(msgspec.Struct, kw_only=True, tag=True):
    """A model is there that the replica begins with.

    Attributes:
        name: What requests call it.
        summary: What computes it.
        max_model_len: Its context in tokens.
    """

    name: str
    summary: str
    max_model_len: int


class Failed(msgspec.Struct, kw_only=True, tag=True):
    """What the replica begins with could not be loaded.

    Attributes:
        message: Why.
        hint: What the user can do about it.
        exit_code: That of the error.
    """

    message: str
    hint: str | None
    exit_code: int


class Spent(msgspec.Struct, kw_only=True, tag=True):
    """A request has used tokens.

    Attributes:
        key_id: Whose it was.
        tokens: Of prompt and answer.
    """

    key_id: str
    tokens: int


class Leaving(msgspec.Struct, kw_only=True, tag=True):
    """Somebody asked the replica to end, and not the router: it is to be given nothing more, and then stopped."""


Report = Loaded | Failed | Spent | Leaving


def to_line(message: msgspec.Struct) -> bytes:
    """``message`` as a line."""
    return msgspec.json.encode(message) + b"\n"


def order_from(line: bytes) -> Order:
    """The order in ``line``."""
    return msgspec.json.decode(line, type=Order)


def report_from(line: bytes) -> Report:
    """The report in ``line``."""
    report: Report = msgspec.json.decode(line, type=Report)
    return report
