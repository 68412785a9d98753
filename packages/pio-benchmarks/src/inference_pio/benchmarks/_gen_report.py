"""What the runners of models have in common: the model's name, the record, the table."""

from __future__ import annotations

import importlib.metadata
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from inference_pio.benchmarks._gen_case import bytes_per_token, ops_per_token
from inference_pio.benchmarks._gen_executor import open_model, stored_bytes
from inference_pio.benchmarks._machine import describe_machine
from inference_pio.benchmarks._record import Measurement, Record
from inference_pio.config import cache_dir, load_settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from inference_pio.benchmarks._fields import Scalar
    from inference_pio.benchmarks._gen_case import Case
    from inference_pio.benchmarks._limits import Limits
    from inference_pio.core import Checkpoint

PACKAGE = "pio-benchmarks"


def benchmark_cache() -> Path:
    """The folder of built rivals and made models, in the user's cache; it need not exist."""
    return cache_dir(load_settings().settings) / "benchmarks"


def default_model() -> str:
    """The model that ``pio run`` would take."""
    return load_settings().settings.model


def find_checkpoint(model: str) -> Checkpoint:
    """The opened model; fetched first, if it is a hub id that is not here yet.

    Raises:
        PioError: It is not there, its files are not sound, or no plugin serves them.
    """
    return open_model(model)


def main_encoding(checkpoint: Checkpoint) -> str:
    """The format that holds most of the model's weights."""
    held: dict[str, int] = {}
    for name in checkpoint.source:
        info = checkpoint.source.info(name)
        held[info.encoding] = held.get(info.encoding, 0) + info.numel
    return max(held, key=lambda encoding: held[encoding])


def arithmetic(executor: str, encoding: str) -> Scalar:
    """What limit operations are held to: the native executor and llama.cpp multiply quantised weights as int8.

    Args:
        executor: ``"native"``, ``"llama.cpp"``, or another, of which nothing is known.
        encoding: Format of the weights.
    """
    quantised = encoding not in {"F32", "F16", "BF16"}
    return "int8" if executor in {"native", "llama.cpp"} and quantised else None


def speed(
    case: Case,
    values: Sequence[float],
    checkpoint: Checkpoint,
    *,
    name: str,
    threads: int,
    details: Mapping[str, Scalar],
) -> Measurement:
    """Tokens per second as a measurement, with what the physical limit needs to know.

    Bytes are those of the model's own file, whatever the engine that was measured makes of them.
    """
    return Measurement(
        name=name,
        unit="tokens/s",
        values=tuple(values),
        better="higher",
        bytes_per_unit=bytes_per_token(case, checkpoint.shape, stored_bytes(checkpoint)),
        ops_per_unit=ops_per_token(case, checkpoint.shape, tied_head=checkpoint.tied_head),
        details={**case.details(threads), **details},
    )


def make_record(
    benchmark: str,
    settings: Mapping[str, Scalar],
    measurements: Sequence[Measurement],
    *,
    limits: Sequence[Limits],
    date: datetime,
    warnings: Sequence[str],
) -> Record:
    """A record of this package on this machine."""
    return Record(
        benchmark=benchmark,
        package=PACKAGE,
        version=importlib.metadata.version(PACKAGE),
        settings=dict(settings),
        measurements=tuple(measurements),
        machine=describe_machine(),
        limits=tuple(limits),
        date=date,
        warnings=tuple(warnings),
    )


def now() -> datetime:
    """The date of a record."""
    return datetime.now(UTC)
