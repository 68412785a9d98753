"""What goes over the admin socket."""

from __future__ import annotations

import msgspec


class AdminModel(msgspec.Struct, kw_only=True):
    """A model, for whoever runs the server.

    Attributes:
        id: What requests call it.
        state: ``"unloaded"``, ``"loading"``, ``"loaded"``, ``"unloading"`` or ``"failed"``.
        memory_bytes: Set aside for it now: weights and cache.
        open_requests: Requests that use it or wait for it.
        idle_s: Seconds since the last of them began or ended; null where there was none.
        last_used: When that was, in seconds since 1970; null where there was none.
        max_model_len: Its context in tokens; null before it was first loaded.
        loads: How often it was loaded.
        unloads: How often it was unloaded.
        load_failures: How often loading it failed.
        load_s: Seconds that its loads took together.
        problem: Why it could not be loaded last time; null if it could.
        retry_s: Seconds until a request may have it loaded again; null if one may now.
    """

    id: str
    state: str
    memory_bytes: int
    open_requests: int
    idle_s: float | None
    last_used: float | None
    max_model_len: int | None
    loads: int
    unloads: int
    load_failures: int
    load_s: float
    problem: str | None
    retry_s: float | None


class AdminModels(msgspec.Struct, kw_only=True):
    """All models.

    Attributes:
        data: One entry for each.
        memory_bytes: Set aside for all of them.
        memory_budget: What they may take together; null for no bound.
    """

    data: list[AdminModel]
    memory_bytes: int
    memory_budget: int | None


class AdminRequest(msgspec.Struct, kw_only=True):
    """A request that is being answered; never what is in it.

    Attributes:
        id: Its id, which its client knows as ``x-request-id``.
        key: A name of the key that it came with, which does not tell it.
        path: What was asked.
        model: What it is about; empty before that is known.
        age_s: Seconds since it came.
        prompt_tokens: Of its prompts.
        completion_tokens: Of its answers so far.
    """

    id: str
    key: str
    path: str
    model: str
    age_s: float
    prompt_tokens: int
    completion_tokens: int


class AdminRequests(msgspec.Struct, kw_only=True):
    """All requests that are being answered.

    Attributes:
        data: The oldest first.
    """

    data: list[AdminRequest]


class Cancelled(msgspec.Struct, kw_only=True):
    """Requests were cancelled.

    Attributes:
        cancelled: How many had the id.
    """

    cancelled: int


class Draining(msgspec.Struct, kw_only=True):
    """The server takes no new requests, and ends with those that run.

    Attributes:
        open_requests: How many they are.
    """

    open_requests: int


class Keys(msgspec.Struct, kw_only=True):
    """Keys were read anew.

    Attributes:
        keys: How many there are now.
    """

    keys: int
