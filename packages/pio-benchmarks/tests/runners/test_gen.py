"""Speeds at the executor's seam: what is fed to it, what is counted, and the command end to end."""

from __future__ import annotations

import json

import numpy as np
import pytest

from inference_pio.benchmarks._gen_case import Case, bytes_per_token, case_from_json, case_to_json, ops_per_token
from inference_pio.benchmarks._gen_command import choose_model, plan_cases
from inference_pio.benchmarks._gen_driver import StepDriver
from inference_pio.benchmarks._gen_executor import build_executor, open_model, stored_bytes
from inference_pio.benchmarks._gen_measure import measure_case
from inference_pio.benchmarks._gen_process import run_worker
from inference_pio.benchmarks._gen_worker import measure, worker_main
from inference_pio.benchmarks._limits import Limits
from inference_pio.interfaces import BrokenDependencyError, DoesNotFitError, InvalidRequestError, ModelNotFoundError


@pytest.fixture
def torch_executor(tiny_folder):
    """Builds a torch executor in float32 for some cases on the tiny model; closes it afterwards."""
    built = []

    def build(*cases: Case):
        checkpoint = open_model(tiny_folder)
        built.append(build_executor(checkpoint, "torch", cases, threads=1, dtype="float32"))
        return checkpoint, built[-1]

    yield build
    for executor in built:
        executor.close()


@pytest.mark.parametrize(
    ("case", "name"),
    [
        (Case(phase="prefill", tokens=512), "prefill 512"),
        (Case(phase="decode", tokens=128, batch=8), "decode, batch 8"),
        (Case(phase="decode", tokens=128, context=4096), "decode, batch 1, context 4096"),
        (Case(phase="engine", tokens=64, batch=32, prompt=64), "32 requests (64 in, 64 out)"),
    ],
)
def test_cases_have_names_and_survive_json(case, name):
    """What a parent sends to a worker is what the worker runs."""
    assert case.name == name
    assert case_from_json(json.loads(json.dumps(case_to_json(case)))) == case


def test_decode_reads_weights_once_per_step_and_the_cache_of_every_sequence(tiny_folder):
    """At batch 4 and 100 tokens of context plus the middle of 1..3, in float16."""
    shape = open_model(tiny_folder).shape
    case = Case(phase="decode", tokens=3, batch=4, context=100)
    assert bytes_per_token(case, shape, 1000) == 250 + 102 * 2 * shape.kv_elements_per_token
    assert bytes_per_token(Case(phase="prefill", tokens=3), shape, 1000) is None


def test_operations_count_the_head_only_where_a_token_is_wanted(tiny_folder):
    """The difference of decode and prefill of as many tokens is the head for all tokens but one."""
    shape = open_model(tiny_folder).shape
    decode = ops_per_token(Case(phase="decode", tokens=8), shape, tied_head=False)
    prefill = ops_per_token(Case(phase="prefill", tokens=8), shape, tied_head=False)
    head = 2 * shape.vocab_size * shape.hidden_size
    assert decode - prefill == pytest.approx(head * 7 / 8)
    assert ops_per_token(Case(phase="engine", tokens=8), shape, tied_head=False) is None


@pytest.mark.parametrize("tied", [False, True])
def test_stored_bytes_leave_out_an_embedding_that_is_no_head(tiny_checkpoints, tied):
    """A step looks up a few rows of the embedding and multiplies with all of the head."""
    checkpoint = open_model(tiny_checkpoints("llama", tie_word_embeddings=tied))
    infos = [checkpoint.source.info(name) for name in checkpoint.source]
    total = sum(info.nbytes for info in infos)
    table = 131 * 64 * 4
    assert stored_bytes(checkpoint) == (total if tied else total - table)


def test_the_driver_computes_what_one_whole_step_computes(torch_executor):
    """Chunks, then one token at a time, in a batch: the last logits are those of the whole text in one step."""
    case = Case(phase="decode", tokens=40, batch=2)
    checkpoint, executor = torch_executor(case)
    tokens = np.random.default_rng(1).integers(checkpoint.shape.vocab_size, size=40).tolist()
    whole = StepDriver(executor, vocab_size=checkpoint.shape.vocab_size)
    whole.open(1, 40, tokens)
    expected = np.array(whole.step(40, all_logits=True))
    whole.close()
    driver = StepDriver(executor, vocab_size=checkpoint.shape.vocab_size)
    driver.open(2, 40, tokens)
    rows = [np.array(driver.step(count)) for count in (17, 20, 1, 1, 1)]
    driver.close()
    ends = np.cumsum([17, 20, 1, 1, 1]) - 1
    for end, row in zip(ends, rows, strict=True):
        np.testing.assert_allclose(row, np.stack([expected[end]] * 2), atol=2e-4)


def test_a_filled_context_is_the_same_for_every_sequence(torch_executor):
    """The pages that are copied hold what was computed: the next logits of a copy are those of the first."""
    case = Case(phase="decode", tokens=1, batch=3, context=50)
    checkpoint, executor = torch_executor(case)
    driver = StepDriver(executor, vocab_size=checkpoint.shape.vocab_size)
    tokens = np.random.default_rng(2).integers(checkpoint.shape.vocab_size, size=51).tolist()
    driver.open(3, 51, tokens)
    driver.fill(50, 16)
    logits = np.array(driver.step(1))
    np.testing.assert_allclose(logits, np.stack([logits[0]] * 3), atol=1e-5)
    driver.close()
    alone = StepDriver(executor, vocab_size=checkpoint.shape.vocab_size)
    alone.open(1, 51, tokens)
    np.testing.assert_allclose(np.array(alone.step(51)), logits[:1], atol=2e-4)
    alone.close()


def test_what_is_beyond_the_cache_does_not_fit(torch_executor):
    """The cache was made for one sequence; a hundred of the model's whole context is too much."""
    checkpoint, executor = torch_executor(Case(phase="prefill", tokens=8))
    driver = StepDriver(executor, vocab_size=checkpoint.shape.vocab_size)
    pages = executor.cache_groups[0].num_pages
    with pytest.raises(DoesNotFitError, match=r"the cache has no room for"):
        driver.open(pages + 1, 8)


@pytest.mark.parametrize(
    "case",
    [
        Case(phase="prefill", tokens=20),
        Case(phase="prefill", tokens=20, context=30),
        Case(phase="decode", tokens=3, batch=2, context=10),
        Case(phase="engine", tokens=3, batch=2, prompt=5),
    ],
    ids=lambda case: case.name,
)
def test_every_phase_is_measured_as_often_as_asked(torch_executor, case):
    """Two speeds, both positive; the pages are free again, so that it can be done twice."""
    checkpoint, executor = torch_executor(case)
    for _ in range(2):
        values = measure_case(case, executor, checkpoint, repeats=2)
        assert len(values) == 2
        assert min(values) > 0


@pytest.mark.parametrize(
    "case",
    [
        Case(phase="prefill", tokens=20),
        Case(phase="decode", tokens=3, batch=2, context=10),
        Case(phase="engine", tokens=3, batch=2, prompt=5),
    ],
    ids=lambda case: case.name,
)
def test_steps_ask_for_what_greedy_decoding_needs_or_for_all(torch_executor, monkeypatch, case):
    """The most likely token of each row; with every logit, in cases of steps alone, all."""
    checkpoint, executor = torch_executor(case)
    step, wanted = executor.step, set()

    def recording(batch):
        if batch.logit_rows.size:
            wanted.update([0] if batch.largest_wanted is None else batch.largest_wanted.tolist())
        return step(batch)

    monkeypatch.setattr(executor, "step", recording)
    measure_case(case, executor, checkpoint, repeats=1)
    assert wanted == {1}
    wanted.clear()
    measure_case(case, executor, checkpoint, repeats=1, all_logits=True)
    assert wanted == ({1} if case.phase == "engine" else {0})


def test_cases_of_a_command_line_are_all_combinations():
    """Every prompt and every batch at every context; zero leaves a phase out."""
    names = [case.name for case in plan_cases([64], 8, [1, 2], [0, 100])]
    assert names == [
        "prefill 64",
        "prefill 64, context 100",
        "decode, batch 1",
        "decode, batch 2",
        "decode, batch 1, context 100",
        "decode, batch 2, context 100",
    ]
    assert [case.phase for case in plan_cases([0], 8, [1], [0])] == ["decode"]
    assert [case.phase for case in plan_cases([4], 0, [1], [0])] == ["prefill"]
    with pytest.raises(InvalidRequestError, match=r"nothing to measure"):
        plan_cases([0], 0, [1], [0])


@pytest.mark.parametrize(
    ("executor", "dtype", "message"),
    [
        ("fast", "auto", "unknown executor 'fast' .give auto, native, torch"),
        ("torch", "int4", "the executor 'torch' has no dtype 'int4' .give auto, float32, bfloat16, float16"),
        ("native", "float16", "the executor 'native' has no dtype 'float16' .give auto, bfloat16, int8"),
        ("auto", "int4", "the executor 'auto' has no dtype 'int4'"),
    ],
)
def test_unknown_executors_and_dtypes_are_refused(tiny_folder, executor, dtype, message):
    """With what there is instead."""
    with pytest.raises(InvalidRequestError, match=message):
        build_executor(open_model(tiny_folder), executor, [Case(phase="prefill", tokens=8)], threads=1, dtype=dtype)


def test_a_case_beyond_the_context_is_refused(tiny_folder):
    """256 is what the tiny model was made for."""
    with pytest.raises(InvalidRequestError, match=r"a case of 300 tokens is beyond the context of 256"):
        build_executor(open_model(tiny_folder), "torch", [Case(phase="prefill", tokens=300)], threads=1)


def test_a_model_and_a_shape_exclude_each_other():
    """One of the two is what is measured."""
    with pytest.raises(InvalidRequestError, match=r"both MODEL 'm' and --shape 'qwen3-0.6b' are given"):
        choose_model("m", "qwen3-0.6b", lambda _: None)
    with pytest.raises(InvalidRequestError, match=r"no shape 'qwen9' .give qwen3-0.6b"):
        choose_model(None, "qwen9", lambda _: None)


def test_a_worker_tells_its_errors_as_data(tiny_folder):
    """The parent needs the message, the class and the hint."""
    lines: list[str] = []
    spec = {
        "model": str(tiny_folder),
        "executor": "torch",
        "dtype": "auto",
        "threads": 1,
        "rounds": 1,
        "repeats": 1,
        "warm_up": False,
        "all_logits": False,
        "cases": [case_to_json(Case(phase="prefill", tokens=300))],
    }
    assert worker_main(measure, [json.dumps(spec)], lines.append) == 1
    assert json.loads(lines[0])["kind"] == "InvalidRequestError"
    assert "beyond the context" in json.loads(lines[0])["error"]


def test_errors_of_a_worker_come_back_as_their_own_class():
    """A model that is not there is the same error on both sides of the process boundary."""
    with pytest.raises(ModelNotFoundError, match=r"no file or folder './gone.gguf'"):
        run_worker("./gone.gguf", [Case(phase="prefill", tokens=8)], threads=1)


def test_a_worker_that_crashes_is_quoted():
    """What is no error of ours comes with the last line of its traceback."""
    with pytest.raises(BrokenDependencyError, match=r"measuring ended with code 1: .*No module named"):
        run_worker("m", [Case(phase="prefill", tokens=8)], threads=1, module="inference_pio.benchmarks.no_such_module")


def test_pio_bench_gen_measures_a_model(pio_bench, tiny_gguf, tmp_path, monkeypatch):
    """A table for people; the same as a record: one value per round, and what the limit needs to know."""
    limits = (Limits(threads=1, read_gb_s=20.0, fp32_gflop_s=50.0, int8_gop_s=None, source="numpy"),)
    monkeypatch.setattr("inference_pio.benchmarks._limits.measure_limits", lambda _: limits)
    output = tmp_path / "record.json"
    arguments = ("gen", tiny_gguf, "--prompt", "16", "--gen", "4", "--batch", "1,2", "--context", "0,20")
    done = pio_bench(*arguments, "--threads", "1", "--rounds", "2", "--executor", "torch", "-o", output)
    assert done.code == 0, done.err
    assert "decode, batch 2, context 20, 1 thread" in done.out
    assert " % of " in done.out
    results = json.loads(output.read_text(encoding="utf-8"))["results"]
    assert len(results) == 6
    assert {len(each["values"]) for each in results} == {2}
    assert {each["details"]["engine"] for each in results} == {"torch"}
    decode = next(each for each in results if each["name"] == "decode, batch 1, 1 thread")
    assert decode["bytes_per_unit"] > stored_bytes(open_model(tiny_gguf))


def test_reading_quantised_weights_is_held_to_int8_arithmetic(pio_bench, tiny_gguf, tmp_path, monkeypatch):
    """The native executor's prefill is a share of what the processor does with 8-bit integers."""
    monkeypatch.setenv("PIO_CACHE_DIR", str(tmp_path))
    limits = (Limits(threads=1, read_gb_s=20.0, fp32_gflop_s=1e-6, int8_gop_s=1e6, source="numpy, kernels"),)
    monkeypatch.setattr("inference_pio.benchmarks._limits.measure_limits", lambda _: limits)
    done = pio_bench(
        "gen", tiny_gguf, "--prompt", "16", "--gen", "0", "--threads", "1", "--rounds", "1", "--executor", "native"
    )
    assert done.code == 0, done.err
    assert " 0 % of compute" in done.out


def test_pio_bench_gen_refuses_what_is_no_number(pio_bench):
    """The option is named."""
    done = pio_bench("gen", "--batch", "many")
    assert done.code == 2
    assert "--batch: 'many' is no list of positive integers" in done.err
