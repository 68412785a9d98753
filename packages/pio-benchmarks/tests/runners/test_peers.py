"""Sides in turn: the order, the pairing, the table, and a whole comparison with a rival that is a script."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil
import pytest

from inference_pio.benchmarks._gen_case import Case
from inference_pio.benchmarks._limits import Limits
from inference_pio.benchmarks._llama_cpp import LlamaCpp
from inference_pio.benchmarks._peers import LONG, Row, burning_core, compare, plan_groups
from inference_pio.benchmarks._peers_command import _kept, _ratio
from inference_pio.benchmarks._rivals import CaseGroup, LlamaCppSide
from inference_pio.benchmarks._statistics import Ratio
from inference_pio.interfaces import BrokenDependencyError, InvalidRequestError

if TYPE_CHECKING:
    from pathlib import Path

DECODE = Case(phase="decode", tokens=8)
PREFILL = Case(phase="prefill", tokens=64)

# Stands in for both benchmarks of llama.cpp: 100 tokens/s in everything of one sequence, 10 per sequence otherwise.
FAKE = """
import json, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
open(given.get("-m", sys.argv[2]), "rb").close()
if sys.argv[0].endswith("batched-bench"):
    for batch in map(int, given["-npl"].split(",")):
        tokens = int(given["-ntg"])
        seconds = tokens / 10
        print(json.dumps({"pp": 1, "tg": tokens, "pl": batch, "t_tg": seconds, "t": 2 * seconds}))
elif sys.argv[0].endswith("quantize"):
    open(sys.argv[3], "wb").write(open(sys.argv[2], "rb").read())
else:
    lengths = [("n_prompt", int(each)) for each in given["-p"].split(",") if int(each)]
    lengths += [("n_gen", int(each)) for each in given["-n"].split(",") if int(each)]
    empty = {"n_prompt": 0, "n_gen": 0, "n_depth": int(given["-d"]), "samples_ts": [100.0] * int(given["-r"])}
    print(json.dumps([empty | {key: value} for key, value in lengths]))
"""


@dataclass
class FakeSide:
    """Measures nothing, and notes that it was asked."""

    name: str
    log: list[tuple[str, str, int]]
    speeds: list[float] = field(default_factory=lambda: [10.0])
    engine: str = "fake"
    executor: str = "fake"
    format: str = "none"
    missing: tuple[Case, ...] = ()

    def measure(self, group: CaseGroup, threads: int) -> dict[Case, float]:
        self.log.append((group.name, self.name, threads))
        speed = self.speeds[(len(self.log) // 2) % len(self.speeds)]
        return {case: speed for case in group.cases if case not in self.missing}


@pytest.fixture
def fake_llama(tmp_path) -> Path:
    """A folder with programs of llama.cpp's names that answer in its forms."""
    folder = tmp_path / "llama"
    folder.mkdir()
    for name in ("llama-bench", "llama-batched-bench", "llama-quantize"):
        (folder / name).write_text(f"#!{sys.executable}\n{FAKE}", encoding="utf-8")
        (folder / name).chmod(0o755)
    return folder


def test_sides_take_turns_in_every_round_and_group():
    """A B A B: both sides of a group are measured before anything else is."""
    log: list[tuple[str, str, int]] = []
    groups = [CaseGroup(name="one", cases=(DECODE,)), CaseGroup(name="two", cases=(PREFILL,))]
    ends: list[int] = []
    compare(
        [FakeSide("A", log), FakeSide("B", log)],
        groups,
        [1, 2],
        rounds=2,
        progress=lambda _: None,
        after_round=lambda: ends.append(len(log)),
    )
    one_round = [("one", "A"), ("one", "B"), ("two", "A"), ("two", "B")]
    assert log == [(*each, threads) for threads in (1, 2) for _ in range(2) for each in one_round]
    assert ends == [4, 8, 12, 16]


def test_values_are_kept_by_round_and_ratios_are_of_medians():
    """Each side has one value per round; the ratio of a row is that of the medians of both sides."""
    log: list[tuple[str, str, int]] = []
    ours, theirs = FakeSide("A", log, [30.0]), FakeSide("B", log, [10.0])
    comparison = compare([ours, theirs], [CaseGroup(name="g", cases=(DECODE,))], [2], rounds=3, progress=lambda _: None)
    row = Row(DECODE, 2)
    assert comparison.rows == {row: {"A": [30.0] * 3, "B": [10.0] * 3}}
    assert comparison.ratio(row, "B") == Ratio(3.0, 3.0, 3.0)


def test_a_case_that_a_side_cannot_run_has_no_ratio():
    """The other cases of the group have one."""
    log: list[tuple[str, str, int]] = []
    sides = [FakeSide("A", log), FakeSide("B", log, missing=(PREFILL,))]
    comparison = compare(sides, [CaseGroup(name="g", cases=(DECODE, PREFILL))], [1], rounds=2, progress=lambda _: None)
    assert comparison.ratio(Row(PREFILL, 1), "B") is None
    assert comparison.ratio(Row(DECODE, 1), "B") is not None


def test_busy_rows_say_what_share_of_the_quiet_speed_is_kept():
    """10 tokens/s quiet and 5 beside a burning core is half; without a quiet row nothing can be said."""
    log: list[tuple[str, str, int]] = []
    quiet, busy = CaseGroup(name="q", cases=(DECODE,)), CaseGroup(name="b", cases=(DECODE,), busy=True)

    @dataclass
    class Slowed(FakeSide):
        def measure(self, group: CaseGroup, threads: int) -> dict[Case, float]:
            return {DECODE: (5.0 if group.busy else 10.0) * threads}

    comparison = compare([Slowed("A", log)], [quiet, busy], [1], rounds=2, progress=lambda _: None)
    assert comparison.kept(Row(DECODE, 1, busy=True), "A") == Ratio(0.5, 0.5, 0.5)
    assert _kept(comparison, Row(DECODE, 1, busy=True)).endswith("1 thread: A 50 %")
    alone = compare([Slowed("A", log)], [busy], [1], rounds=1, progress=lambda _: None)
    assert alone.kept(Row(DECODE, 1, busy=True), "A") is None
    assert "not measured on a quiet machine" in _kept(alone, Row(DECODE, 1, busy=True))


def test_a_core_burns_only_inside_the_context():
    """One more child process inside, none left behind, whatever happens there."""
    before = len(psutil.Process().children())

    def fail() -> None:
        assert len(psutil.Process().children()) == before + 1
        raise KeyError("planted")

    with pytest.raises(KeyError, match=r"planted"), burning_core():
        fail()
    assert len(psutil.Process().children()) == before


def test_planned_cases_are_those_that_were_named():
    """Batches decode at no context, those up to 8 at a long one; names keep their order."""
    groups = plan_groups(["long", "short"], batches=[1, 8, 32], prompt=512, generated=64, busy=True, quick=False)
    assert [group.name for group in groups] == ["short", "long", "busy"]
    assert [case.name for case in groups[0].cases] == [
        "decode, batch 1", "decode, batch 8", "decode, batch 32", "prefill 512",
    ]  # fmt: skip
    assert [case.name for case in groups[1].cases] == [
        f"decode, batch 1, context {LONG}", f"decode, batch 8, context {LONG}", f"prefill {LONG}",
    ]  # fmt: skip
    assert [(case.name, groups[2].busy) for case in groups[2].cases] == [
        ("decode, batch 1", True), ("prefill 512", True),
    ]  # fmt: skip
    (requests,) = plan_groups(["requests"], batches=[1], prompt=1, generated=1, busy=False, quick=False)
    assert [case.name for case in requests.cases] == ["32 requests (64 in, 64 out)"]


@pytest.mark.parametrize(("names", "message"), [(["fast"], "no cases 'fast'"), ([], "nothing to measure")])
def test_unknown_or_no_cases_are_refused(names, message):
    """The hint lists what there is."""
    with pytest.raises(InvalidRequestError, match=f"{message}.*short, requests, long"):
        plan_groups(names, batches=[1], prompt=1, generated=1, busy=False, quick=False)


def test_llama_cpp_measures_every_kind_of_case(fake_llama, tmp_path):
    """One sequence by llama-bench, several and requests by llama-batched-bench; each case has its own answer."""
    model = tmp_path / "m.gguf"
    model.touch()
    side = LlamaCppSide(name="x", format="Q4_0", model=model, build=LlamaCpp(fake_llama, "given"))
    cases = (
        DECODE,
        Case(phase="decode", tokens=8, context=256),
        Case(phase="decode", tokens=8, batch=4),
        Case(phase="decode", tokens=8, batch=2, context=256),
        PREFILL,
        Case(phase="engine", tokens=16, batch=4, prompt=16),
    )
    speeds = side.measure(CaseGroup(name="all", cases=cases, repeats=2), threads=1)
    assert list(speeds.values()) == pytest.approx([100, 100, 40, 20, 100, 20])


def test_a_rival_that_dies_is_named(tmp_path, fake_llama):
    """A model that is not there makes the program fail, and the error quotes it."""
    side = LlamaCppSide(name="x", format="Q4_0", model=tmp_path / "gone.gguf", build=LlamaCpp(fake_llama, "given"))
    with pytest.raises(BrokenDependencyError, match=r"llama-bench failed with exit code 1: FileNotFoundError"):
        side.measure(CaseGroup(name="g", cases=(DECODE,)), threads=1)


@pytest.mark.parametrize(
    ("ratio", "text"),
    [(None, "-"), (Ratio(1.5, None, None), "1.50x"), (Ratio(2.0, 1.75, 2.5), "2.00x (1.75..2.50)")],
)
def test_ratios_are_told_with_their_interval(ratio, text):
    """One round has no interval."""
    assert _ratio(ratio) == text


def test_the_format_of_a_file_is_that_of_most_weights(tiny_gguf):
    """Matrices outweigh norms."""
    from inference_pio.benchmarks._gen_executor import open_model
    from inference_pio.benchmarks._gen_report import arithmetic, main_encoding

    assert arithmetic("native", "Q8_0") == arithmetic("llama.cpp", "Q4_0") == "int8"
    assert arithmetic("torch", "Q8_0") is arithmetic("native", "BF16") is None
    assert main_encoding(open_model(tiny_gguf)) == "Q8_0"


def test_a_whole_comparison_with_a_rival_that_is_a_script(pio_bench, tiny_gguf, fake_llama, tmp_path, monkeypatch):
    """Our side is real; the record has speeds of all sides, ratios by round, limits and the machine."""
    monkeypatch.setenv("PIO_CACHE_DIR", str(tmp_path / "cache"))
    limits = (Limits(threads=1, read_gb_s=20.0, fp32_gflop_s=50.0, int8_gop_s=400.0, source="numpy, kernels"),)
    monkeypatch.setattr("inference_pio.benchmarks._limits.measure_limits", lambda *_, **__: limits)
    output = tmp_path / "record.json"
    done = pio_bench(
        "peers", tiny_gguf, "--quick", "--cases", "short", "--batch", "1,2", "--threads", "1", "--executor", "torch",
        "--llama-cpp", fake_llama, "-o", output,
    )  # fmt: skip
    assert done.code == 0, done.err
    shown = {line.partition(",")[0]: line for line in done.out.splitlines()}
    assert " % of compute" in shown["prefill 64"]
    assert " % of memory" in shown["decode"]
    record = json.loads(output.read_text(encoding="utf-8"))
    results = {each["name"]: each for each in record["results"]}
    assert len(results) == 3 * 5
    assert results["decode, batch 2, 1 thread: llama.cpp Q8_0"]["values"] == pytest.approx([20.0])
    ours = results["prefill 64, 1 thread: ours"]
    assert ours["details"]["engine"] == "ours"
    assert record["settings"]["executor_used"] == "torch"
    assert ours["ops_per_unit"] > 0
    ratio = results["prefill 64, 1 thread: ours over llama.cpp Q4_0"]
    assert ratio["values"] == pytest.approx([ours["values"][0] / 100])
    assert ratio["unit"] == "x"
    assert record["limits"][0]["read_gb_s"] == 20.0
    from inference_pio.benchmarks import read_record

    assert len(read_record(output).measurements) == 15
    assert [path.suffix for path in (tmp_path / "cache" / "benchmarks" / "models").iterdir()] == [".gguf"]


def test_a_folder_of_safetensors_cannot_be_held_against_llama_cpp(pio_bench, tiny_folder, fake_llama, tmp_path):
    """It is said before anything is measured."""
    done = pio_bench("peers", tiny_folder, "--quick", "--llama-cpp", fake_llama)
    assert done.code == 5
    assert "llama.cpp reads GGUF files" in done.err
