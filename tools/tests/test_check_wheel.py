"""What check_wheel says of wheels made by hand."""

import zipfile

import pytest

from check_wheel import check_wheel
from workspace import read_members

INFORMATION = "pio_top-0.1.0.dist-info"
SOUND = [
    "inference_pio/top/__init__.py",
    "inference_pio/top/py.typed",
    f"{INFORMATION}/METADATA",
    f"{INFORMATION}/licenses/LICENSE",
]


def problems(toy, names):
    wheel = toy.root / "pio_top-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in names:
            archive.writestr(name, "")
    return [line.removeprefix(f"{wheel.name}: ") for line in check_wheel(wheel, read_members(toy.root)["pio-top"])]


def test_a_sound_wheel_has_no_problems(toy):
    """The portion, typed, with its metadata and licence."""
    assert problems(toy, SOUND) == []


@pytest.mark.parametrize(
    "stray",
    ["pio.pth", "sitecustomize.py", "inference_pio/__init__.py", "inference_pio/base/__init__.py", "tests/x.py"],
)
def test_a_stray_file_is_found(toy, stray):
    """Whatever would land beside the distribution's own portion."""
    assert problems(toy, [*SOUND, stray]) == [f"{stray} is outside of inference_pio/top/"]


@pytest.mark.parametrize("lost", [SOUND[0], SOUND[1], SOUND[3]])
def test_a_lost_file_is_found(toy, lost):
    """What every wheel has."""
    assert problems(toy, [name for name in SOUND if name != lost]) == [f"lacks {lost}"]


def test_a_source_file_that_was_left_out_is_found(toy):
    """Package data under ``src/`` is in the wheel, or an exclusion rule ate it."""
    toy.write("packages/pio-top/src/inference_pio/top/data/table.json")
    toy.write("packages/pio-top/src/inference_pio/top/__pycache__/x.pyc")
    assert problems(toy, SOUND) == ["lacks inference_pio/top/data/table.json"]
