"""The guide to model plugins, followed to the letter: its files, built, tested and used as it says."""

import ast
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs torch, which `nox -s docs` installs")
transformers = pytest.importorskip("transformers", reason="needs transformers, which `nox -s docs` installs")

PAGE = Path(__file__).resolve().parent.parent / "writing-a-model-plugin.md"
FILES = re.compile(r"^```\{code-block\} \w+\n:caption: (\S+)\n\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED = "pyproject.toml __init__.py _plugin.py _config.py _weights.py _model.py pio-plugin.toml test_olmo2.py use_it.py"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The project of the page, as a folder."""
    folder = tmp_path_factory.mktemp("guide") / "pio-model-olmo2"
    for name, text in FILES.findall(PAGE.read_text(encoding="utf-8")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (folder / "src/inference_pio/models/olmo2/py.typed").touch()
    return folder


@pytest.fixture(scope="module")
def environment(project):
    """Environment variables under which the project's wheel, unpacked, is importable beside what is installed."""
    subprocess.run(["uv", "build", "--quiet", "--wheel", project, "--out-dir", project / "dist"], check=True)
    [wheel] = (project / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(project / "site")
    return {**os.environ, "PYTHONPATH": str(project / "site")}


def run(environment, *arguments, cwd):
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_has_every_file_it_names(project):
    """The layout at the top of the page and the files below it agree."""
    written = {path.name for path in project.rglob("*") if path.is_file() and path.suffix in {".py", ".toml"}}
    assert written == set(NAMED.split())


def test_its_tests_pass(project, environment):
    """The plugin computes what transformers computes, and conforms."""
    output = run(environment, "-m", "pytest", "-q", "-W", "error", "tests", cwd=project)
    assert re.search(r"^19 passed", output, re.MULTILINE)


def test_importing_the_plugin_loads_no_torch(project, environment):
    """As the page says it must not."""
    code = "import sys; import inference_pio.models.olmo2; print('torch' in sys.modules)"
    assert run(environment, "-c", code, cwd=project) == "False\n"


def test_the_engine_finds_and_runs_it(project, environment, tmp_path):
    """By the architecture string of a checkpoint, token for token what transformers generates."""
    from inference_pio.testing import load_reference, tiny_checkpoint

    folder = tiny_checkpoint("olmo2", tmp_path / "tiny")
    ours = ast.literal_eval(run(environment, "use_it.py", folder, cwd=project))
    model = load_reference(folder)
    prompt = torch.tensor([[1, 5, 9, 12]])
    theirs = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, min_new_tokens=8, do_sample=False
    )
    assert ours == theirs[0, 4:].tolist()
