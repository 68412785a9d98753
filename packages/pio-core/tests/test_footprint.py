"""What a model will take, held against what it takes."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import inspect
import time
import weakref

import psutil
import pytest

from inference_pio.core import LLM, free_memory, plan_footprint
from inference_pio.core._assembly import EngineOptions
from inference_pio.interfaces import DoesNotFitError, ModelNotFoundError

MIB = 2**20


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    testing = pytest.importorskip("inference_pio.testing", reason="pio-testing writes the tiny checkpoint")
    return testing.tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"), hidden_size=128)


@pytest.mark.parametrize("function", [LLM, plan_footprint])
def test_options_have_the_same_defaults_everywhere(function):
    """A plan made with none stated is the plan of what loads with none stated; only where weights are kept is open."""
    defaults = {field.name: field.default for field in dataclasses.fields(EngineOptions)}
    stated = {name: given.default for name, given in inspect.signature(function).parameters.items() if name in defaults}
    assert stated == {name: defaults[name] for name in stated}
    assert len(stated) == {LLM: len(defaults) - 1, plan_footprint: 12}[function]


@pytest.mark.parametrize("executor", ["native", "torch"])
@pytest.mark.parametrize("kv_cache_dtype", ["auto", "float32", "int8"])
@pytest.mark.parametrize("budget", [8 * MIB, 256 * MIB])
def test_plan_is_what_loading_takes(checkpoint, executor, kv_cache_dtype, budget):
    """The cache to a hundredth of its size, the weights but for what torch shares; both within the budget."""
    options = {"executor": executor, "kv_cache_dtype": kv_cache_dtype, "max_num_seqs": 4}
    found = plan_footprint(checkpoint, memory_bytes=budget, **options)
    assert found.nbytes == found.weight_bytes + found.kv_cache_bytes <= budget
    with LLM(
        checkpoint, kv_cache_bytes=found.kv_cache_bytes, max_model_len=found.max_model_len, packed_cache_bytes=0,
        **options,
    ) as llm:  # fmt: skip
        assert llm.name == found.name
        assert llm.max_model_len == found.max_model_len
        assert llm.kv_cache_bytes == pytest.approx(found.kv_cache_bytes, rel=0.01)
        assert llm.kv_cache_bytes <= found.kv_cache_bytes
        assert llm.weight_bytes == pytest.approx(found.weight_bytes, rel=0.1 if executor == "torch" else 0)


def test_weights_quantised_while_they_are_loaded_count_as_what_they_become(checkpoint):
    """Not as what the file stores: they may fit where that would not."""
    stored, quantised = (plan_footprint(checkpoint, memory_bytes=64 * MIB, dtype=dtype) for dtype in ("auto", "int8"))
    assert quantised.weight_bytes < stored.weight_bytes / 2
    with LLM(checkpoint, dtype="int8", packed_cache_bytes=0, kv_cache_bytes=MIB) as llm:
        assert llm.weight_bytes == quantised.weight_bytes


def test_cache_takes_what_was_asked_for_or_half_of_what_is_left(checkpoint):
    """A small budget shortens the context, a bound on the cache is kept, and more than there is is refused."""
    most = plan_footprint(checkpoint, memory_bytes=1024 * MIB, max_num_seqs=1)
    half = plan_footprint(checkpoint, memory_bytes=most.weight_bytes + most.kv_cache_bytes, max_num_seqs=1)
    assert half.kv_cache_bytes <= most.kv_cache_bytes // 2
    assert half.max_model_len < most.max_model_len == 256
    asked = plan_footprint(checkpoint, memory_bytes=8 * MIB, kv_cache_bytes=most.kv_cache_bytes // 4, max_num_seqs=1)
    assert 0 < asked.kv_cache_bytes <= most.kv_cache_bytes // 4
    with pytest.raises(DoesNotFitError, match=r"a cache of 0\.01 GiB is asked for"):
        plan_footprint(checkpoint, memory_bytes=8 * MIB, kv_cache_bytes=9 * MIB)


@pytest.mark.parametrize("budget", [1, 1000])
def test_what_can_never_fit_is_said_with_figures(checkpoint, budget):
    """Before anything is read."""
    with pytest.raises(DoesNotFitError, match=r"the weights of '.*' need .* GiB"):
        plan_footprint(checkpoint, memory_bytes=budget)


def test_model_that_is_not_there_is_said(tmp_path):
    """As loading it would."""
    with pytest.raises(ModelNotFoundError, match="no file or folder"):
        plan_footprint(tmp_path / "nothing.gguf", memory_bytes=MIB)


@pytest.mark.parametrize("options", [{"executor": "native"}, {"device": "cpu"}, {"executor": "torch", "device": "cpu"}])
def test_free_memory_of_a_processor_is_that_of_the_machine(options):
    """Within what it has at all."""
    assert 0 < free_memory(**options) <= psutil.virtual_memory().total


def test_memory_goes_with_the_last_reference(checkpoint):
    """A closed model that ran asynchronously waits for no garbage collection, which may come much later."""
    gc.collect()
    gc.disable()
    try:
        llm = LLM(checkpoint, executor="native", packed_cache_bytes=0)
        executor = weakref.ref(llm._executor)
        asyncio.run(llm.start_async().close())
        llm.close()
        del llm
        deadline = time.monotonic() + 5
        while executor() is not None and time.monotonic() < deadline:  # a thread may be about to let go
            time.sleep(0.01)
        assert executor() is None
    finally:
        gc.enable()
