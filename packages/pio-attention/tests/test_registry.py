"""Backends by name: found by entry point, imported when asked for, errors that say what to do."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints

import pytest
import torch

from inference_pio.attention import (
    FlexAttention,
    ReferenceAttention,
    SDPAAttention,
    _registry,
    backend_names,
    get_backend,
)
from inference_pio.interfaces import BrokenDependencyError, MissingPluginError


@pytest.fixture
def register(monkeypatch):
    """Replace the installed entry points by these (name, value) pairs."""

    def replace(*pairs):
        points = EntryPoints(EntryPoint(name, value, _registry.ENTRY_POINT_GROUP) for name, value in pairs)
        monkeypatch.setattr(_registry, "entry_points", points.select)

    return replace


def test_own_backends_are_registered():
    """The distribution registers all that it brings."""
    assert set(backend_names()) >= {"reference", "sdpa", "flex", "flex-compiled", "flash-attn-2"}


# torch.compile of torch 2.11 warns about torch's own use of torch.jit when it is first imported.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("reference", ReferenceAttention),
        ("sdpa", SDPAAttention),
        ("flex", FlexAttention),
        ("flex-compiled", FlexAttention),
    ],
)
def test_backends_by_name(name, kind):
    """A backend answers to the name it was asked for."""
    backend = get_backend(name)
    assert isinstance(backend, kind)
    assert backend.name == name


@pytest.mark.parametrize("device", [None, torch.device("cpu"), torch.device("cuda", 0)], ids=str)
def test_auto_is_sdpa(device):
    """SDPA runs everywhere, so it is the automatic choice."""
    assert get_backend("auto", device=device).name == "sdpa"
    assert get_backend(device=device).name == "sdpa"


def test_unknown_name_lists_the_installed(register):
    """The message lists what is there, the hint names the nearest."""
    register(("sdpa", "a:b"), ("flex", "a:c"))
    with pytest.raises(MissingPluginError, match=r"named 'spda'; installed are: flex, sdpa \(did you mean 'sdpa'\?\)"):
        get_backend("spda")
    with pytest.raises(MissingPluginError, match=r"named 'ring'; .* \(install the distribution that brings it\)"):
        get_backend("ring")
    register()
    with pytest.raises(MissingPluginError, match="installed are: none"):
        get_backend("sdpa")


@pytest.mark.parametrize("value", ["inference_pio.attention._absent:X", "inference_pio.attention:Absent"])
def test_entry_point_that_cannot_be_imported(register, value):
    """A missing module or attribute is a broken installation and says which."""
    register(("mine", value))
    with pytest.raises(BrokenDependencyError, match=rf"'mine' \({value}\) cannot be imported: .*[aA]bsent"):
        get_backend("mine")


def test_entry_point_that_is_no_backend(register):
    """What an entry point makes is checked against the contract."""
    register(("mine", "collections:OrderedDict"))
    with pytest.raises(BrokenDependencyError, match="is a OrderedDict, not an AttentionBackend"):
        get_backend("mine")


def test_name_registered_twice(register):
    """Two distributions with one name are not chosen between in silence; the same entry twice is harmless."""
    register(("mine", "a:b"), ("mine", "c:d"))
    with pytest.raises(BrokenDependencyError, match=r"'mine' is registered more than once: a:b of .*, c:d of "):
        get_backend("mine")
    register(("sdpa", "inference_pio.attention:SDPAAttention"), ("sdpa", "inference_pio.attention:SDPAAttention"))
    assert get_backend("sdpa").name == "sdpa"


def test_import_pulls_nothing_of_the_engine_nor_of_cuda_packages():
    """Importing the package, listing the backends and making the default one loads no other part of Inference-PIO."""
    script = (
        "import sys, inference_pio.attention as a\n"
        "a.backend_names(); a.get_backend('auto')\n"
        "parts = {m.split('.')[1] for m in sys.modules if m.startswith('inference_pio.')}\n"
        "print(sorted(parts), sorted({'flash_attn', 'transformers', 'triton', 'torch._dynamo'} & set(sys.modules)))\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "['attention', 'interfaces'] []"
