"""How close a measurement comes to what the machine allows (Williams et al., Roofline, CACM 52(4), 2009)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from inference_pio.benchmarks._limits import Limits, limits_for
from inference_pio.benchmarks._statistics import median

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inference_pio.benchmarks._record import Measurement

_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


@dataclass(frozen=True, slots=True)
class Attained:
    """A measurement beside its limit.

    Attributes:
        rate: Units of work per second that were measured.
        limit: Units per second that the machine allows.
        bound: What bounds it: ``"memory"`` or ``"compute"``.
    """

    rate: float
    limit: float
    bound: str

    @property
    def percent(self) -> float:
        """Of the limit; above 100 the data came from a cache, or the limit was measured in a worse moment."""
        return 100 * self.rate / self.limit


def units_per_second(measurement: Measurement) -> float | None:
    """The median as a rate: of ``tokens/s`` itself, of ``ms`` or ``ms/token`` its inverse; None for other units."""
    value = median(measurement.values)
    head, _, divisor = measurement.unit.partition("/")
    if divisor == "s":
        return value
    return 1 / (value * _SECONDS[head]) if head in _SECONDS and value > 0 else None


def peak_ops(limits: Limits, arithmetic: object) -> float | None:
    """Operations per second at best: of ``"int8"`` or ``"fp32"``, else the highest that was measured."""
    known = {"int8": limits.int8_gop_s, "fp32": limits.fp32_gflop_s}
    if arithmetic in known:
        giga = known[str(arithmetic)]
    else:
        giga = max((value for value in known.values() if value is not None), default=None)
    return None if giga is None else 1e9 * giga


def attained(measurement: Measurement, limits: Sequence[Limits]) -> Attained | None:
    """``measurement`` beside the lower of the two roofs, or None if it or the machine was not told enough about.

    The limits are those of the measurement's number of threads (``details["threads"]``).
    """
    threads = measurement.details.get("threads")
    machine = limits_for(limits, threads if isinstance(threads, int) else None)
    rate = units_per_second(measurement)
    if machine is None or rate is None:
        return None
    roofs: list[tuple[float, str]] = []
    if measurement.bytes_per_unit is not None:
        roofs.append((machine.read_gb_s * 1e9 / measurement.bytes_per_unit, "memory"))
    peak = peak_ops(machine, measurement.details.get("arithmetic"))
    if measurement.ops_per_unit is not None and peak is not None:
        roofs.append((peak / measurement.ops_per_unit, "compute"))
    if not roofs:
        return None
    return Attained(rate, *min(roofs))
