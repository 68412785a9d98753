"""What the machine allows at best: bytes read per second, operations per second."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inference_pio.benchmarks._fields import Fields


@dataclass(frozen=True, slots=True)
class Limits:
    """Measured limits of a machine on a number of threads.

    Attributes:
        threads: Threads that they were measured with.
        read_gb_s: Bandwidth of reading memory far larger than the caches, in 10^9 bytes per second.
        fp32_gflop_s: 10^9 float32 operations per second in a matrix product (2 for a multiply-add), or None.
        int8_gop_s: The same for 8-bit integers, or None where nothing here measures it.
        source: What measured them: ``"kernels"`` or ``"numpy"``.
    """

    threads: int
    read_gb_s: float
    fp32_gflop_s: float | None
    int8_gop_s: float | None
    source: str


def limits_to_json(limits: Limits) -> dict[str, object]:
    """The object that :func:`limits_from_json` reads."""
    return {
        "threads": limits.threads,
        "read_gb_s": limits.read_gb_s,
        "fp32_gflop_s": limits.fp32_gflop_s,
        "int8_gop_s": limits.int8_gop_s,
        "source": limits.source,
    }


def limits_from_json(fields: Fields) -> Limits:
    """The limits of a record.

    Raises:
        MalformedFileError: A key is missing, unknown or of the wrong type.
    """
    fields.keys(("threads", "read_gb_s", "fp32_gflop_s", "int8_gop_s", "source"))
    read = fields.optional_positive("read_gb_s")
    return Limits(
        threads=fields.integer("threads", minimum=1),
        read_gb_s=read if read is not None else fields.fail("is missing", "read_gb_s"),
        fp32_gflop_s=fields.optional_positive("fp32_gflop_s"),
        int8_gop_s=fields.optional_positive("int8_gop_s"),
        source=fields.text("source"),
    )
