"""Benchmarks of Inference-PIO: records of what was measured, their comparison, and the commands ``pio bench``."""

from inference_pio.benchmarks._limits import Limits
from inference_pio.benchmarks._machine import Machine, default_threads, describe_machine, machine_differences
from inference_pio.benchmarks._record import (
    SCHEMA,
    Measurement,
    Record,
    read_record,
    read_records,
    record_to_json,
    write_record,
)
from inference_pio.benchmarks._statistics import Ratio, Summary, median, ratio_of_medians, summarize

__all__ = [
    "SCHEMA",
    "Limits",
    "Machine",
    "Measurement",
    "Ratio",
    "Record",
    "Summary",
    "default_threads",
    "describe_machine",
    "machine_differences",
    "median",
    "ratio_of_medians",
    "read_record",
    "read_records",
    "record_to_json",
    "summarize",
    "write_record",
]
