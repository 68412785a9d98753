"""JSON without its traps, from files without theirs."""

from __future__ import annotations

import json
import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_pio.config import read_json
from inference_pio.interfaces import LimitExceededError, MalformedFileError

MIB = 1 << 20

documents = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=30,
)


@given(document=documents)
def test_reads_what_the_standard_library_wrote(tmp_path_factory, document):
    """Every sound document reads back as it was written."""
    path = tmp_path_factory.mktemp("json") / "x.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    assert read_json(path, max_bytes=MIB) == document


@given(junk=st.binary(max_size=200) | st.text(alphabet='{}[]",:0eE-+.\\utrue nlfs', max_size=60).map(str.encode))
def test_junk_is_refused_as_malformed_or_read_like_json(tmp_path_factory, junk):
    """Any bytes either are JSON for the standard library too, or raise our error and no other."""
    path = tmp_path_factory.mktemp("json") / "x.json"
    path.write_bytes(junk)
    refusal = None
    try:
        document = read_json(path, max_bytes=MIB)
    except MalformedFileError as error:
        refusal = str(error)
    if refusal is not None:
        assert "\n" not in refusal
    else:
        assert json.loads(junk) == document


def nested(levels: int, opening: str = "[", closing: str = "]") -> str:
    """A document of `levels` arrays within each other."""
    return opening * levels + "1" + closing * levels


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
def test_nesting_is_bounded_at_64(tmp_path, write, opening, closing):
    """64 levels are read, one more is not."""
    width = 2 if opening.startswith("[{") else 1
    assert read_json(write(tmp_path / "x", nested(64 // width, opening, closing)), max_bytes=MIB)
    with pytest.raises(LimitExceededError, match="nesting: deeper than 64 levels"):
        read_json(write(tmp_path / "x", nested(64 // width + 1, opening, closing)), max_bytes=MIB)


def test_nesting_beyond_the_stack(tmp_path, write):
    """Nesting that overflows the parser's stack is the same refusal."""
    with pytest.raises(LimitExceededError, match="nesting: deeper than 64 levels"):
        read_json(write(tmp_path / "x", "[" * 500_000), max_bytes=MIB)


def test_number_of_containers_is_bounded(tmp_path, write):
    """A flat file of empty arrays costs twenty times its size in memory."""
    content = "[" + "[]," * 4_000_000 + "[]]"
    with pytest.raises(LimitExceededError, match="nesting: more than 4000000 arrays and objects"):
        read_json(write(tmp_path / "x", content), max_bytes=64 * MIB)


def test_size_is_bounded(tmp_path, write):
    """A file of exactly `max_bytes` is read, one byte more is not."""
    path = write(tmp_path / "x", '"' + "a" * 98 + '"')
    assert read_json(path, max_bytes=100) == "a" * 98
    with pytest.raises(LimitExceededError, match="size: more than 99 bytes"):
        read_json(path, max_bytes=99)


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no /dev/zero here")  # noqa: PTH110 - as short as it gets
def test_endless_device_is_refused(tmp_path):
    """A link to a device is no regular file."""
    (tmp_path / "x").symlink_to("/dev/zero")
    with pytest.raises(MalformedFileError, match="type: not a regular file"):
        read_json(tmp_path / "x", max_bytes=MIB)


def test_link_to_a_file_is_followed(tmp_path, write):
    """Hub caches are made of links."""
    write(tmp_path / "blob", "1")
    (tmp_path / "x").symlink_to(tmp_path / "blob")
    assert read_json(tmp_path / "x", max_bytes=MIB) == 1


def test_sparse_giant_is_refused_without_reading_it(tmp_path):
    """A terabyte of nothing is refused by the bound, not by the machine."""
    with (tmp_path / "x").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(LimitExceededError, match="size: more than"):
        read_json(tmp_path / "x", max_bytes=MIB)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1, "b": 2, "a": 1}', "x: a: key given twice"),
        ('[{"deep": {"k\\n": 1, "k\\n": 2}}]', r"'k\\n': key given twice"),
        ("[NaN]", "number: NaN is not JSON"),
        ("[Infinity]", "number: Infinity is not JSON"),
        ("[-Infinity]", "number: -Infinity is not JSON"),
        ("[1e999]", "number: '1e999' is beyond the range of a double"),
        ("[-1e999]", "number: '-1e999' is beyond"),
        ("9" * 5000, "number: an integer with too many digits"),
        ("{'a': 1}", r"syntax: not JSON: .* \(line 1 column 2\)"),
        ('{"a": 1} x', "syntax: not JSON: Extra data"),
        ("", "syntax: not JSON"),
        (b'"\xff"', "encoding: not UTF-8 at byte 1"),
        ("\ufeff{}", "syntax: not JSON"),
        ('"a\nb"', "syntax: not JSON"),
    ],
)
def test_traps_are_refused(tmp_path, write, content, message):
    """Each thing that the standard library accepts or crashes on is an error with file and fault."""
    with pytest.raises(MalformedFileError, match=message) as caught:
        read_json(write(tmp_path / "x", content), max_bytes=MIB)
    assert "\n" not in str(caught.value)


def test_key_twice_among_many_is_found_quickly(tmp_path, write):
    """The search for the repeated key is linear: a hostile file must not buy hours with a megabyte."""
    content = "{" + ",".join(f'"{i}":0' for i in range(80_000)) + ',"79999":0}'
    with pytest.raises(MalformedFileError, match="79999: key given twice"):
        read_json(write(tmp_path / "x", content), max_bytes=MIB)


def test_largest_finite_numbers_are_read(tmp_path, write):
    """The bound on numbers is that of a double, not less."""
    assert read_json(write(tmp_path / "x", "[1.7976931348623157e308, -0.0]"), max_bytes=MIB) == [
        pytest.approx(1.7976931348623157e308),
        -0.0,
    ]
    assert math.copysign(1, read_json(tmp_path / "x", max_bytes=MIB)[1]) == -1


def test_missing_file_is_the_callers_to_handle(tmp_path):
    """Absence is not malformation."""
    with pytest.raises(FileNotFoundError, match="absent"):
        read_json(tmp_path / "absent", max_bytes=MIB)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path, write):
    """A file without permission is named with the reason."""
    path = write(tmp_path / "x", "{}")
    path.chmod(0)
    with pytest.raises(MalformedFileError, match="content: cannot be read: Permission denied"):
        read_json(path, max_bytes=MIB)


def test_folder_is_refused_and_no_descriptor_leaks(tmp_path):
    """A folder in place of a file is malformed, as often as one asks."""
    for _ in range(3):
        with pytest.raises(MalformedFileError, match="type: not a regular file"):
            read_json(tmp_path, max_bytes=MIB)
