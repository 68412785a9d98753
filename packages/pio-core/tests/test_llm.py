"""The offline API on tiny random checkpoints and on the real default model, held to transformers."""

from __future__ import annotations

import gc
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import transformers

from inference_pio.core import LLM, Registry, SamplingParams, inspect_model
from inference_pio.interfaces import (
    ConfigError,
    DoesNotFitError,
    FinishReason,
    InvalidRequestError,
    MalformedFileError,
    ModelNotFoundError,
    TemplateError,
    UnsupportedError,
)

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
PROMPTS = [[5, 17, 99, 3], [7], list(range(3, 60)), [100, 100, 100]]


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def tiny(request, tmp_path_factory):
    """A tiny random checkpoint, and transformers' model of it."""
    from inference_pio.testing import tiny_checkpoint

    folder = tiny_checkpoint(request.param, tmp_path_factory.mktemp(request.param))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.generation_config.eos_token_id = None  # go on to the end, as ``ignore_eos`` does
    return folder, model.eval()


@pytest.fixture(scope="module")
def real(default_model_path):
    """The default model, loaded once."""
    return LLM(default_model_path, dtype="float32")


def oracle_greedy(model, prompt, count):
    ids = torch.tensor([prompt])
    mask = torch.ones_like(ids)
    out = model.generate(ids, attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=0)
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("kv_cache", ["paged", "contiguous"])
@pytest.mark.parametrize("max_num_seqs", [1, 3])
def test_greedy_equals_transformers(tiny, kv_cache, max_num_seqs):
    """A ragged batch of prompts gives transformers' greedy tokens, each prompt alone there."""
    folder, model = tiny
    llm = LLM(folder, dtype="float32", kv_cache=kv_cache, max_num_seqs=max_num_seqs)
    outputs = llm.generate(PROMPTS, GREEDY)
    assert [output.prompt_token_ids for output in outputs] == PROMPTS
    assert [output.outputs[0].token_ids for output in outputs] == [oracle_greedy(model, p, 12) for p in PROMPTS]
    assert llm._engine.cache.usage == 0


def test_log_probabilities_equal_transformers(tiny):
    """Prompt and text positions agree with log-softmax of transformers' logits, ranks included."""
    folder, model = tiny
    llm = LLM(folder, dtype="float32")
    params = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True, logprobs=3, prompt_logprobs=3)
    (output,) = llm.generate(PROMPTS[2], params)
    tokens = output.prompt_token_ids + output.outputs[0].token_ids
    with torch.no_grad():
        wanted = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    entries = output.prompt_logprobs[1:] + output.outputs[0].logprobs
    assert len(entries) == len(tokens) - 1
    for position, entry in enumerate(entries):
        assert tokens[position + 1] in entry
        for token_id, candidate in entry.items():
            assert candidate.logprob == pytest.approx(float(wanted[position, token_id]), abs=1e-4)
            assert candidate.rank == 1 + int((wanted[position] > wanted[position, token_id]).sum())
            assert candidate.decoded_token is None


def test_a_model_without_tokenizer_runs_on_token_ids(tiny):
    """Token ids in, token ids out; text and stop strings are refused with the way out."""
    llm = LLM(tiny[0])
    assert llm.tokenizer is None
    assert llm.generate([[1, 2]], GREEDY)[0].outputs[0].text == ""
    with pytest.raises(InvalidRequestError, match=r"no tokenizer files.*token ids"):
        llm.generate("text")
    with pytest.raises(InvalidRequestError, match="no tokenizer files"):
        llm.chat([{"role": "user", "content": "Hi"}])
    with pytest.raises(InvalidRequestError, match="stop_token_ids"):
        llm.generate([1, 2], SamplingParams(stop="x"))


def test_dtypes_and_defaults(tiny):
    """``auto`` keeps float32 checkpoints exact on a CPU; an explicit dtype is what runs."""
    assert LLM(tiny[0], executor="torch", device="cpu").dtype == "float32"
    llm = LLM(tiny[0], device="cpu", dtype="bfloat16")
    assert llm.dtype == "bfloat16"
    assert len(llm.generate([1, 2], GREEDY)[0].outputs[0].token_ids) == 12
    assert llm.executor == "torch"
    assert llm.device == "cpu"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dtype": "float8"}, InvalidRequestError, "unknown dtype 'float8' .*bfloat16"),
        ({"device": "tpu9"}, InvalidRequestError, "unknown device 'tpu9'"),
        ({"kv_cache": "magic"}, InvalidRequestError, "unknown kv_cache 'magic'"),
        ({"threads": 0}, InvalidRequestError, "threads must be at least 1, got 0"),
        ({"max_num_seqs": 0}, InvalidRequestError, "max_num_seqs must be at least 1"),
        ({"max_model_len": 100_000}, InvalidRequestError, "model's context of 256, got 100000"),
        ({"attention": "magic"}, Exception, "magic"),
    ],
)
def test_bad_options(tiny, options, error, message):
    """Each option is checked, with its value and what it may be."""
    with pytest.raises(error, match=message):
        LLM(tiny[0], **options)


def test_undeclared_capabilities_are_refused(tiny, monkeypatch):
    """A plugin that declares nothing is not run; one without pages runs contiguous, unless pages were asked for."""
    original = Registry.discover()

    def declaring(*capabilities):
        plugins = [
            replace(plugin, manifest=replace(plugin.manifest, capabilities=frozenset(capabilities)))
            for plugin in original.plugins
        ]
        monkeypatch.setattr(Registry, "discover", classmethod(lambda cls: cls(plugins)))

    declaring()
    with pytest.raises(UnsupportedError, match="does not declare the capability 'generate'"):
        LLM(tiny[0])
    declaring("generate")
    assert LLM(tiny[0], max_num_seqs=3).cache_groups[0].num_pages == 3
    with pytest.raises(UnsupportedError, match=r"'paged-kv'.*contiguous"):
        LLM(tiny[0], kv_cache="paged")


def test_seeds_make_texts_repeat(tiny):
    """The same seed gives the same tokens in any batch; ``LLM(seed=...)`` seeds requests that bring none."""
    llm = LLM(tiny[0], dtype="float32")
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=10, ignore_eos=True)
    alone = llm.generate([PROMPTS[0]], params)[0].outputs[0].token_ids
    crowd = llm.generate(PROMPTS, params)[0].outputs[0].token_ids
    assert alone == crowd
    free = SamplingParams(temperature=1.0, max_tokens=10, ignore_eos=True)
    first, second = (LLM(tiny[0], seed=11).generate([PROMPTS[0]] * 2, free) for _ in range(2))
    assert [o.outputs[0].token_ids for o in first] == [o.outputs[0].token_ids for o in second]
    assert first[0].outputs[0].token_ids != first[1].outputs[0].token_ids


def test_one_refused_prompt_refuses_the_call_and_leaves_nothing(tiny):
    """A bad prompt among good ones raises before anything is generated, and the engine is free again."""
    llm = LLM(tiny[0])
    with pytest.raises(InvalidRequestError, match="256 tokens, and the context holds 256"):
        llm.generate([[1, 2], [1] * 256], GREEDY)
    assert not llm._engine.has_work
    assert llm._engine.cache.usage == 0
    assert len(llm.generate([[1, 2]], GREEDY)) == 1


def test_interrupts_leave_nothing_behind(tiny, monkeypatch):
    """Ctrl-C in the middle of a step comes through, and no request or page stays behind."""
    llm = LLM(tiny[0])
    step, calls = llm._executor.step, []

    def interrupted(batch):
        calls.append(batch)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(batch)

    monkeypatch.setattr(llm._executor, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(PROMPTS, GREEDY)
    assert not llm._engine.has_work
    assert llm._engine.cache.usage == 0
    assert len(llm.generate(PROMPTS, GREEDY)) == 4


def test_streams_can_interleave_close_and_be_dropped(tiny):
    """Two streams advance side by side with the tokens each would give alone; closing or dropping one frees it."""
    llm = LLM(tiny[0], dtype="float32")
    alone = [output.outputs[0].token_ids for output in llm.generate(PROMPTS[:2], GREEDY)]
    first, second = (llm.stream(prompt, GREEDY) for prompt in PROMPTS[:2])
    pairs = list(zip(first, second, strict=True))
    assert [[event.token_id for event in side] for side in zip(*pairs, strict=True)] == alone
    assert first.output.finished
    with llm.stream(PROMPTS[2], GREEDY) as stream:
        next(stream)
    assert stream.output.outputs[0].finish_reason is FinishReason.ABORT
    dropped = llm.stream(PROMPTS[2], GREEDY)
    next(dropped)
    del dropped
    gc.collect()
    assert not llm._engine.has_work
    assert llm._engine.cache.usage == 0


def test_generation_defaults_come_from_the_checkpoint(tiny, tmp_path):
    """``generation_config.json`` gives the default parameters and more end tokens."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in tiny[0].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "generation_config.json").write_text(
        '{"temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": [2, 9]}'
    )
    llm = LLM(folder)
    params = llm.get_default_sampling_params()
    assert (params.temperature, params.top_k, params.top_p) == (0.6, 20, 0.95)
    assert llm._engine.limits.eos_token_ids == {2, 9}


def test_bad_files(tiny, tmp_path):
    """Unknown keys, truncated weights and missing folders are told apart, each with the way out."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in tiny[0].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"hidden_size"', '"hiden_size"'))
    with pytest.raises(ConfigError, match=r"hiden_size.*hidden_size"):
        LLM(folder)
    (folder / "config.json").write_text(config.replace("{", '{"quantum_gate": 3,', 1))
    with pytest.raises(ConfigError, match="quantum_gate"):
        LLM(folder)
    assert LLM(folder, ignore_unknown_keys=True).name == "copy"
    (folder / "config.json").write_text(config)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(MalformedFileError, match=r"model\.safetensors"):
        LLM(folder)
    weights.unlink()
    with pytest.raises((ModelNotFoundError, MalformedFileError), match="copy"):
        LLM(folder)
    with pytest.raises(ModelNotFoundError, match="did you mean 'smollm2-135m-instruct'"):
        LLM("smollm2-135m-instrukt")


def test_no_memory_is_said_before_loading(tiny, monkeypatch):
    """With too little memory for the weights the error has both sizes; an allocation that fails later is told too."""
    for executor in ("native", "torch"):
        monkeypatch.setattr(f"inference_pio.core.{executor}_executor.available_memory", lambda: 1000)
        with pytest.raises(DoesNotFitError, match=r"weights of .* need .* and .* available"):
            LLM(tiny[0], executor=executor)
    monkeypatch.undo()
    llm = LLM(tiny[0], executor="torch")

    def fails(*_):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(llm._executor._model, "forward", fails)
    with pytest.raises(DoesNotFitError, match="out of memory in a step of 2 tokens"):
        llm.generate([1, 2], GREEDY)


def test_the_real_model_answers(real):
    """SmolLM2 knows the capital of France, ends by itself, and streams the same text."""
    messages = [{"role": "user", "content": "Name the capital of France."}]
    params = SamplingParams(temperature=0.0, max_tokens=32)
    (output,) = real.chat(messages, params)
    assert output.outputs[0].text == "The capital of France is Paris."
    assert output.outputs[0].finish_reason is FinishReason.STOP
    with real.chat_stream(messages, params) as stream:
        assert "".join(event.text for event in stream) == output.outputs[0].text
    assert stream.output.outputs[0] == output.outputs[0]
    assert output.metrics.ttft_s > 0


def test_candidates_carry_their_text(real):
    """Each candidate has its token's own text, the leading space included, and the chosen ones spell the answer."""
    params = SamplingParams(temperature=0.0, max_tokens=6, logprobs=2)
    output = real.generate("The capital of France is", params)[0].outputs[0]
    chosen = [entry[token].decoded_token for token, entry in zip(output.token_ids, output.logprobs, strict=True)]
    assert "".join(chosen) == output.text
    assert chosen[0].startswith(" ")
    assert all(len(entry) in {2, 3} for entry in output.logprobs)


def test_stop_strings_across_tokens(real):
    """A stop string that spans tokens ends the text before it and is the stop reason."""
    prompt = "One, two, three, four, five,"
    whole = real.generate(prompt, SamplingParams(temperature=0.0, max_tokens=16))[0].outputs[0].text
    stop = whole[5:9]
    params = SamplingParams(temperature=0.0, max_tokens=16, stop=["never this", stop])
    output = real.generate(prompt, params)[0].outputs[0]
    assert output.text == whole[: whole.index(stop)]
    assert (output.finish_reason, output.stop_reason) == (FinishReason.STOP, stop)
    kept = real.generate(
        prompt, SamplingParams(temperature=0.0, max_tokens=16, stop=stop, include_stop_str_in_output=True)
    )
    assert kept[0].outputs[0].text == whole[: whole.index(stop) + len(stop)]


def test_templates_of_the_caller(real):
    """A template of the caller's replaces the model's; one that refuses says so."""
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    (output,) = real.chat([{"role": "user", "content": "Two plus two is"}], GREEDY, chat_template=template)
    assert output.prompt == "Two plus two is"
    with pytest.raises(TemplateError, match="no system"):
        real.chat([{"role": "user", "content": "x"}], GREEDY, chat_template="{{ raise_exception('no system') }}")


def test_inspecting_reads_headers_only(default_model_path):
    """``inspect_model`` describes the real file in a process that never imports torch."""
    report = inspect_model(default_model_path)
    assert (report.architecture, report.parameters, report.context_length) == ("LlamaForCausalLM", 134_515_008, 8192)
    assert report.kv_bytes_per_token["bfloat16"] == 23_040
    assert [use.encoding for use in report.encodings] == ["Q4_1", "Q8_0", "F32"]
    assert report.tied_head
    assert report.chat_template
    code = (
        "import sys; from inference_pio.core import inspect_model; inspect_model(sys.argv[1]);"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(default_model_path)], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
