"""Sessions over the workspace: every distribution is tested, measured and built alone, from its wheel.

``nox`` without arguments runs what a change needs before it is pushed. ``nox --list`` shows the rest.
"""

from __future__ import annotations

import atexit
import datetime as dt
import functools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path
from urllib.parse import unquote

import nox

ROOT = Path(__file__).resolve().parent
KERNELS = ROOT / "packages" / "pio-kernels"
sys.path[:0] = [str(ROOT / "tools"), str(KERNELS)]

from build_native import TARGETS  # noqa: E402 - beside its package; the line above makes it importable

from check_library import check_library_wheel  # noqa: E402 - tools/ is no package; the same
from check_wheel import check_wheel  # noqa: E402 - the same
from workspace import read_members, table  # noqa: E402 - the same

nox.needs_version = ">=2026.10"
nox.options.default_venv_backend = "uv"
nox.options.reuse_venv = "yes"
nox.options.error_on_external_run = True
nox.options.sessions = ["lint", "boundaries", "types", "tools", "docs", "tests"]

MEMBERS = read_members(ROOT)
EACH = [nox.param(name, id=member.name) for name, member in MEMBERS.items()]
NO_TESTS_COLLECTED = 5
TOOLS = ("cyclonedx-python-lib[json-validation]>=11", "griffe>=2.4", "packaging>=24")
"""What tools/ imports."""
INDEX = ("pypiserver>=2.4", "waitress>=3")
"""What a package index on loopback is made of."""
SOURCES = os.pathsep.join(str(member.folder / "src") for member in MEMBERS.values())


@nox.session
def lint(session: nox.Session) -> None:
    """Style, formatting, and the security of the workflows."""
    session.install("ruff>=0.14", "zizmor>=1.32")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("zizmor", "--offline", "--quiet", "--no-progress", "--persona=pedantic", ".github")


@nox.session
def boundaries(session: nox.Session) -> None:
    """Who may import whom, and that what is imported is declared."""
    session.install("import-linter>=2.16", "packaging>=24")
    session.run("lint-imports", "--no-cache", env={"PYTHONPATH": SOURCES})
    session.run("python", "tools/check_workspace.py")
    session.run("python", "tools/distribution_table.py", "--check")


@nox.session
def fragments(session: nox.Session) -> None:
    """That every change that ships has a fragment, since a base: ``-- BASE``, origin/main unless said otherwise."""
    session.install("packaging>=24")
    base = ["--base", *session.posargs] if session.posargs else []
    session.run("python", "tools/check_fragments.py", *base)


@nox.session
def types(session: nox.Session) -> None:
    """Strict types, in every distribution and in the tools."""
    pins = _export("--all-packages", "--extra", "otel", "--no-emit-workspace")
    third_party = _requirements(session, "third-party.txt", pins)
    session.install(
        "-r",
        third_party,
        *TOOLS,
        "mypy>=1.18",
        "nox>=2026.10",
        "types-PyYAML>=6",
        "types-psutil>=7",
        "types-tqdm>=4.67",
    )
    leaves = [argument for member in MEMBERS.values() for leaf in member.leaves for argument in ("-p", leaf)]
    session.run("mypy", *leaves, env={"MYPYPATH": SOURCES})
    tools = [str(path) for path in sorted((ROOT / "tools").glob("*.py"))]
    session.run("mypy", "noxfile.py", *tools, env={"MYPYPATH": f"tools{os.pathsep}{KERNELS}"})


@nox.session
def tools(session: nox.Session) -> None:
    """Tests of the workspace's own tools."""
    session.install(*TOOLS, *INDEX, "pytest>=8.4", "pytest-xdist>=3.8", "pyyaml>=6")
    session.run("pytest", "-c", "pyproject.toml", "tools/tests", *session.posargs)


@nox.session
def api(session: nox.Session) -> None:
    """What breaks in the public API of each distribution since its last release; arguments go to the tool."""
    session.install(*TOOLS)
    session.run("python", "tools/check_api.py", *session.posargs)


@nox.session
def reproduce(session: nox.Session) -> None:
    """Build distributions twice and compare the bytes: those that are named, or all of them."""
    session.install(*TOOLS)
    session.run("python", "tools/reproduce.py", *session.posargs)


@nox.session
def measure(session: nox.Session) -> None:
    """Size and import of each distribution, without extras and with torch, into docs/distributions.*; or of some."""
    chosen = session.posargs or list(MEMBERS)
    path = ROOT / "docs" / "distributions.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"distributions": {}}
    found = {name: figures for name, figures in before["distributions"].items() if name in MEMBERS}
    for name in chosen:
        figures = _measured(session, name, None)
        heavy = _measured(session, name, "torch") if "torch" in MEMBERS[name].extras else figures
        if heavy["bytes"] != heavy["bytes_without_torch"]:
            figures["bytes_with_torch"] = heavy["bytes"]
        found[name] = {key: value for key, value in figures.items() if key != "bytes"}
    machine = {"system": f"{platform.system()} {platform.machine()}", "python": f"Python {platform.python_version()}"}
    today = dt.datetime.now(dt.UTC).date().isoformat()
    measured = {"date": today, "machine": machine, "distributions": {name: found[name] for name in sorted(found)}}
    path.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    session.install("packaging>=24")
    session.run("python", "tools/distribution_table.py")


def _measured(session: nox.Session, name: str, extra: str | None) -> dict[str, float]:
    _install(session, name, groups=False, extra=extra)
    [leaf] = MEMBERS[name].leaves
    result = Path(session.create_tmp()) / "measured.json"
    options = ["--out", str(result), *(["--sizes-only"] if extra else [])]
    session.run("python", "tools/measure_environment.py", *options, leaf, name)
    found: dict[str, float] = json.loads(result.read_text(encoding="utf-8"))
    return found


@nox.session
def compatibility(session: nox.Session) -> None:
    """Core and model plugins of the tree against those of an index: ``-- --index URL``."""
    session.install(*TOOLS)
    session.run("python", "tools/compatibility.py", *session.posargs)


@nox.session(venv_backend="none")
def requirements(session: nox.Session) -> None:
    """Resolve anew what releases are built and published with, as of the root's date, into .github/requirements/."""
    session.cd(ROOT / ".github" / "requirements")
    newest = table(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8")), "tool", "uv")["exclude-newer"]
    shape = ["--universal", "--generate-hashes", "--python-version", "3.11", "--exclude-newer", str(newest)]
    named = ["--custom-compile-command", "uv run nox -s requirements"]
    for path in sorted(Path.cwd().glob("*.in")):
        command = ["uv", "--quiet", "pip", "compile", "--upgrade", *shape, *named, path.name]
        session.run(*command, "--output-file", path.with_suffix(".txt").name, external=True)


@nox.session
def docs(session: nox.Session) -> None:
    """The site, with warnings as errors, in site/; and its pages followed by tests."""
    pins = _export("--all-packages", "--group", "test", "--no-emit-workspace")
    wheels = "\n".join(str(_wheel(name)) for name in MEMBERS)
    tools = ("furo>=2025.12.19", "myst-parser>=5", "sphinx>=9")
    session.install("--exact", "-r", _requirements(session, "docs.txt", f"{pins}\n{wheels}\n"), *tools)
    session.run("sphinx-build", "--fresh-env", "--fail-on-warning", "--keep-going", "--quiet", "docs", "site")
    session.run("pytest", "-c", "pyproject.toml", "docs/tests", *session.posargs)


@nox.session
@nox.parametrize("name", EACH)
def tests(session: nox.Session, name: str) -> None:
    """Tests of one distribution against its wheel; arguments go to pytest."""
    _install(session, name, groups=False)
    for extra in sorted(set(MEMBERS[name].extra_modules.values())):
        _install(session, name, groups=False, extra=extra)
    _install(session, name, groups=True)
    _pytest(session, name)


@nox.session
@nox.parametrize("name", EACH)
def slow(session: nox.Session, name: str) -> None:
    """The tests of one distribution that take minutes; what they alone need is in its group ``test-slow``."""
    _install(session, name, groups=True, slow="test-slow" in MEMBERS[name].groups)
    _pytest(session, name, "-m", "slow", success_codes=(0, NO_TESTS_COLLECTED))


@nox.session
@nox.parametrize("name", EACH)
def lowest(session: nox.Session, name: str) -> None:
    """Tests of one distribution with the lowest versions that it says it works with."""
    project = MEMBERS[name].folder / "pyproject.toml"
    compiled = _uv(
        "pip", "compile", str(project), "--group", f"{project}:test", "--resolution", "lowest-direct",
        "--no-header", "--no-annotate", "--python", sys.executable,
    )  # fmt: skip
    _install_pins(session, name, compiled, groups=True)
    _pytest(session, name)


@nox.session
@nox.parametrize("name", EACH)
def bench(session: nox.Session, name: str) -> None:
    """Benchmarks of one distribution into bench-results/; quick ones, or all of it with ``-- --full``."""
    _install(session, name, groups=True)
    member = MEMBERS[name]
    arguments = [argument for argument in session.posargs if argument != "--full"]
    if "--full" not in session.posargs:
        arguments.append("--quick")
    results = ROOT / "bench-results" / member.name
    results.mkdir(parents=True, exist_ok=True)
    for script in sorted((member.folder / "benchmarks").glob("bench_*.py")):
        result = results / f"{script.stem.removeprefix('bench_')}.json"
        session.run("python", str(script), "--json", str(result), *arguments)
        if missing := {"benchmark", "package", "results", "machine"} - json.loads(result.read_text("utf-8")).keys():
            session.error(f"{script}: the result lacks {', '.join(sorted(missing))}")


@nox.session
@nox.parametrize("name", EACH)
def coverage(session: nox.Session, name: str) -> None:
    """Which lines of one distribution its own tests reach."""
    _install(session, name, groups=True)
    session.install("coverage>=7.10")
    [leaf] = MEMBERS[name].leaves
    data = f"--data-file={session.create_tmp()}/coverage"
    arguments = ["-m", "pytest", "-c", "pyproject.toml", str(MEMBERS[name].folder / "tests"), *session.posargs]
    session.run("coverage", "run", data, f"--source={leaf}", *arguments)
    session.run("coverage", "report", data)


@nox.session
def wheels(session: nox.Session) -> None:
    """Wheels of the native kernels for every platform, all built on this machine, in dist/pio-kernels-wheels/."""
    folder = ROOT / "dist" / "pio-kernels-wheels"
    shutil.rmtree(folder, ignore_errors=True)
    problems: list[str] = []
    for target in TARGETS:
        _uv("build", "--wheel", str(KERNELS), "--out-dir", str(folder), PIO_KERNELS_TARGET=target)
    for wheel in sorted(folder.glob("*.whl")):
        found = check_library_wheel(wheel)
        session.log(f"{wheel.name}: {wheel.stat().st_size / 1024:.0f} KiB, {len(found)} problems")
        problems += [f"{wheel.name}: {problem}" for problem in found]
    if problems:
        session.error("\n".join(problems))


@nox.session
def sanitize(session: nox.Session) -> None:
    """Tests of the native kernels in a library that stops at undefined behaviour and at wrong addresses; needs g++."""
    _install(session, "pio-kernels", groups=True)
    runtimes = [_output("g++", f"-print-file-name=lib{name}.so") for name in ("asan", "ubsan")]
    [library] = Path(session.virtualenv.location).rglob("libpio_kernels.so")
    checks = "-O1 -g -w -fsanitize=address,undefined -fno-sanitize-recover=undefined -lasan -lubsan"
    build = {"PIO_KERNELS_CXX": "g++", "PIO_KERNELS_FLAGS": checks}
    with tempfile.TemporaryDirectory() as folder:
        _uv("build", "--wheel", str(KERNELS), "--out-dir", folder, **build)
        [wheel] = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            library.unlink()
            library.write_bytes(archive.read(f"inference_pio/kernels/{library.name}"))
    # What is not told apart from our own leaks: Python frees little at its end.
    options = {"LD_PRELOAD": " ".join(runtimes), "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc"}
    tests = [str(path) for path in sorted((KERNELS / "tests").glob("test_*.py")) if path.name != "test_build.py"]
    arguments = ["-c", "pyproject.toml", *tests, "-k", "not emulated", *session.posargs]
    session.run("python", "-m", "pytest", *arguments, env=options)


@nox.session
def build(session: nox.Session) -> None:
    """Source distribution, the wheel from it, and what is inside, for every distribution, in dist/."""
    session.install("twine>=7")
    problems: list[str] = []
    archives: list[Path] = []
    for member in MEMBERS.values():
        folder = ROOT / "dist" / member.name
        _uv("build", str(member.folder), "--out-dir", str(folder), "--clear")
        [source], [wheel] = folder.glob("*.tar.gz"), folder.glob("*.whl")
        problems += check_wheel(wheel, member)
        archives += [source, wheel]
    session.run("twine", "check", "--strict", *map(str, archives))
    if problems:
        session.error("\n".join(problems))


@nox.session(name="release-rehearsal")
def release_rehearsal(session: nox.Session) -> None:
    """All releases to a real index on loopback: installed from there, killed in the middle, refused; takes minutes."""
    session.install("packaging>=24", *INDEX)
    session.run("python", "tools/release_rehearsal.py", *session.posargs)


def _install(session: nox.Session, name: str, *, groups: bool, slow: bool = False, extra: str | None = None) -> None:
    """Make the session's environment hold exactly ``name``, what it needs, one ``extra`` and its test groups.

    Without groups, import every module but those that need another extra: what only tests need must not be what makes
    it importable.
    """
    named = [*(["test"] if groups else []), *(["test-slow"] if slow else [])]
    chosen = [*(word for group in named for word in ("--group", group)), *(["--extra", extra] if extra else [])]
    _install_pins(session, name, _export("--package", MEMBERS[name].name, *chosen), groups=groups, extra=extra)


def _install_pins(session: nox.Session, name: str, pins: str, *, groups: bool, extra: str | None = None) -> None:
    """Install ``pins``, those of this workspace from their wheels; then hold the environment to that."""
    prefix = "-e "
    lines = pins.splitlines()
    places = (line.removeprefix(prefix).removeprefix("file://") for line in lines if line.startswith(prefix))
    folders = {ROOT / unquote(place) for place in places}
    expected = sorted(each for each, member in MEMBERS.items() if member.folder in folders or each == name)
    wanted = [line for line in lines if not line.startswith(prefix)] + [str(_wheel(each)) for each in expected]
    session.install("--exact", "-r", _requirements(session, f"{'test' if groups else 'run'}.txt", "\n".join(wanted)))
    [leaf] = MEMBERS[name].leaves
    left_out = [module for module, needed in MEMBERS[name].extra_modules.items() if needed != extra]
    imports = [] if groups else ["--import", leaf, *(word for module in left_out for word in ("--without", module))]
    light = [] if groups or extra else MEMBERS[name].light.options()
    session.run("python", "tools/check_environment.py", "--wheels", str(_wheelhouse()), *imports, *light, *expected)


def _pytest(session: nox.Session, name: str, *options: str, success_codes: tuple[int, ...] = (0,)) -> None:
    tests = str(MEMBERS[name].folder / "tests")
    session.run("pytest", "-c", "pyproject.toml", tests, *options, *session.posargs, success_codes=success_codes)


def _requirements(session: nox.Session, name: str, text: str) -> str:
    path = Path(session.create_tmp()) / name
    path.write_text(text, encoding="utf-8")
    return str(path)


@functools.cache
def _wheelhouse() -> Path:
    """Wheels of this run. A new folder each time, so that no environment can keep a wheel of an earlier one."""
    folder = tempfile.mkdtemp(prefix="pio-wheels-")
    atexit.register(shutil.rmtree, folder)
    return Path(folder).resolve()


@functools.cache
def _wheel(name: str) -> Path:
    folder = _wheelhouse() / "build" / name
    _uv("build", "--wheel", str(MEMBERS[name].folder), "--out-dir", str(folder))
    [built] = folder.glob("*.whl")
    return built.rename(_wheelhouse() / built.name)


@functools.cache
def _lock() -> None:
    _uv("lock")


def _export(*arguments: str) -> str:
    _lock()
    return _uv("export", "--frozen", "--no-default-groups", "--no-hashes", "--no-header", "--no-annotate", *arguments)


def _uv(*arguments: str, **environment: str) -> str:
    return _output("uv", "--quiet", *arguments, **environment)


def _output(*command: str, **environment: str) -> str:
    """What ``command`` prints, run in the root with ``environment`` beside our own."""
    variables = {**os.environ, **environment}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=variables)
    if done.returncode != 0:
        message = f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}"
        raise RuntimeError(message)
    return done.stdout.strip()
