"""What the machine can do at most: the probe of dot products computes what it says, and limits are measured."""

from __future__ import annotations

import numpy as np
import pytest

from inference_pio.interfaces import ConfigError
from inference_pio.kernels import instruction_sets, measure_limits
from inference_pio.kernels._library import load_library

USABLE = [each.name for each in instruction_sets() if each.usable]


def probe(isa, weights, inputs, rounds, sums):
    return load_library().pio_probe_dots(isa.index, weights.ctypes.data, inputs.ctypes.data, rounds, sums.ctypes.data)


@pytest.mark.parametrize("rounds", [0, 1, 3, 100_001])
@pytest.mark.parametrize("isa", instruction_sets(), ids=lambda isa: isa.name)
def test_the_probe_does_the_work_that_is_counted(isa, rounds):
    """Every round's products are in the sums, which go on from where they were, modulo 2^32; or nothing is written."""
    random = np.random.default_rng(rounds)
    weights = random.integers(0, 16, (16, 4), dtype=np.uint8)
    inputs = random.integers(-127, 128, (8, 8, 4)).astype(np.int8)
    before = random.integers(-(2**31), 2**31, (8, 16)).astype(np.int32)
    sums = before.copy()
    status = probe(isa, weights, inputs, rounds, sums)
    products = np.einsum("rc,mgc->mr", weights.astype(np.int64), inputs.astype(np.int64))
    expected = (before + rounds * products).astype(np.int32) if isa.usable else before
    assert status == (0 if isa.usable else -1)
    np.testing.assert_array_equal(sums, expected)


def test_the_largest_numbers_do_not_saturate():
    """No instruction set's intermediate numbers are too small for what the probe may be given."""
    weights, inputs = np.full((16, 4), 15, dtype=np.uint8), np.full((8, 32), -127, dtype=np.int8)
    for isa in instruction_sets():
        if isa.usable:
            sums = np.zeros((8, 16), dtype=np.int32)
            assert probe(isa, weights, inputs, 1, sums) == 0
            assert np.array_equal(sums, np.full((8, 16), -127 * 15 * 32)), isa.name


@pytest.mark.parametrize("words", [0, 8, 24, 8 * 1001])
def test_the_probe_of_memory_reads_all_of_it(words):
    """Every word is in the sum, modulo 2^64."""
    data = np.random.default_rng(words).integers(0, 2**64, words, dtype=np.uint64)
    found = load_library().pio_probe_read(data.ctypes.data, data.nbytes)
    assert found == sum(data.tolist()) % 2**64


@pytest.mark.parametrize("name", USABLE)
@pytest.mark.parametrize("threads", [1, 2])
def test_limits_are_measured(name, threads):
    """Something is read and multiplied in some time."""
    limits = measure_limits(threads, nbytes=2**22, repeats=1, isa=name)
    assert set(limits) == {"read_gb_per_s", "int8_gop_per_s", "threads"}
    assert limits["threads"] == threads
    assert limits["read_gb_per_s"] > 0
    assert limits["int8_gop_per_s"] > 0


def test_limits_are_those_of_the_machine(monkeypatch):
    """A forced instruction set, even one that cannot run here, changes how programs run and not what is possible."""
    monkeypatch.setenv("PIO_KERNELS", next(each.name for each in instruction_sets() if not each.usable))
    assert measure_limits(1, nbytes=2**22, repeats=1)["int8_gop_per_s"] > 0


@pytest.mark.parametrize("nbytes", [-64, 0, 63, 2**22 + 8])
def test_nothing_is_read_past_the_end(nbytes):
    """Memory is read in whole lines, so sizes that are not of such are refused."""
    with pytest.raises(ValueError, match=f"multiple of 64, not {nbytes}"):
        measure_limits(1, nbytes=nbytes)


def test_limits_of_an_unknown_instruction_set_are_refused():
    """Before anything is measured."""
    with pytest.raises(ConfigError, match="instruction set is 'sse9', and there is none of that name"):
        measure_limits(1, isa="sse9")
