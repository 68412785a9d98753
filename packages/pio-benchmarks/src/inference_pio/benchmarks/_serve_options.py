"""Options of ``pio bench serve``, held to their rules."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inference_pio.benchmarks._serve_metrics import METRICS, OBJECTIVES
from inference_pio.interfaces import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from inference_pio.benchmarks._serve_client import Endpoint

KEY_VARIABLES = ("PIO_SERVE_API_KEY", "OPENAI_API_KEY")
"""Where a key is looked for, in this order."""

_MAX_KEY = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """The options of the command, under their names there; texts are not checked yet."""

    base_url: str | None
    in_process: str | None
    overhead: bool
    model: str | None
    endpoint: Endpoint
    api_key_file: str | None
    num_prompts: int | None
    request_rate: str
    burstiness: str
    max_concurrency: int | None
    dataset: str | None
    input_len: str
    output_len: str | None
    shared_prefix_len: int
    num_warmups: int
    seed: int | None
    ignore_eos: bool | None
    temperature: float
    extra_body: str | None
    timeout: float
    goodput: tuple[str, ...]
    percentile_metrics: str
    metric_percentiles: str
    ttft_until: str
    save_detailed: bool
    strict: bool
    output: str | None
    as_json: bool

    @property
    def goes_to_eos(self) -> bool:
        """Whether answers go on to their full length: those to made prompts do, unless it is said otherwise."""
        return self.dataset is None if self.ignore_eos is None else self.ignore_eos


def parse_positive(option: str, text: str) -> float:
    """A positive number, or ``inf``.

    Raises:
        InvalidRequestError: It is something else.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise InvalidRequestError(
            f"{option}: {text!r} is no positive number", hint=f"as in {option} 2.5 or {option} inf"
        )
    return value


def parse_percentiles(text: str) -> tuple[float, ...]:
    """Percentages between commas.

    Raises:
        InvalidRequestError: One is not between 0 and 100.
    """
    option, found = "--metric-percentiles", []
    for part in text.split(","):
        try:
            value = float(part)
        except ValueError:
            value = math.nan
        if not 0 <= value <= 100:
            raise InvalidRequestError(f"{option}: {part!r} is no percentile", hint=f"as in {option} 50,90,99")
        found.append(value)
    return tuple(dict.fromkeys(found))


def parse_metrics(text: str) -> tuple[str, ...]:
    """Names of distributions between commas.

    Raises:
        InvalidRequestError: There is no such.
    """
    names = [part.strip().lower() for part in text.split(",")]
    for name in names:
        if name not in METRICS:
            hint = f"known are {', '.join(METRICS)}"
            raise InvalidRequestError(f"--percentile-metrics: unknown metric {name!r}", hint=hint)
    return tuple(dict.fromkeys(names))


def parse_objectives(pairs: Sequence[str]) -> dict[str, float]:
    """``NAME:MILLISECONDS`` each, several between commas or spaces.

    Raises:
        InvalidRequestError: A name is unknown or given twice, or its value is no number of milliseconds.
    """
    found: dict[str, float] = {}
    for pair in " ".join(pairs).replace(",", " ").split():
        name, _, text = pair.partition(":")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if name not in OBJECTIVES or not 0 <= value < math.inf or name in found:
            problem = (
                f"--goodput: {pair!r} is no objective" if name not in found else f"--goodput: {name} is given twice"
            )
            raise InvalidRequestError(
                problem, hint=f"as in --goodput ttft:500,tpot:50; known are {', '.join(OBJECTIVES)}"
            )
        found[name] = value
    return found


def parse_extra_body(text: str | None) -> dict[str, object]:
    """Further fields of each request, as a JSON object.

    Raises:
        InvalidRequestError: It is none.
    """
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"--extra-body: {text[:80]!r} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise InvalidRequestError(f"--extra-body: {text[:80]!r} is no JSON object", hint="as in '{\"top_k\": 40}'")
    return found


def read_key(path: Path | None) -> str | None:
    """The key for the server: the first line of a file, or from the environment; None if there is none.

    Raises:
        InvalidRequestError: The file cannot be read, or what is there cannot be a key.
    """
    if path is not None:
        origin = f"--api-key-file {str(path)!r}"
        try:
            with path.open(encoding="utf-8") as file:
                key = file.readline(_MAX_KEY).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidRequestError(f"{origin} cannot be read: {error}") from error
    else:
        origin = next((name for name in KEY_VARIABLES if os.environ.get(name)), "")
        key = os.environ.get(origin, "").strip()
        if not key:
            return None
    if not key or not all("!" <= letter <= "~" for letter in key):
        raise InvalidRequestError(f"{origin} holds no key", hint="a key has printable characters without spaces")
    return key


def check_secret_url(scheme: str, host: str, key: str | None) -> str | None:
    """A warning where a key would travel in the clear, else None."""
    if key is None or scheme == "https" or host in {"localhost", "::1"} or host.startswith("127."):
        return None
    return f"the key goes to {host} unencrypted, since the address is not https"
