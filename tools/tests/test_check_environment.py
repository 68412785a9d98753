"""What check_environment says of environments made by hand: folders of installed files and their records."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "check_environment.py"


@pytest.fixture
def environment(tmp_path):
    """An empty virtual environment, its folder of wheels, and a way to fake installed distributions."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    [site] = (tmp_path / "venv").glob("lib/python*/site-packages")
    wheels = tmp_path / "wheels"
    wheels.mkdir()

    class Environment:
        folder = site

        def install(self, name, origin, code="x = 1\n"):
            leaf = name.removeprefix("pio-")
            module = site / "inference_pio" / leaf / "__init__.py"
            module.parent.mkdir(parents=True, exist_ok=True)
            module.write_text(code, encoding="utf-8")
            information = site / f"{name.replace('-', '_')}-0.1.0.dist-info"
            information.mkdir()
            (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n", "utf-8")
            record = f"inference_pio/{leaf}/__init__.py,,\n{information.name}/METADATA,,\n"
            (information / "RECORD").write_text(record, "utf-8")
            if origin is not None:
                (information / "direct_url.json").write_text(json.dumps(origin), "utf-8")

        def wheel(self, name, code="x = 1\n"):
            url = (wheels / f"{name.replace('-', '_')}-0.1.0-py3-none-any.whl").as_uri()
            self.install(name, {"url": url, "archive_info": {}}, code)

        def third_party(self, name, size, needs=()):
            information = site / f"{name.replace('-', '_')}-1.0.dist-info"
            information.mkdir()
            (site / f"{name}.bin").write_bytes(b"x" * size)
            (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", "utf-8")
            (information / "RECORD").write_text(f"{name}.bin,,\n", "utf-8")
            self.require(name, *needs)

        def require(self, name, *needs):
            [path] = site.glob(f"{name.replace('-', '_')}-*.dist-info/METADATA")
            with path.open("a", encoding="utf-8") as metadata:
                metadata.writelines(f"Requires-Dist: {each}\n" for each in needs)

        def run(self, *arguments):
            python = tmp_path / "venv" / "bin" / "python"
            command = [python, SCRIPT, "--wheels", wheels, *arguments]
            return subprocess.run(command, capture_output=True, text=True, check=False)

    return Environment()


def test_exactly_the_expected_wheels(environment):
    """Sound when what is expected is there from its wheel, and imports."""
    environment.wheel("pio-base")
    environment.wheel("pio-top", "import inference_pio.base\n")
    done = environment.run("--import", "inference_pio.top", "pio-base", "pio-top")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 modules imported" in done.stdout


def test_one_that_is_out_comes_from_an_index(environment):
    """By its name alone; from a wheel or a folder it would not be what others get."""
    environment.wheel("pio-top")
    environment.install("pio-base", None)
    assert environment.run("--indexed", "pio-base", "pio-base", "pio-top").returncode == 0
    done = environment.run("--indexed", "pio-top", "--indexed", "pio-base", "pio-base", "pio-top")
    assert done.returncode == 1
    assert done.stderr.startswith("pio-top: not installed from an index: {'url': ")


def test_an_undeclared_distribution_is_found(environment):
    """A sibling that nothing declares would hide a missing declaration."""
    environment.wheel("pio-base")
    environment.wheel("pio-top")
    done = environment.run("pio-top")
    assert (done.returncode, done.stderr) == (1, "pio-base: installed, and nothing declares it\n")


def test_a_forbidden_distribution_is_found(environment):
    """However it is spelled; what is not there may be forbidden."""
    environment.wheel("pio-top")
    environment.wheel("pio-heavy")
    done = environment.run("--forbid", "Pio_Heavy", "--forbid", "torch", "pio-heavy", "pio-top")
    assert (done.returncode, done.stderr) == (1, "pio-heavy: installed, and must not be needed here\n")
    done = environment.run("--forbid", "torch", "pio-heavy", "pio-top")
    assert (done.returncode, done.stderr) == (0, "")


def test_an_environment_that_is_too_large_is_found(environment):
    """The files of all distributions count, and the largest are named."""
    environment.wheel("pio-top", "# " + "x" * 600_000)
    environment.wheel("pio-base", "# " + "x" * 500_000)
    done = environment.run("--max-mb", "1", "pio-base", "pio-top")
    largest = "pio-top 0.6, pio-base 0.5"
    assert (done.returncode, done.stderr) == (1, f"1.1 MB are installed, and 1 are allowed; the largest: {largest}\n")
    done = environment.run("--max-mb", "2", "pio-base", "pio-top")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("; 1.1 MB\n")


def test_what_torch_alone_brings_does_not_count(environment):
    """Its size is decided by the machine; what something else needs too counts all the same."""
    environment.wheel("pio-top")
    for name, size, needs in (
        ("torch", 3, ["Sym.Py>=1", "shared"]),
        ("sym-py", 2, []),
        ("shared", 1, []),
        ("own", 1, []),
    ):
        environment.third_party(name, size * 10**6, needs)
    environment.require("pio-top", "torch>=2", "own[fast]", 'nowhere; extra == "x"')
    environment.require("own", "shared; extra == 'fast'", "elsewhere; sys_platform == 'none'")
    done = environment.run("--max-mb", "1", "pio-top")
    assert done.returncode == 1
    assert done.stderr.startswith("2.0 MB are installed, and 1 are allowed; the largest: ")
    assert "torch" not in done.stderr
    done = environment.run("--max-mb", "3", "pio-top")
    assert (done.returncode, done.stderr) == (0, "")


def test_what_an_import_loads_is_limited(environment):
    """A number of modules, and names that must wait until they are used."""
    environment.wheel("pio-top", "import inference_pio.base\n")
    environment.wheel("pio-base", "import colorsys\n")
    both = ("--import", "inference_pio.top", "pio-base", "pio-top")
    done = environment.run("--lazy", "colorsys", *both)
    told = "importing inference_pio.top imports colorsys, which is to be imported when it is used\n"
    assert (done.returncode, done.stderr) == (1, told)
    done = environment.run("--max-modules", "3", *both)
    assert done.returncode == 1
    assert " modules, and 3 are allowed; the most: " in done.stderr
    done = environment.run("--max-modules", "999", "--lazy", "numpy", *both)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_missing_distribution_is_found(environment):
    """What is expected and not there."""
    environment.wheel("pio-top")
    done = environment.run("pio-base", "pio-top")
    assert (done.returncode, done.stderr) == (1, "pio-base: not installed\n")


@pytest.mark.parametrize(
    "origin",
    [
        None,
        {"url": "file:///elsewhere/pio_top-0.1.0-py3-none-any.whl", "archive_info": {}},
        {"url": "file:///tree/packages/pio-top", "dir_info": {"editable": True}},
        {"url": "file:///tree/packages/pio-top", "dir_info": {}},
    ],
    ids=["index", "other wheel", "editable", "folder"],
)
def test_another_origin_is_found(environment, origin):
    """From an index, from the tree, or from an earlier run's wheel: not what is under test."""
    environment.install("pio-top", origin)
    done = environment.run("pio-top")
    assert done.returncode == 1
    assert done.stderr.startswith("pio-top: not installed from a wheel in ")


def test_an_import_that_fails_is_found(environment):
    """A module that needs what is not there fails with the module's name."""
    environment.wheel("pio-top", "import inference_pio.base\n")
    done = environment.run("--import", "inference_pio.top", "pio-top")
    assert done.returncode == 1
    assert "No module named 'inference_pio.base'" in done.stderr


def test_a_library_for_ctypes_is_no_module(environment):
    """It has the suffix of an extension module and none of its functions; a real one that is broken is found."""
    environment.wheel("pio-top")
    library = environment.folder / "inference_pio" / "top" / "libtop.so"
    library.write_bytes(b"\x7fELF nothing of Python")
    done = environment.run("--import", "inference_pio.top", "pio-top")
    assert (done.returncode, done.stderr) == (0, "")
    library.write_bytes(b"\x7fELF PyInit_libtop")
    done = environment.run("--import", "inference_pio.top", "pio-top")
    assert done.returncode == 1
    assert "ImportError" in done.stderr


def test_a_module_that_needs_an_extra_is_left_out(environment):
    """It is not imported; one that is not there is a mistake in the table."""
    environment.wheel("pio-top")
    needy = environment.folder / "inference_pio" / "top" / "needy.py"
    needy.write_text("import nowhere\n", encoding="utf-8")
    without = ("--import", "inference_pio.top", "--without", "inference_pio.top.needy")
    done = environment.run(*without, "pio-top")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 modules imported" in done.stdout
    needy.unlink()
    done = environment.run(*without, "pio-top")
    assert done.returncode == 1
    assert "to be left out, but not there: inference_pio.top.needy" in done.stderr
