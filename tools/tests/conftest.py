import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

LICENCE = "The licence.\n"


class Toy:
    """A workspace in a temporary folder that breaks no rule until a test makes it."""

    def __init__(self, root):
        self.root = root

    def write(self, path, text=""):
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        return target

    def replace(self, path, old, new):
        text = (self.root / path).read_text(encoding="utf-8")
        assert old in text
        self.write(path, text.replace(old, new))

    def add(self, name, *, dependencies=(), test=("pytest>=8.4",), extras="", entry_points=""):
        folder = f"models/{name}" if name.startswith("pio-model-") else f"packages/{name}"
        leaf = name.removeprefix("pio-").replace("model-", "models/")
        portion = f"src/inference_pio/{leaf}"
        self.write(
            f"{folder}/pyproject.toml",
            f"""\
[project]
name = "{name}"
version = "0.1.0"
requires-python = ">=3.11"
license = "Apache-2.0"
license-files = ["LICENSE"]
dependencies = {list(dependencies)}
{extras}
{entry_points}
[dependency-groups]
test = {list(test)}
[tool.hatch.build.targets.wheel]
packages = ["src/inference_pio"]
""",
        )
        imports = (f"import inference_pio.{entry.partition('>')[0].removeprefix('pio-')}" for entry in dependencies)
        self.write(f"{folder}/{portion}/__init__.py", "\n".join(imports) + "\n")
        self.write(f"{folder}/{portion}/py.typed")
        self.write(f"{folder}/README.md", f"# {name}\n")
        self.write(f"{folder}/CHANGELOG.md", "# Changelog\n")
        self.write(f"{folder}/LICENSE", LICENCE)
        self.write(f"{folder}/changelog.d/initial.added.md", "The first release.\n")
        self.write(f"{folder}/tests/test_it.py", f"import pytest\nimport inference_pio.{leaf.replace('/', '.')}\n")
        self.write(f"{folder}/benchmarks/bench_it.py", "import json\n")
        root = (self.root / "pyproject.toml").read_text(encoding="utf-8")
        self.write("pyproject.toml", f"{root}{name} = {{ workspace = true }}\n")


@pytest.fixture
def toy(tmp_path):
    """Three members: ``pio-top`` needs ``pio-base``, and ``pio-side`` needs it for its tests only."""
    workspace = Toy(tmp_path)
    workspace.write("LICENSE", LICENCE)
    workspace.write("pyproject.toml", '[project]\nname = "toys"\nrequires-python = ">=3.11"\n[tool.uv.sources]\n')
    workspace.add("pio-base")
    workspace.add("pio-top", dependencies=["pio-base>=0.1,<0.2"])
    workspace.add("pio-side", test=["pytest>=8.4", "pio-base>=0.1,<0.2"])
    return workspace


class ReleasedToy(Toy):
    """A toy workspace under git, each distribution of which is out as 0.1.0."""

    def git(self, *arguments):
        """What git prints."""
        command = ["git", *arguments]
        return subprocess.run(command, cwd=self.root, check=True, capture_output=True, text=True).stdout

    def commit(self, message):
        """Commit everything."""
        self.git("add", "--all")
        self.git("commit", f"--message={message}")

    def tag(self, name, version="0.1.0"):
        """Make the tree as it is the release ``version`` of ``name``."""
        self.git("add", "--all")
        self.git("commit", "--allow-empty", f"--message=release {name} {version}")
        self.git("tag", "--force", f"{name}-v{version}")

    def release(self, name, version):
        """Write ``version`` into ``name``, and make that a release."""
        path = f"packages/{name}/pyproject.toml"
        text = (self.root / path).read_text(encoding="utf-8")
        before = text.partition('\nversion = "')[2].partition('"')[0]
        self.replace(path, f'\nversion = "{before}"', f'\nversion = "{version}"')
        mark = "<!-- releases, newest first -->\n"
        self.replace(f"packages/{name}/CHANGELOG.md", mark, f"{mark}\n## {version} (2026-01-02)\n\n- It.\n")
        self.tag(name, version)


@pytest.fixture
def released(toy):
    """The toy workspace with a first release of everything, towncrier configured, and nothing waiting."""
    workspace = ReleasedToy(toy.root)
    root = (toy.root / "pyproject.toml").read_text(encoding="utf-8")
    shared = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    towncrier = shared[shared.index("[tool.towncrier]") : shared.index("# Who may import whom")]
    head, mark, sources = root.partition("[tool.uv.sources]")
    workspace.write(
        "pyproject.toml",
        f'{head}version = "0"\n{towncrier}\n[tool.uv]\npackage = false\nexclude-newer = "2026-11-15T00:00:00Z"\n'
        f'[tool.uv.workspace]\nmembers = ["packages/*"]\n{mark}{sources}',
    )
    workspace.write(".gitignore", "uv.lock\n__pycache__/\n")
    for name in ("pio-base", "pio-side", "pio-top"):
        (toy.root / f"packages/{name}/changelog.d/initial.added.md").unlink()
        mark = "<!-- releases, newest first -->"
        workspace.write(f"packages/{name}/CHANGELOG.md", f"# Changelog\n\n{mark}\n\n## 0.1.0 (2026-01-01)\n\n- It.\n")
    workspace.git("init", "--initial-branch=main")
    for key, value in {"user.name": "T", "user.email": "t@example.org", "commit.gpgsign": "false"}.items():
        workspace.git("config", key, value)
    for name in ("pio-base", "pio-side", "pio-top"):
        workspace.tag(name)
    return workspace
