"""What compatibility says of toy cores and plugins: which promises hold, and, slow, real meetings over a real index."""

import json
import os
import subprocess
import sys

import pytest

from compatibility import APART, FAILS, WORKS, Bench, Cell, _install, is_promised, render
from release_refusal import RefusedError
from workspace import ROOT

INTERFACES = '"""Contracts."""\nAPI_VERSION = "0.1"\n\ndef greeting(name):\n    return f"hello {name}"\n'
CORE = '''\
"""Finds plugins; takes those of its own API version and of the one before."""
from importlib.metadata import entry_points
from pathlib import Path
import importlib.util, tomllib
from inference_pio.interfaces import API_VERSION

class Registry:
    @classmethod
    def discover(cls):
        self = cls()
        self.plugins, self.problems = [], {}
        for point in entry_points(group="inference_pio.models"):
            path = Path(importlib.util.find_spec(point.module).origin).with_name("pio-plugin.toml")
            manifest = type("Manifest", (), tomllib.loads(path.read_text()))
            older = int(API_VERSION.split(".")[1]) - int(manifest.api.split(".")[1])
            if older in (0, 1):
                self.plugins.append(type("Plugin", (), {"manifest": manifest}))
            else:
                self.problems[point.name] = f"{manifest.distribution} was written for plugin API {manifest.api}"
        return self
'''
TESTS = '"""It greets."""\nfrom inference_pio.models.toy import greet\n\n\ndef test_it():\n    """As ever."""\n'
TESTS += '    assert greet() == "hello toy"\n'


@pytest.mark.parametrize(
    ("core", "plugin", "promised"),
    [("0.1", "0.1", True), ("0.2", "0.1", True), ("0.3", "0.1", False), ("0.1", "0.2", False), ("1.0", "0.9", False)],
)
def test_which_plugins_a_core_promises_to_take(core, plugin, promised):
    """Those of its own minor and of the one before."""
    assert is_promised(core, plugin) is promised


def test_a_meeting_in_words():
    """Who met whom, how, and what came of it."""
    cell = Cell(
        plugin="p 1 (tree)", core="c 2 (published)", api=("0.2", "0.1"), result=APART, why="bounds", forced=True
    )
    told = "c 2 (published) with p 1 (tree) (API 0.2 and 0.1), installed against the bounds: apart: bounds"
    assert render(cell) == told


def test_an_index_that_does_not_answer_keeps_nobody_apart(tmp_path, monkeypatch):
    """That something cannot be had is no word about bounds."""
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    bench = Bench(root=tmp_path, members={}, index="http://127.0.0.1:9/simple/", scratch=tmp_path, select=())
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    with pytest.raises(RefusedError, match=r"^uv pip install: "):
        _install(bench, python, ["pio-nothing"], ["pio-nothing==1"], overrides=False)


def project(name, version, needs=(), extra=""):
    needed = json.dumps(list(needs))
    return (
        '[build-system]\nrequires = ["hatchling>=1.27"]\nbuild-backend = "hatchling.build"\n'
        f'[project]\nname = "{name}"\nversion = "{version}"\nrequires-python = ">=3.11"\n'
        f"dependencies = {needed}\n{extra}"
        '[dependency-groups]\ntest = ["pytest>=8.4"]\n'
        '[tool.hatch.build.targets.wheel]\npackages = ["src/inference_pio"]\n'
        '[tool.hatch.build.targets.sdist]\ninclude = ["src", "tests"]\n'
    )


class Small:
    """A workspace of four distributions, that can be published as it is."""

    def __init__(self, root):
        self.root = root
        self.write("pyproject.toml", '[tool.pytest.ini_options]\naddopts = ["--import-mode=importlib"]\n')
        self.code("packages/pio-interfaces", "interfaces", INTERFACES)
        self.code("packages/pio-core", "core", CORE)
        self.code("packages/pio-testing", "testing", '"""The kit."""\nimport inference_pio.core\n')
        greet = "from inference_pio.interfaces import greeting\n\ndef greet():\n    return greeting('toy')\n"
        self.code("models/pio-model-toy", "models/toy", greet)
        self.write("models/pio-model-toy/tests/test_toy.py", TESTS)
        self.bound(">=0.1,<0.2")
        self.write("packages/pio-interfaces/pyproject.toml", project("pio-interfaces", "0.1.0"))
        self.api("0.1")

    def write(self, path, text):
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text, encoding="utf-8")

    def code(self, folder, leaf, text):
        self.write(f"{folder}/src/inference_pio/{leaf}/__init__.py", text)

    def bound(self, bound, version="0.1.0"):
        """Everybody's bound on the contracts, and the versions that have it."""
        needs = [f"pio-interfaces{bound}"]
        self.write("packages/pio-core/pyproject.toml", project("pio-core", version, needs))
        self.write(
            "packages/pio-testing/pyproject.toml", project("pio-testing", version, [*needs, "pio-core>=0.1,<0.2"])
        )
        extra = '[project.optional-dependencies]\ntorch = []\n[project.entry-points."inference_pio.models"]\n'
        extra += 'Toy = "inference_pio.models.toy:greet"\n'
        self.write("models/pio-model-toy/pyproject.toml", project("pio-model-toy", version, needs, extra))

    def api(self, version):
        self.write(
            "models/pio-model-toy/src/inference_pio/models/toy/pio-plugin.toml",
            f'distribution = "pio-model-toy"\napi = "{version}"\n',
        )
        self.code("packages/pio-interfaces", "interfaces", INTERFACES.replace('"0.1"', f'"{version}"'))

    def meet(self, index):
        command = [sys.executable, ROOT / "tools" / "compatibility.py", "--root", self.root, "--index", index, "--json"]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.stdout, done.stderr
        return done.returncode, [(cell["result"], cell["forced"], cell["why"]) for cell in json.loads(done.stdout)]


@pytest.mark.slow
def test_meetings_over_a_real_index(tmp_path):
    """Nothing published; the same on both sides; contracts that lost something; announced breaks, kept and broken."""
    pytest.importorskip("pypiserver", reason="needs pypiserver, which `nox -s tools` installs")
    from release_loopback import running_index

    small = Small(tmp_path / "tree")
    packages = tmp_path / "packages"
    with running_index(packages) as address:
        index = f"{address}simple/"
        code, [(result, _, why)] = small.meet(index)
        assert (code, result) == (0, "skipped")
        assert why.endswith("has no pio-model-toy, pio-testing, pio-core")
        for folder in ("packages/pio-interfaces", "packages/pio-core", "packages/pio-testing", "models/pio-model-toy"):
            command = ["uv", "--quiet", "build", "--no-create-gitignore", "--out-dir", packages, small.root / folder]
            subprocess.run(command, check=True)
        assert small.meet(index) == (0, [(WORKS, False, ""), (WORKS, False, "")])

        # A break that nobody announced: the published plugin finds a core of the tree that it does not work with.
        small.code("packages/pio-interfaces", "interfaces", INTERFACES.replace("hello", "goodbye"))
        code, [first, second] = small.meet(index)
        assert (code, first[0], second[0]) == (1, FAILS, WORKS)
        assert "FAILED" in first[2]
        assert "test_toy.py::test_it" in first[2]

        # Announced, with a promise to plugins of the minor before, and kept: apart, and it works against the bounds.
        small.write("packages/pio-interfaces/pyproject.toml", project("pio-interfaces", "0.2.0"))
        small.bound(">=0.2,<0.3", "0.1.1")
        small.api("0.2")
        code, [first, second] = small.meet(index)
        assert (code, first[:2], second[:2]) == (0, (APART, True), (APART, True))
        assert "pio-interfaces" in first[2]
        assert "was written for plugin API 0.2" in second[2]

        # The promise broken.
        small.code("packages/pio-interfaces", "interfaces", 'API_VERSION = "0.2"\n')
        code, [first, _] = small.meet(index)
        assert (code, first[:2]) == (1, (FAILS, True))

        # No promise any more: what does not work together need not.
        small.api("0.3")
        small.code("packages/pio-interfaces", "interfaces", 'API_VERSION = "0.3"\n')
        code, [first, _] = small.meet(index)
        assert (code, first[:2]) == (0, (APART, True))
        assert "was written for plugin API 0.1" in first[2]
