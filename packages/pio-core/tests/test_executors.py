"""Which executor is taken, what is said about it, and what happens where the native one cannot."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from inference_pio.core import LLM, SamplingParams, _executors
from inference_pio.interfaces import (
    ConfigError,
    HiddenStateExecutor,
    InvalidRequestError,
    LowerableModel,
    MissingDependencyError,
    UnsupportedError,
)
from inference_pio.kernels import instruction_sets

GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
SIZES = {"max_num_seqs": 4, "max_model_len": 64, "packed_cache_bytes": 0}


@pytest.fixture
def no_gpu(monkeypatch):
    """As if this machine had no GPU's driver."""
    monkeypatch.setattr(_executors, "_has_gpu_driver", lambda: False)


@pytest.fixture
def without_lowering(monkeypatch):
    """A family whose manifest does not declare the capability."""
    from inference_pio.core._registry import InstalledPlugin

    load = InstalledPlugin.load

    def forget(self, architecture):
        object.__setattr__(
            self, "manifest", replace(self.manifest, capabilities=self.manifest.capabilities - {"native"})
        )
        return load(self, architecture)

    monkeypatch.setattr(InstalledPlugin, "load", forget)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("executor", ["auto", "native"])
def test_the_native_executor_is_taken_on_a_cpu(tiny_checkpoint, executor):
    """And says what runs how."""
    with LLM(tiny_checkpoint("llama"), executor=executor, threads=1, **SIZES) as llm:
        assert llm.executor == "native"
        assert re.fullmatch(r"native executor, \w+, 1 thread, F32 tiles, f16 cache", llm.executor_summary)
        assert (llm.dtype, llm.device) == ("F32", "cpu")
        assert llm.weight_bytes > 4 * llm.shape.num_parameters
        assert llm.page_size == 32
        assert [(group.kind, group.num_pages > 0) for group in llm.cache_groups] == [("full", True)]
        assert llm.can_embed


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_both_executors_say_the_same(tiny_checkpoint, family):
    """Greedy continuations of a float32 checkpoint, with keys and values in float32."""
    prompts = [{"prompt_token_ids": list(range(3, 3 + length))} for length in (1, 7, 20)]
    texts = {}
    for executor in ("native", "torch"):
        with LLM(tiny_checkpoint(family), executor=executor, device="cpu", kv_cache_dtype="float32", **SIZES) as llm:
            texts[executor] = [output.outputs[0].token_ids for output in llm.generate(prompts, GREEDY)]
    assert texts["native"] == texts["torch"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dtype": "float32"}, "dtype='float32' is asked for, and it computes on weights as they are stored, or in"),
        ({"attention": "sdpa"}, "attention='sdpa' is asked for, and it has its own"),
        ({"kv_cache": "contiguous"}, "kv_cache='contiguous' is asked for, and its cache has pages"),
        ({"deterministic": True}, "deterministic=True is asked for, and how it divides the work depends on what else"),
    ],
)
@pytest.mark.usefixtures("no_gpu")
def test_options_that_only_torch_serves(tiny_checkpoint, caplog, options, reason):
    """auto takes the torch executor and can tell why; native is refused with the way out."""
    path = tiny_checkpoint("llama")
    (name,) = options
    with pytest.raises(UnsupportedError, match=re.escape(f"does not run {path.name!r}: {reason}")) as caught:
        LLM(path, executor="native", **options, **SIZES)
    assert caught.value.hint == f"leave {name} out, or executor='torch'"
    with LLM(path, **options, **SIZES) as llm:
        assert llm.executor == "torch"
        assert f"not native: {reason}" in llm.executor_summary
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_weights_quantised_while_they_are_loaded(tiny_checkpoint, family):
    """dtype int8: matrices become blocks of 8 bits, a quarter of their float32 size, and answers hardly change."""
    path = tiny_checkpoint(family)
    prompt = {"prompt_token_ids": list(range(3, 40))}
    asked = SamplingParams(temperature=0, max_tokens=1, logprobs=20)
    tops = {}
    for dtype in ("auto", "int8"):
        with LLM(path, dtype=dtype, **SIZES) as llm:
            [output] = llm.generate([prompt], asked)
            tops[dtype] = {token: entry.logprob for token, entry in output.outputs[0].logprobs[0].items()}
            if dtype == "int8":
                assert (llm.executor, llm.dtype) == ("native", "Q8")
                assert llm.weight_bytes < 1.2 * llm.shape.num_parameters
    common = tops["auto"].keys() & tops["int8"].keys()
    assert len(common) > 10
    for token in common:
        assert tops["int8"][token] == pytest.approx(tops["auto"][token], abs=0.1)
    assert any(tops["int8"][token] != tops["auto"][token] for token in common)


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"executor": "torch"}, "the torch executor keeps no weights in int8", "executor='native', or another dtype"),
        (
            {"kv_cache": "contiguous"},
            "kv_cache='contiguous' is asked for, and its cache has pages",
            "leave kv_cache out, or executor='torch'",
        ),
    ],
)
@pytest.mark.usefixtures("no_gpu")
def test_int8_weights_are_for_the_native_executor(tiny_checkpoint, options, message, hint):
    """Nothing else may take its place silently."""
    with pytest.raises(UnsupportedError, match=re.escape(message)) as caught:
        LLM(tiny_checkpoint("llama"), dtype="int8", **options, **SIZES)
    assert caught.value.hint == hint


@pytest.mark.usefixtures("no_gpu", "without_lowering")
def test_a_family_without_a_lowering(tiny_checkpoint, caplog):
    """auto falls back, and warns, since nobody asked for that."""
    path = tiny_checkpoint("llama")
    with LLM(path, **SIZES) as llm:
        assert llm.executor == "torch"
    assert "runs on the torch executor, not the native one: pio-model-llama" in caplog.text
    with pytest.raises(UnsupportedError, match=r"pio-model-llama \S+ has no lowering for it"):
        LLM(path, executor="native", **SIZES)


@pytest.mark.usefixtures("no_gpu")
def test_what_a_program_cannot_express(tiny_checkpoint, caplog):
    """Dynamic NTK: auto falls back with the reason of the lowering."""
    from inference_pio.testing import rope_variants

    path = tiny_checkpoint("llama", rope_parameters=rope_variants(16)["dynamic"])
    with LLM(path, **SIZES) as llm:
        assert llm.executor == "torch"
    assert "dynamic NTK scaling changes the rotary frequencies with every token" in caplog.text
    with pytest.raises(UnsupportedError, match="dynamic NTK"):
        LLM(path, executor="native", **SIZES)


@pytest.mark.usefixtures("no_gpu")
def test_a_forced_instruction_set_that_cannot_run(tiny_checkpoint, monkeypatch, caplog):
    """Asked for by name, it is not replaced by the torch executor but refused, with those that run here."""
    known = instruction_sets()
    forced = next(each.name for each in known if not each.usable)
    usable = ", ".join(each.name for each in known if each.usable)
    monkeypatch.setenv("PIO_KERNELS", forced)
    for executor in ("auto", "native"):
        with pytest.raises(ConfigError, match=f"^PIO_KERNELS is '{forced}', which this processor") as caught:
            LLM(tiny_checkpoint("llama"), executor=executor, **SIZES)
        assert caught.value.hint == f"usable here: {usable}"
    assert not caplog.text
    with LLM(tiny_checkpoint("llama"), executor="torch", **SIZES) as llm:
        assert llm.executor == "torch"


@pytest.mark.usefixtures("no_gpu")
def test_a_broken_library(tiny_checkpoint, monkeypatch, caplog):
    """Without torch, too, the user learns what is wrong with the native executor."""
    monkeypatch.setenv("PIO_KERNELS", "scalar")
    from inference_pio.core import native_executor
    from inference_pio.interfaces import BrokenDependencyError

    def broken(*_args, **_options):
        raise BrokenDependencyError("the native library of pio-kernels does not load: planted", hint="reinstall it")

    monkeypatch.setattr(native_executor, "load_parameters", broken)
    with LLM(tiny_checkpoint("llama"), **SIZES) as llm:
        assert llm.executor == "torch"
    assert "does not load: planted" in caplog.text

    def missing():
        raise MissingDependencyError("the torch executor needs torch, not installed here", hint="pip install it")

    monkeypatch.setattr(_executors, "check_torch_extra", missing)
    with pytest.raises(UnsupportedError, match="does not load: planted; and the torch executor needs torch") as caught:
        LLM(tiny_checkpoint("llama"), **SIZES)
    assert caught.value.hint == "pip install it"


def test_a_gpu_is_taken_first(tiny_checkpoint, monkeypatch):
    """device='auto' means CUDA where there is one; torch is asked only where a driver is."""
    monkeypatch.setattr(_executors, "_has_gpu_driver", lambda: True)
    monkeypatch.setattr("inference_pio.core.torch_executor.has_cuda", lambda: True)
    with LLM(tiny_checkpoint("llama"), **SIZES) as llm:
        assert "not native: there is a CUDA device" in llm.executor_summary
    with LLM(tiny_checkpoint("llama"), device="cpu", **SIZES) as llm:
        assert llm.executor == "native"


def test_unknown_executors_are_refused(tmp_path):
    """With those that there are."""
    with pytest.raises(InvalidRequestError, match="unknown executor 'rust'") as caught:
        LLM(tmp_path, executor="rust")
    assert caught.value.hint == "give auto, native, torch"


def test_packed_weights_are_kept_and_found(tiny_checkpoint, tmp_path):
    """The second start maps what the first has packed; what is listed can be removed."""
    from inference_pio.core.packed import clear_packed, list_packed, remove_packed
    from inference_pio.interfaces import ModelNotFoundError

    options = {"executor": "native", "cache_dir": tmp_path, "max_num_seqs": 4, "max_model_len": 64}
    for _ in range(2):
        with LLM(tiny_checkpoint("llama"), **options) as llm:
            assert llm.generate({"prompt_token_ids": [3, 4]}, GREEDY)
    (entry,) = list_packed(tmp_path)
    assert entry.nbytes > 100_000
    with pytest.raises(ModelNotFoundError, match="no packed copy is called 'nothing'"):
        remove_packed("nothing", tmp_path)
    assert remove_packed(entry.key[:8], tmp_path) == [entry]
    with LLM(tiny_checkpoint("llama"), **options):
        pass
    assert clear_packed(tmp_path) == entry.nbytes
    assert list_packed(tmp_path) == []


def test_a_draft_model_runs_natively_too(tiny_checkpoint):
    """The same text as without it."""
    prompt = {"prompt_token_ids": list(range(5, 25))}
    texts = []
    for speculative in (None, tiny_checkpoint("llama", num_hidden_layers=1)):
        with LLM(tiny_checkpoint("llama"), executor="native", speculative=speculative, **SIZES) as llm:
            texts.append(llm.generate(prompt, GREEDY)[0].outputs[0].token_ids)
    assert texts[0] == texts[1]


def test_the_native_road_imports_no_torch(tiny_checkpoint):
    """From the import to the last token."""
    code = f"""
import sys
from inference_pio.core import LLM, SamplingParams
with LLM({str(tiny_checkpoint("llama"))!r}, executor="native", max_num_seqs=2, packed_cache_bytes=0) as llm:
    out = llm.generate({{"prompt_token_ids": [3, 4]}}, SamplingParams(max_tokens=3, ignore_eos=True, logprobs=2))
print(len(out[0].outputs[0].token_ids), [name for name in ("torch", "transformers") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "3 []"


def test_families_that_declare_native_are_lowerable():
    """The manifest and the plugin agree."""
    from inference_pio.core import Registry

    for installed in Registry.discover().plugins:
        for architecture in installed.entry_points:
            lowerable = isinstance(installed.load(architecture), LowerableModel)
            assert lowerable == ("native" in installed.manifest.capabilities)


def test_a_closed_executor_says_so(tiny_checkpoint):
    """And swapping, which is never needed, is refused."""
    from inference_pio.core.native_executor import NativeExecutor

    executor = NativeExecutor(
        object(),
        sampler=None,
        cache_groups=(),
        page_size=16,
        max_model_len=8,
        dtype="F32",
        weight_bytes=0,
        kv_cache_bytes=0,
        summary="",
    )
    with pytest.raises(ValueError, match=r"no page of group 0 can move to host memory: \[1\] to \[2\]"):
        executor.swap_out(0, [1], [2])
    with pytest.raises(ValueError, match=r"no page of group 0 can come from host memory: \[1\] to \[2\]"):
        executor.swap_in(0, [1], [2])
    executor.close()
    executor.close()
    with pytest.raises(ValueError, match="the executor is closed"):
        executor.step(None)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("executor", ["native", "torch"])
def test_hidden_states_are_those_of_the_latest_step(tiny_checkpoint, executor):
    """None where it asked for none, whatever the step before had; a closed executor has no steps."""
    with LLM(tiny_checkpoint("llama"), executor=executor, threads=1, **SIZES) as llm:
        inner = llm._executor
        assert isinstance(inner, HiddenStateExecutor)
        llm.embed([[3, 1, 4], [1, 5]])
        assert inner.hidden_states().shape == (5, llm.shape.hidden_size) == (5, inner.hidden_size)
        assert inner.hidden_states().dtype == np.float32
        llm.generate([[3, 1, 4]], SamplingParams(max_tokens=2), progress=False)
        assert inner.hidden_states().shape == (0, inner.hidden_size)
    with pytest.raises(ValueError, match="the executor is closed"):
        inner.hidden_states()


@pytest.mark.usefixtures("no_gpu")
def test_a_family_that_does_not_declare_embeddings_has_none(tiny_checkpoint, monkeypatch):
    """The kit has not passed them for it; texts go on."""
    from inference_pio.core._registry import InstalledPlugin

    load = InstalledPlugin.load

    def forget(self, architecture):
        kept = self.manifest.capabilities - {"embed"}
        object.__setattr__(self, "manifest", replace(self.manifest, capabilities=kept))
        return load(self, architecture)

    monkeypatch.setattr(InstalledPlugin, "load", forget)
    with LLM(tiny_checkpoint("llama"), executor="native", threads=1, **SIZES) as llm:
        assert not llm.can_embed
        with pytest.raises(UnsupportedError, match="does not declare the capability 'embed'"):
            llm.embed([[3, 1, 4]])
        assert len(llm.generate([[3, 1, 4]], GREEDY, progress=False)[0].outputs[0].token_ids) == 6
