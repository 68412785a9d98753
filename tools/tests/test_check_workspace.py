"""Every rule of check_workspace finds the error that is planted for it, and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

from check_workspace import check
from workspace import Light, read_members

BASE = "packages/pio-base"
TOP = "packages/pio-top"
SIDE = "packages/pio-side"
LLAMA = "models/pio-model-llama"


def found(toy):
    return [problem.render(toy.root) for problem in check(toy.root)]


def test_a_sound_workspace_has_no_problems(toy):
    """The toy that every other test breaks is sound itself."""
    assert found(toy) == []


PLANTED_FILES = [
    (f"{TOP}/src/__init__.py", "", f"{TOP}/src/__init__.py: stray __init__.py"),
    (f"{TOP}/src/inference_pio/__init__.py", "", f"{TOP}/src/inference_pio/__init__.py: stray __init__.py"),
    (f"{TOP}/tests/__init__.py", "", f"{TOP}/tests/__init__.py: stray __init__.py"),
    (f"{TOP}/tests/unit/__init__.py", "", f"{TOP}/tests/unit/__init__.py: stray __init__.py"),
    (f"{TOP}/src/other/__init__.py", "", f"{TOP}/src/other: stands beside inference_pio/"),
    (f"{TOP}/src/inference_pio/loose.py", "", f"{TOP}/src/inference_pio/loose.py: stands in the namespace itself"),
    (f"{TOP}/LICENSE", "Another.\n", f"{TOP}/LICENSE: differs from the root's"),
    (f"{TOP}/README.md", "", f"{TOP}/README.md: missing or empty"),
    (f"{TOP}/CHANGELOG.md", "", f"{TOP}/CHANGELOG.md: missing or empty"),
    (f"{TOP}/changelog.d/7.new.md", "x", f"{TOP}/changelog.d/7.new.md: not named like a fragment"),
    (f"{TOP}/changelog.d/7.fixed.md", "\n", f"{TOP}/changelog.d/7.fixed.md: empty"),
]


@pytest.mark.parametrize(("path", "text", "expected"), PLANTED_FILES, ids=[path for path, _, _ in PLANTED_FILES])
def test_a_planted_file_is_found(toy, path, text, expected):
    """One file that must not be there, or must not read so, gives one line that starts with its path."""
    toy.write(path, text)
    lines = found(toy)
    assert len(lines) == 1
    assert lines[0].startswith(expected)


REMOVED_FILES = [
    (f"{TOP}/src/inference_pio/top/py.typed", f"{TOP}/src/inference_pio/top: lacks py.typed"),
    (f"{TOP}/README.md", f"{TOP}/README.md: missing or empty"),
    (f"{TOP}/LICENSE", f"{TOP}/LICENSE: missing or empty"),
    (f"{TOP}/tests/test_it.py", f"{TOP}/tests: no test_*.py"),
    (f"{TOP}/benchmarks/bench_it.py", f"{TOP}/benchmarks: no bench_*.py"),
    (f"{TOP}/changelog.d/initial.added.md", f"{TOP}/changelog.d: no fragment, and CHANGELOG.md has no entry for 0.1.0"),
]


@pytest.mark.parametrize(("path", "expected"), REMOVED_FILES, ids=[path for path, _ in REMOVED_FILES])
def test_a_removed_file_is_missed(toy, path, expected):
    """One file that every distribution has, taken away, gives one line."""
    (toy.root / path).unlink()
    lines = found(toy)
    assert len(lines) == 1
    assert lines[0].startswith(expected)


def test_a_released_version_needs_no_fragment(toy):
    """Once the changelog has an entry for the version, the folder of fragments may be empty."""
    (toy.root / f"{TOP}/changelog.d/initial.added.md").unlink()
    toy.write(f"{TOP}/CHANGELOG.md", "# Changelog\n\n## pio-top 0.1.0 (2026-11-22)\n")
    assert found(toy) == []


def test_a_linked_licence_is_refused(toy):
    """A link to the root's licence breaks the source distribution."""
    path = toy.root / f"{TOP}/LICENSE"
    path.unlink()
    path.symlink_to(toy.root / "LICENSE")
    assert found(toy) == [f"{TOP}/LICENSE: is a link, which a source distribution cannot hold: copy the root's LICENSE"]


EDITED_METADATA = [
    ('name = "pio-top"', 'name = "pio-tip"', "name 'pio-tip' is not the folder's"),
    ('version = "0.1.0"', 'dynamic = ["version"]', "version '' is not static"),
    ('requires-python = ">=3.11"', 'requires-python = ">=3.9"', "requires-python is '>=3.9'"),
    ('license = "Apache-2.0"', 'license = "MIT"', "licence is not declared as everywhere"),
    ('packages = ["src/inference_pio"]', 'packages = ["src/inference_pio/top"]', "the wheel's packages are not"),
    ("<0.2", "<1", "dependencies: pio-base<1,>=0.1 is not bounded to one minor"),
    (">=0.1,<0.2", "==0.1.0", "dependencies: pio-base==0.1.0 is not bounded to one minor"),
    ("pio-base>=0.1,<0.2", "pio-base", "dependencies: pio-base is not bounded to one minor"),
    (">=0.1,<0.2", ">=0.2,<0.3", "dependencies: pio-base<0.3,>=0.2 excludes the tree's 0.1.0"),
    ("pytest>=8.4", "pytest", "group 'test': pytest has no floor"),
    ("pytest>=8.4", "pytest<9", "group 'test': pytest<9 has no floor"),
]


@pytest.mark.parametrize(("old", "new", "expected"), EDITED_METADATA, ids=[row[1] for row in EDITED_METADATA])
def test_wrong_metadata_is_found(toy, old, new, expected):
    """One wrong line in a ``pyproject.toml`` is named with its value and the way out."""
    toy.replace(f"{TOP}/pyproject.toml", old, new)
    toy.replace("pyproject.toml", "pio-top", "pio-tip") if new.endswith('tip"') else None
    lines = found(toy)
    assert len(lines) == 1
    assert lines[0].startswith(f"{TOP}/pyproject.toml: {expected}")


def test_a_floor_within_the_minor_is_a_bound(toy):
    """A distribution that needs a fix of its sibling asks for ``>=0.1.1,<0.2``, and gets it only from 0.1.1 on."""
    toy.replace(f"{TOP}/pyproject.toml", ">=0.1,<0.2", ">=0.1.1,<0.2")
    assert [line for line in found(toy) if "excludes the tree's 0.1.0" in line] == found(toy) != []
    toy.replace(f"{BASE}/pyproject.toml", '"0.1.0"', '"0.1.1"')
    assert found(toy) == []


def test_members_and_sources_agree(toy):
    """The root names a source for every member, for nothing else, and members name none."""
    toy.replace("pyproject.toml", "pio-top = ", "pio-gone = ")
    toy.write(
        f"{SIDE}/pyproject.toml",
        (toy.root / f"{SIDE}/pyproject.toml").read_text(encoding="utf-8")
        + "[tool.uv.sources]\npio-base = { workspace = true }\n",
    )
    assert found(toy) == [
        f"{SIDE}/pyproject.toml: has its own [tool.uv.sources]: the root's apply to all",
        "pyproject.toml: [tool.uv.sources] lacks pio-top: add `pio-top = { workspace = true }`",
        "pyproject.toml: [tool.uv.sources] names pio-gone, which is no member: remove the line",
    ]


def test_a_portion_belongs_to_one_distribution(toy):
    """A second distribution with the same portion is found, and that it has two portions."""
    toy.write(f"{TOP}/src/inference_pio/base/__init__.py")
    toy.write(f"{TOP}/src/inference_pio/base/py.typed")
    lines = found(toy)
    assert any("inference_pio.base is also brought by pio-base" in line for line in lines)
    assert any("brings 2 portions" in line for line in lines)


TYPE_ONLY_SIBLING = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from inference_pio.top import T\n"
IMPORTS = [
    ("import numpy\n", 1, "imports numpy, and pio-base does not declare numpy"),
    ("def f():\n    import numpy\n", 2, "imports numpy, and pio-base does not declare numpy"),
    ("import yaml.nodes\n", 1, "imports yaml.nodes, and pio-base does not declare pyyaml"),
    (
        "import opentelemetry.sdk.trace\n",
        1,
        "imports opentelemetry.sdk.trace, and pio-base does not declare opentelemetry-sdk",
    ),
    ("import opentelemetry.trace\n", 1, "imports opentelemetry.trace, and pio-base does not declare opentelemetry-api"),
    ("from importlib import import_module\nimport_module('numpy')\n", 2, "imports numpy, and pio-base does not"),
    ("try:\n    import numpy\nexcept ImportError:\n    numpy = None\n", 2, "imports numpy, and pio-base does not"),
    ("import inference_pio.top\n", 1, "imports inference_pio.top, and pio-base does not declare pio-top"),
    ("from inference_pio import top\n", 1, "imports inference_pio.top, and pio-base does not declare pio-top"),
    ("from inference_pio.top import x\n", 1, "imports inference_pio.top.x, and pio-base does not declare pio-top"),
    (TYPE_ONLY_SIBLING, 3, "imports inference_pio.top.T, and pio-base does not declare pio-top"),
    ("import inference_pio.nowhere\n", 1, "imports inference_pio.nowhere, and pio-base does not declare"),
]


@pytest.mark.parametrize(("code", "line", "expected"), IMPORTS, ids=[row[0].replace("\n", ";") for row in IMPORTS])
def test_an_undeclared_import_is_found(toy, code, line, expected):
    """An undeclared import is found wherever it stands, with its line."""
    toy.write(f"{BASE}/src/inference_pio/base/_code.py", code)
    lines = found(toy)
    assert len(lines) == 1
    assert lines[0].startswith(f"{BASE}/src/inference_pio/base/_code.py:{line}: {expected}")


FREE_IMPORTS = [
    "import json, os.path\nfrom collections.abc import Iterator\n",
    "from . import other\nfrom .other import name\n",
    "from inference_pio.base import something\n",
    "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor\n",
    "import typing\nif typing.TYPE_CHECKING:\n    import numpy as np\n",
    "from importlib import import_module\nimport_module('.other', __package__)\n",
]


@pytest.mark.parametrize("code", FREE_IMPORTS, ids=[code.replace("\n", ";") for code in FREE_IMPORTS])
def test_a_free_import_is_not_reported(toy, code):
    """The standard library, the own portion and third parties' types need no declaration."""
    toy.write(f"{BASE}/src/inference_pio/base/_code.py", code)
    assert found(toy) == []


def test_the_else_of_type_checking_runs(toy):
    """What stands in the ``else`` of ``if TYPE_CHECKING`` does run."""
    code = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    pass\nelse:\n    import torch\n"
    toy.write(f"{BASE}/src/inference_pio/base/_code.py", code)
    assert [line for line in found(toy) if "does not declare torch" in line] == found(toy) != []


def test_an_extra_declares_an_import(toy):
    """An import that an extra brings is declared; an extra that nothing imports is found."""
    toy.add("pio-fast", extras='[project.optional-dependencies]\nfast = ["triton>=3"]')
    assert found(toy) == [
        "packages/pio-fast/pyproject.toml: an extra declares triton, which nothing under src/ imports: remove it"
    ]
    toy.write("packages/pio-fast/src/inference_pio/fast/_kernel.py", "def f():\n    import triton\n")
    assert found(toy) == []


EXTRA = '[project.optional-dependencies]\nfast = ["triton>=3"]\n[tool.pio-workspace.extra-modules]\n'
KERNEL = "inference_pio.fast._kernel"


def test_a_module_that_needs_an_extra_is_listed(toy):
    """What imports only with an extra is in the table, and whoever imports that module as well."""
    toy.add("pio-fast", extras=EXTRA)
    toy.write("packages/pio-fast/src/inference_pio/fast/_kernel.py", "import triton\n")
    source = "packages/pio-fast/src/inference_pio/fast"
    way_out = 'import it inside a function, or add `"{}" = "fast"` to [tool.pio-workspace.extra-modules]'
    what = "imports triton, which only the extra 'fast' brings"
    assert found(toy) == [f"{source}/_kernel.py:1: {what}: {way_out.format(KERNEL)}"]
    toy.replace("packages/pio-fast/pyproject.toml", "modules]\n", f'modules]\n"{KERNEL}" = "fast"\n')
    assert found(toy) == []
    toy.write(f"{source}/_user.py", "from inference_pio.fast._kernel import x\n")
    what = f"imports {KERNEL}.x, which only the extra 'fast' brings"
    assert found(toy) == [f"{source}/_user.py:1: {what}: {way_out.format('inference_pio.fast._user')}"]


DEFERRED = [
    "def f():\n    import triton\n",
    "async def f():\n    import triton\n",
    "class C:\n    def f(self):\n        from triton import language\n",
    "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import triton\n",
    "try:\n    import triton\nexcept ImportError:\n    triton = None\n",
]


@pytest.mark.parametrize("code", DEFERRED, ids=[code.replace("\n", ";") for code in DEFERRED])
def test_a_module_that_imports_an_extra_later_is_not_listed(toy, code):
    """What a function imports, or nothing runs, does not keep the module from importing; listing it is an error."""
    toy.add("pio-fast", extras=EXTRA)
    toy.write("packages/pio-fast/src/inference_pio/fast/_kernel.py", code)
    assert found(toy) == []
    toy.replace("packages/pio-fast/pyproject.toml", "modules]\n", f'modules]\n"{KERNEL}" = "fast"\n')
    what = f"[tool.pio-workspace.extra-modules]: {KERNEL} imports nothing that only an extra brings"
    assert found(toy) == [f"packages/pio-fast/pyproject.toml: {what}: remove the line"]


def test_a_class_body_runs_at_import(toy):
    """An import in a class is as good as one at the top."""
    toy.add("pio-fast", extras=EXTRA)
    toy.write("packages/pio-fast/src/inference_pio/fast/_kernel.py", "class C:\n    import triton\n")
    assert [line for line in found(toy) if "_kernel.py:2: imports triton" in line] == found(toy) != []


def test_the_table_names_modules_and_extras_that_are_there(toy):
    """A misspelt module or extra is found."""
    toy.add("pio-fast", extras=f'{EXTRA}"inference_pio.fast._gone" = "fast"\n"{KERNEL}" = "quick"\n')
    toy.write("packages/pio-fast/src/inference_pio/fast/_kernel.py", "import triton\n")
    path = "packages/pio-fast/pyproject.toml: [tool.pio-workspace.extra-modules]"
    assert found(toy) == [
        f"{path} names inference_pio.fast._gone, which is not there: remove the line",
        f"{path}: {KERNEL} needs an extra 'quick': extras are fast",
    ]


def test_a_program_is_run_and_not_imported(toy):
    """A distribution that is needed for the program it brings is declared as such."""
    extras = '[project.optional-dependencies]\nbuild = ["CMake>=4"]\n'
    toy.add("pio-fast", extras=extras)
    assert len(found(toy)) == 1
    toy.replace("packages/pio-fast/pyproject.toml", extras, f'{extras}[tool.pio-workspace]\nprograms = ["cmake"]\n')
    assert found(toy) == []


def test_the_limits_of_an_installation_are_read(toy):
    """Those that are declared; none where nothing is said."""
    limits = 'max-mb = 150\nmax-modules = 400\nwithout = ["torch"]\nlazy = ["numpy"]'
    toy.add("pio-fast", extras=f"[tool.pio-workspace.light]\n{limits}\n")
    members = read_members(toy.root)
    light = members["pio-fast"].light
    assert light == Light(max_mb=150, max_modules=400, without=("torch",), lazy=("numpy",))
    told = ["--max-mb", "150", "--max-modules", "400", "--forbid", "torch", "--lazy", "numpy"]
    assert light.options() == told
    assert members["pio-base"].light == Light(max_mb=None, max_modules=None, without=(), lazy=())
    assert members["pio-base"].light.options() == []


@pytest.mark.parametrize(
    "line", ["max_mb = 150", 'max-mb = "150"', "max-modules = []", 'without = "torch"', 'lazy = "torch"']
)
def test_limits_that_nobody_would_read_are_refused(toy, line):
    """A wrong key or type would leave the installation without a limit."""
    toy.add("pio-fast", extras=f"[tool.pio-workspace.light]\n{line}\n")
    with pytest.raises(ValueError, match=r"pio-fast: \[tool.pio-workspace.light\] has numbers max-mb"):
        read_members(toy.root)["pio-fast"].light  # noqa: B018 - reading is what fails


def test_an_unused_dependency_is_found(toy):
    """A dependency that nothing imports is found, except plugins and numpy beside torch."""
    toy.write(f"{TOP}/src/inference_pio/top/__init__.py", "import torch\n")
    toy.replace(
        f"{TOP}/pyproject.toml", "['pio-base", "['torch>=2', 'numpy>=1', 'pio-model-llama>=0.1,<0.2', 'pio-base"
    )
    entry_points = '[project.entry-points."inference_pio.models"]\nLlama = "inference_pio.models.llama:PLUGIN"'
    toy.add("pio-model-llama", entry_points=entry_points)
    toy.write(
        f"{LLAMA}/src/inference_pio/models/llama/pio-plugin.toml",
        'distribution = "pio-model-llama"\narchitectures = ["Llama"]\n',
    )
    assert found(toy) == [f"{TOP}/pyproject.toml: declares pio-base, which nothing under src/ imports: remove it"]


@pytest.mark.parametrize("folder", ["tests", "benchmarks"])
def test_an_undeclared_test_import_is_found(toy, folder):
    """Tests and benchmarks declare what they import, whatever happens to be installed."""
    toy.write(f"{TOP}/{folder}/extra.py", "import numpy\n")
    what = "imports numpy, and pio-top does not declare numpy: declare it in the `test` dependency group"
    assert found(toy) == [f"{TOP}/{folder}/extra.py:1: {what}"]


def test_a_guarded_test_import_is_free(toy):
    """A test that goes on without a distribution need not declare it."""
    code = (
        "import pytest\nnumpy = pytest.importorskip('numpy')\ntry:\n    import torch\nexcept ImportError:\n    pass\n"
    )
    toy.write(f"{TOP}/tests/test_more.py", code)
    assert found(toy) == []


def test_a_test_group_declares_a_sibling(toy):
    """A sibling of the test group may be imported by tests and not by ``src/``."""
    toy.write(f"{SIDE}/tests/test_more.py", "import inference_pio.base\n")
    assert found(toy) == []
    toy.write(f"{SIDE}/src/inference_pio/side/_code.py", "import inference_pio.base\n")
    assert [line for line in found(toy) if "does not declare pio-base" in line] == found(toy) != []


def test_manifest_and_entry_points_agree(toy):
    """A model has a manifest, which names its distribution and the architectures of its entry points."""
    entry_points = '[project.entry-points."inference_pio.models"]\nLlama = "inference_pio.models.llama:PLUGIN"'
    toy.add("pio-model-llama", entry_points=entry_points)
    place = f"{LLAMA}/src/inference_pio/models/llama/pio-plugin.toml"
    assert found(toy) == [f"{place}: missing: a model plugin has a manifest beside its __init__.py"]
    toy.write(place, 'distribution = "pio-llama"\narchitectures = ["Llama", "Opt"]\n')
    assert found(toy) == [
        f"{place}: architectures are ['Llama', 'Opt'], entry points ['Llama']: both name the same, in the same order",
        f"{place}: distribution is 'pio-llama': the manifest is in 'pio-model-llama'",
    ]


def test_the_command_prints_and_fails(toy):
    """Exit code 1 and one line per problem; exit code 0 and one line without."""
    script = Path(__file__).resolve().parent.parent / "check_workspace.py"

    def run():
        return subprocess.run([sys.executable, script, "--root", toy.root], capture_output=True, text=True, check=False)

    done = run()
    assert (done.returncode, done.stdout) == (0, "workspace: 3 distributions, no problems\n")
    toy.write(f"{TOP}/src/inference_pio/__init__.py")
    done = run()
    assert done.returncode == 1
    assert done.stdout.count("\n") == 1
    assert "stray __init__.py" in done.stdout
