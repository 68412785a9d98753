"""Whether requests are traced, without importing what traces them."""

from __future__ import annotations

import logging
import os
from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from inference_pio.interfaces import ConfigError, MissingDependencyError

if TYPE_CHECKING:
    from inference_pio.serve._tracing import Tracing

LOG = logging.getLogger("inference_pio.serve")
ENDPOINT_VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"


def start_tracing(endpoint: str | None) -> Tracing | None:
    """What traces requests, or None if nothing is to.

    Args:
        endpoint: The collector's base, such as ``http://localhost:4318``.

    Raises:
        ConfigError: It is no URL.
        MissingDependencyError: The extra ``otel`` is not installed.
    """
    if endpoint is None:
        return None
    check_endpoint(endpoint)
    if not can_trace():
        raise MissingDependencyError(
            "tracing needs OpenTelemetry, which is not installed", hint="pip install 'pio-serve[otel]'"
        )
    from inference_pio.serve._tracing import exporting_to

    return exporting_to(endpoint)


def endpoint_of(option: str | None) -> str | None:
    """Where traces go: what was asked for, or what OpenTelemetry's variable says to every program.

    Without the extra, the variable is left aside with a warning; an option is not.
    """
    said = os.environ.get(ENDPOINT_VARIABLE) or None
    if option is None and said is not None and not can_trace():
        LOG.warning("%s is set, and nothing is traced: pip install 'pio-serve[otel]'", ENDPOINT_VARIABLE)
        return None
    return option or said


def can_trace() -> bool:
    """Whether the extra ``otel`` is installed."""
    try:
        return (
            find_spec("opentelemetry.sdk") is not None
            and find_spec("opentelemetry.exporter.otlp.proto.http") is not None
        )
    except ModuleNotFoundError:  # not even the packages around them
        return False


def check_endpoint(endpoint: str) -> None:
    """Refuse what is no base of a URL.

    Raises:
        ConfigError: It is none.
    """
    hint = "as in --otel-endpoint http://localhost:4318"
    try:
        parts = urlsplit(endpoint)
        found = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError as error:
        raise ConfigError(f"the OpenTelemetry endpoint {endpoint!r:.200}: {error}", hint=hint) from error
    if parts.username is not None or parts.password is not None:  # would stand in lists of processes; not shown here
        raise ConfigError(
            "the OpenTelemetry endpoint has a name or a password in it", hint="give it by OTEL_EXPORTER_OTLP_HEADERS"
        )
    if not found or parts.query or parts.fragment:
        raise ConfigError(f"the OpenTelemetry endpoint {endpoint!r:.200} is no URL of a collector", hint=hint)
