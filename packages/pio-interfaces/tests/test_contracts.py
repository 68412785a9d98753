"""Shapes of the contracts: frozen data, protocols that can be checked, and what importing them costs."""

import dataclasses
import inspect
import json
import re
import subprocess
import sys

import pytest

from inference_pio import interfaces
from inference_pio.interfaces import (
    AttentionSpec,
    CompletionOutput,
    Executor,
    FinishReason,
    ModelShape,
    RequestOutput,
    TensorInfo,
)

GROWING = {CompletionOutput, RequestOutput}


def exported(predicate):
    return sorted(name for name in interfaces.__all__ if predicate(getattr(interfaces, name)))


def test_all_is_sorted_and_complete():
    """What the package re-exports is listed once, constants first, and nothing else is public."""
    constants = [name for name in interfaces.__all__ if name.isupper()]
    functions = [name for name in interfaces.__all__ if name.islower()]
    classes = [name for name in interfaces.__all__ if name not in {*constants, *functions}]
    assert interfaces.__all__ == [*sorted(constants), *sorted(classes), *sorted(functions)]
    public = {name for name, value in vars(interfaces).items() if name[0] != "_" and not inspect.ismodule(value)}
    assert public == set(interfaces.__all__)


@pytest.mark.parametrize("name", exported(dataclasses.is_dataclass))
def test_data_is_frozen(name):
    """Except for the two results that grow while a request runs."""
    cls = getattr(interfaces, name)
    assert cls.__dataclass_params__.frozen == (cls not in GROWING)


@pytest.mark.parametrize("name", exported(lambda value: getattr(value, "_is_protocol", False)))
def test_protocols_are_checkable_and_say_what_they_want(name):
    """Each can be asked for at run time, and every member has a contract."""
    protocol = getattr(interfaces, name)
    assert not isinstance(object(), protocol)
    assert protocol.__doc__
    members = {key: value for key, value in vars(protocol).items() if not key.startswith("_")}
    assert members
    assert all(inspect.getdoc(member) for member in members.values())


def test_a_class_with_the_members_is_an_executor():
    """Protocols: no base class is needed, and a missing member is noticed."""

    class Whole:
        name = "toy"
        page_size = 16
        cache_groups = ()
        sampler = None

        step = copy_pages = swap_out = swap_in = close = len

    class Partial:
        name = "toy"

        def step(self, batch):
            return batch

    assert isinstance(Whole(), Executor)
    assert not isinstance(Partial(), Executor)


@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 8), (8, 2), (8, 1)])
def test_attention_accepts_grouped_heads(heads, kv_heads):
    """MHA, GQA and MQA."""
    spec = AttentionSpec(num_heads=heads, num_kv_heads=kv_heads, head_dim=64)
    assert spec.softmax_scale == 0.125


def test_attention_keeps_a_given_scale():
    """A scale of its own, which may be zero, is not replaced by the default."""
    assert AttentionSpec(num_heads=1, num_kv_heads=1, head_dim=64, scale=0.5).softmax_scale == 0.5
    assert AttentionSpec(num_heads=1, num_kv_heads=1, head_dim=64, scale=0.0).softmax_scale == 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_kv_heads": 3}, r"num_heads \(8\) must be a multiple of num_kv_heads \(3\)"),
        ({"num_kv_heads": 0}, r"num_heads \(8\) must be a multiple of num_kv_heads \(0\)"),
        ({"window": 0}, r"window must be at least 1, got 0"),
    ],
)
def test_attention_refuses_what_cannot_be(changes, message):
    """A caller's mistake in code: ValueError with both values."""
    with pytest.raises(ValueError, match=message):
        AttentionSpec(**{"num_heads": 8, "num_kv_heads": 2, "head_dim": 64} | changes)


@pytest.mark.parametrize(("shape", "expected"), [((), 1), ((7,), 7), ((2, 3, 4), 24), ((5, 0), 0)])
def test_a_tensor_counts_its_elements(tmp_path, shape, expected):
    """A scalar has one, an empty tensor none."""
    info = TensorInfo(name="w", shape=shape, encoding="F32", nbytes=4 * expected, file=tmp_path)
    assert info.numel == expected


def test_a_model_counts_its_cache():
    """Keys and values of all layers; layers may differ."""
    wide = AttentionSpec(num_heads=8, num_kv_heads=4, head_dim=16)
    narrow = AttentionSpec(num_heads=8, num_kv_heads=1, head_dim=32)
    shape = ModelShape(
        architecture="X",
        num_layers=3,
        hidden_size=128,
        vocab_size=10,
        max_position=64,
        attention=(wide, narrow, wide),
        num_parameters=1,
        bos_token_id=None,
        eos_token_ids=(),
    )
    assert shape.kv_elements_per_token == 2 * (4 * 16 + 32 + 4 * 16)


def test_finish_reasons_are_their_text():
    """They go into JSON as they are."""
    assert json.dumps([FinishReason.STOP, FinishReason.LENGTH, FinishReason.ABORT]) == '["stop", "length", "abort"]'


def test_a_completion_is_finished_with_its_reason():
    """And not before."""
    output = CompletionOutput(index=0, text="", token_ids=[])
    assert not output.finished
    output.finish_reason = FinishReason.LENGTH
    assert output.finished


def test_results_do_not_share_their_lists():
    """A default list belongs to one result."""
    first, second = (RequestOutput(request_id=name, prompt=None, prompt_token_ids=[1]) for name in "ab")
    first.outputs.append(CompletionOutput(index=0, text="", token_ids=[]))
    assert second.outputs == []


def test_the_version_has_two_parts():
    """Major and minor: what a manifest's ``api`` is compared with."""
    assert re.fullmatch(r"\d+\.\d+", interfaces.API_VERSION)


def test_importing_the_contracts_loads_neither_torch_nor_numpy():
    """Everything imports this package, so it imports the standard library and nothing else."""
    code = "import sys; before = set(sys.modules); import inference_pio.interfaces; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "inference_pio" in loaded
    assert loaded - sys.stdlib_module_names - {"__mp_main__"} == {"inference_pio"}
