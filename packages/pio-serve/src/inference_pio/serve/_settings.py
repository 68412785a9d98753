"""What a server may be told: where it listens, who may ask, and how much of everything it takes."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from inference_pio.interfaces import ConfigError
from inference_pio.serve._keys import KeyRing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MIB = 1024 * 1024
MEMORY_SHARE = 0.8
"""Of the memory that is free at the start, what several models may take together unless more is asked for."""
Preload = Literal["first", "all", "none"]
"""Which of several models are loaded before anyone asks for them."""

TEMPLATE_KWARGS = frozenset({"enable_thinking", "thinking", "thinking_budget", "reasoning_effort", "preserve_thinking"})
"""Variables of chat templates that requests may set; none of them lets a request bring a template of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How much of everything one connection or request may bring. Times are in seconds.

    Attributes:
        header_bytes: Request line and headers together.
        body_bytes: Body of a request.
        header_s: From the first byte of a request, or from the connection, to the end of its headers.
        body_s: From the end of the headers to the end of the body.
        write_s: How long a client may leave unread what was sent to it.
        idle_s: How long a connection may stay open between requests.
        request_s: From arrival to the last token; a text that is unfinished then ends with what it has.
        connections: Connections that are open at once, with those in their TLS handshake. Some more are told so, the
            rest closed.
        messages: Messages of a conversation.
        prompts: Prompts of one request for completions.
        n: Continuations of each prompt.
        tools: Descriptions of tools in a request.
        logit_bias: Tokens with a bias.
        stop_chars: Characters of one stop string.
        schema_bytes: A JSON schema, or the schemas of all tools, as JSON.
        schema_depth: How deep a JSON schema may be nested.
        grammar_chars: Characters of a regular expression or a grammar.
    """

    header_bytes: int = 16 * 1024
    body_bytes: int = 4 * MIB
    header_s: float = 10.0
    body_s: float = 30.0
    write_s: float = 30.0
    idle_s: float = 75.0
    request_s: float = 300.0
    connections: int = 1024
    messages: int = 1024
    prompts: int = 64
    n: int = 8
    tools: int = 128
    logit_bias: int = 1024
    stop_chars: int = 1024
    schema_bytes: int = 64 * 1024
    schema_depth: int = 32
    grammar_chars: int = 32 * 1024

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value <= 0:
                raise ConfigError(f"{name} must be above 0, got {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """Everything that a server is told.

    Attributes:
        host: Address to listen at.
        port: Port to listen at; 0 takes a free one.
        tls_cert: PEM file with the certificate to serve under, and its chain; None serves unencrypted.
        tls_key: PEM file with its key.
        keys: Keys of those who may ask; an empty ring lets everyone ask.
        insecure_no_auth: Whether an address that other machines reach may be served without a key.
        allowed_hosts: Names that a request may call this server by, beside its own address; ``"*"`` allows any.
        max_waiting: Requests that may wait for a place in the batch; one more is told to come back later.
        max_concurrent_per_key: Requests that one key may have open at once.
        tokens_per_minute: Tokens of prompts and answers that one key may use per minute; None for no bound.
        keep_alive_s: Seconds of silence in a stream after which a comment shows that the connection lives.
        drain_s: Seconds that running requests are given to finish once the server is told to stop.
        template_kwargs: Variables of the chat template that requests may set.
        memory_budget: Bytes that weights and caches of all models may take together; None for no bound.
        unload_idle_s: Seconds without a request after which a model is unloaded; None for never.
        preload: Which models are loaded at the start; the others are when they are first asked for.
        admin_socket: Path of the unix socket for whoever runs the server; None for none.
        read_keys: Reads the keys anew, when whoever runs the server asks for it; None where they cannot change.
        otel_endpoint: Where traces go over OTLP/HTTP, such as ``http://localhost:4318``; None traces nothing.
        bounds: How much of everything one connection or request may bring.

    Raises:
        ConfigError: A value out of bounds, or an open address without a key.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    tls_cert: Path | None = None
    tls_key: Path | None = None
    keys: KeyRing = field(default_factory=KeyRing)
    insecure_no_auth: bool = False
    allowed_hosts: tuple[str, ...] = ()
    max_waiting: int = 256
    max_concurrent_per_key: int = 128
    tokens_per_minute: int | None = None
    keep_alive_s: float = 15.0
    drain_s: float = 30.0
    template_kwargs: frozenset[str] = TEMPLATE_KWARGS
    memory_budget: int | None = None
    unload_idle_s: float | None = None
    preload: Preload = "first"
    admin_socket: Path | None = None
    read_keys: Callable[[], KeyRing] | None = field(default=None, repr=False)
    otel_endpoint: str | None = None
    bounds: Bounds = field(default_factory=Bounds)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port must be between 0 and 65535, got {self.port}")
        for name in (
            "max_waiting",
            "max_concurrent_per_key",
            "tokens_per_minute",
            "keep_alive_s",
            "memory_budget",
            "unload_idle_s",
        ):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} must be above 0, got {value!r}")
        if (self.tls_cert is None) != (self.tls_key is None):
            missing, given = ("key", "certificate") if self.tls_key is None else ("certificate", "key")
            raise ConfigError(f"a TLS {given} is given without a {missing}", hint="give both --tls-cert and --tls-key")
        if self.drain_s < 0:
            raise ConfigError(f"drain_s must not be negative, got {self.drain_s!r}")
        if self.preload not in get_args(Preload):
            raise ConfigError(f"preload must be one of {', '.join(get_args(Preload))}, got {self.preload!r}")
        if not self.keys and not self.insecure_no_auth and not is_loopback(self.host):
            raise ConfigError(
                f"host {self.host!r} can be reached from other machines, and no API key is set",
                hint="give --api-key-file or PIO_SERVE_API_KEY, or --insecure-no-auth to let everyone in",
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
