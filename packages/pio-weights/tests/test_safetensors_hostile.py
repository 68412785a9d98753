"""Safetensors files that are wrong, among them those that the format's own library lets through."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from safetensors import SafetensorError, deserialize

from inference_pio.interfaces import LimitExceededError, MalformedFileError, UnsupportedError
from inference_pio.weights import Limits, SafetensorsSource


def entry(dtype="F32", shape=(2,), start=0, end=8, **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end], **more}


@pytest.fixture
def refuse(tmp_path, safetensors_bytes):
    """Open the file built from the arguments, and return the error's message."""

    def check(error, *args, limits=None, **kwargs):
        path = tmp_path / "m.safetensors"
        path.write_bytes(safetensors_bytes(*args, **kwargs))
        with pytest.raises(error) as caught:
            SafetensorsSource(path, limits=limits or Limits())
        message = str(caught.value)
        assert "\n" not in message
        assert str(path) in message
        return message

    return check


# What the library accepts (version 0.8), and a server must not.
ACCEPTED_BY_THE_LIBRARY = {
    "huge-empty-shape": ({"w": entry("F32", (0, 2**62), 0, 0)}, b"", LimitExceededError, "has more than 1099511627776"),
    "unknown-key": ({"w": entry(evil=1)}, bytes(8), MalformedFileError, "must have exactly dtype, shape and data_off"),
    "two-empty": (
        {"a": entry("F32", (0,), 0, 0), "b": entry("F32", (0,), 0, 0)},
        b"",
        MalformedFileError,
        "a second empty tensor at byte",
    ),
    "many-dimensions": ({"w": entry("U8", (1,) * 9, 0, 1)}, b"x", LimitExceededError, "9 dimensions, more than 8"),
    "parent-step": ({"../../w": entry()}, bytes(8), MalformedFileError, "bad tensor name '../../w'"),
    "nul-in-name": ({"w\0": entry()}, bytes(8), MalformedFileError, r"bad tensor name 'w\x00'"),
    "empty-name": ({"": entry()}, bytes(8), MalformedFileError, "bad tensor name ''"),
    "long-name": ({"w" * 513: entry()}, bytes(8), LimitExceededError, "is longer than 512 bytes"),
}


@pytest.mark.parametrize("case", ACCEPTED_BY_THE_LIBRARY)
def test_what_the_library_lets_through(case, refuse):
    """Refused here, though valid to the library (as of its version 0.8)."""
    header, data, error, message = ACCEPTED_BY_THE_LIBRARY[case]
    assert message in refuse(error, header, data)


def test_misaligned_data_start(refuse):
    """A header whose length is no multiple of 8 leaves every tensor unaligned."""
    text = json.dumps({"w": entry()}).encode()
    text += b" " * (3 - len(text) % 8 if len(text) % 8 < 3 else 11 - len(text) % 8)
    assert "is no multiple of 8, so the tensors are not aligned" in refuse(
        MalformedFileError, text, bytes(8), pad=False
    )


def test_too_many_tensors(refuse):
    """Bounded per file; 200,000 empty tensors keep the library busy for seconds."""
    header = {f"t{index}": entry("U8", (1,), index, index + 1) for index in range(11)}
    message = refuse(LimitExceededError, header, bytes(11), limits=Limits(max_safetensors_tensors=10))
    assert "11 tensors, more than 10 (Limits(max_safetensors_tensors=...) raises the limit)" in message


def test_many_dimensions_do_not_cost(refuse):
    """A million dimensions are refused by their number, without a product."""
    header = {"w": entry("U8", (1,) * 1_000_000, 0, 1)}
    assert "1000000 dimensions, more than 8" in refuse(LimitExceededError, header, b"x")


def test_header_beyond_the_file(tmp_path):
    """A length beyond the file is refused before anything is read for it."""
    path = tmp_path / "m.safetensors"
    for length in (100, 2**40, 2**64 - 1):
        path.write_bytes(struct.pack("<Q", length) + b"{}      ")
        with pytest.raises(
            MalformedFileError, match=rf"header length at byte 0: claims {length} bytes, but the file ends"
        ):
            SafetensorsSource(path)


def test_header_beyond_the_limit(refuse):
    """16 MiB by default; a sparse file shows that the header is not read first."""
    text = b"{}".ljust(4096)
    assert "4096 bytes, more than 4095" in refuse(LimitExceededError, text, limits=Limits(max_safetensors_header=4095))


def test_sparse_header_of_a_gigabyte(tmp_path):
    """The header's length is compared with the limit before its bytes are touched."""
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**30) + b"{")
        file.truncate(2**31)
    with pytest.raises(LimitExceededError, match="1073741824 bytes, more than 16777216"):
        SafetensorsSource(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[]      ", "header at byte 8: must start with '{', got b'['"),
        (b" {}     ", "must start with '{'"),
        (b"{       ", "not valid JSON"),
        (b'{"a":1,"a":2}   ', "duplicate key 'a'"),
        (b'{"w":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}      ', "duplicate key 'dtype'"),
        (b'{"__metadata__":{"a":"b","a":"b"}}      ', "duplicate key 'a'"),
        (b'{"a":NaN}       ', "NaN is not JSON"),
        (b'{"a":-Infinity} ', "-Infinity is not JSON"),
        (b'{"\xff":1}        ', "not valid JSON: 'utf-8' codec"),
        (b'{"a":' + b"[" * 100_000 + b"   ", "nested too deeply"),
        (b'{"a":' + b"1" * 5000 + b"}  ", "not valid JSON"),
        (b"{}}             ", "not valid JSON: Extra data"),
        (b"{}\0\0\0\0\0\0", "not valid JSON: Extra data"),
    ],
)
def test_bad_json(text, message, refuse):
    """The header is one strict JSON object."""
    assert message in refuse(MalformedFileError, text)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("text", "__metadata__: must be an object, got 'text'"),
        ([], "must be an object"),
        ({"a": 1}, "'a' must be a string, got 1"),
        ({"a": None}, "'a' must be a string"),
        ({"a": "\ud800"}, "'a' holds half a surrogate pair"),
    ],
)
def test_bad_metadata(metadata, message, refuse):
    """Metadata map strings to strings that can be printed."""
    assert message in refuse(MalformedFileError, {"__metadata__": metadata})


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (None, "must have exactly dtype, shape and data_offsets, got None"),
        ([], "must have exactly"),
        ({"dtype": "F32", "shape": [2]}, "must have exactly"),
        (entry(shape=(-2,)), "shape must be a list of sizes, got [-2]"),
        (entry(shape=(2.0,)), "shape must be a list of sizes, got [2.0]"),
        (entry(shape=(True,)), "shape must be a list of sizes, got [True]"),
        ({**entry(), "shape": "2"}, "shape must be a list of sizes, got '2'"),
        ({**entry(), "data_offsets": [0]}, "data_offsets [0] do not lie within the 8 bytes after the header"),
        ({**entry(), "data_offsets": [0, 8, 8]}, "data_offsets [0, 8, 8] do not lie"),
        (entry(start=-8, end=0), "data_offsets must be a list of sizes, got [-8, 0]"),
        (entry(start=8, end=0), "data_offsets [8, 0] do not lie within"),
        (
            entry(start=0, end=9),
            "data_offsets [0, 9] do not lie within the 8 bytes after the header (the file may be tr",
        ),
        (entry(start=0, end=2**70), "do not lie within"),
        (entry(shape=(3,)), "F32 [3] takes 12 bytes, but data_offsets span 8"),
        (entry(shape=(2**63, 2**63), end=0), "elements"),
        (entry(shape=(1,), start=4), "a gap before it"),
        (entry(shape=(1,), end=4), "the tensors end at byte"),
    ],
)
def test_bad_entries(bad, message, refuse):
    """Every field of an entry is checked, and every byte accounted for."""
    assert message in refuse(MalformedFileError, {"w": bad}, bytes(8))


def test_overlapping_tensors(refuse):
    """Two tensors never share bytes."""
    header = {"a": entry(), "b": entry(start=4, end=12)}
    assert "tensor 'b': data_offsets leave an overlap with another tensor" in refuse(
        MalformedFileError, header, bytes(12)
    )
    header = {"a": entry(), "b": entry()}
    assert "an overlap with another tensor" in refuse(MalformedFileError, header, bytes(8))


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F8_E8M0", "C64", "f32", "", 3, None, ["F32"]])
def test_unread_dtypes(dtype, refuse):
    """A dtype outside the list is named, with the list."""
    message = refuse(UnsupportedError, {"w": entry(dtype)}, bytes(8))
    assert f"tensor 'w': dtype {dtype!r} is not read (read are BF16, BOOL, F16" in message


@pytest.mark.parametrize(
    ("data", "meaning"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer.*git lfs pull"),
        (b"PK\x03\x04" + bytes(100), "zip archive.*convert it to safetensors"),
        (b"\x80\x02}q\x00." + bytes(100), "Python pickle"),
        (b"GGUF\x03\0\0\0" + bytes(100), r"a GGUF file: give it the suffix \.gguf"),
        (b"<html>not found</html>", "web page"),
        (b"x", "1 bytes are too few"),
    ],
)
def test_what_it_seems_to_be_instead(data, meaning, tmp_path):
    """Common mistakes are recognised."""
    path = tmp_path / "m.safetensors"
    path.write_bytes(data)
    with pytest.raises(MalformedFileError, match=meaning):
        SafetensorsSource(path)


def test_trailing_bytes(refuse):
    """Bytes behind the last tensor could be another file (a polyglot)."""
    assert "size: the tensors end at byte 80, the file at 81" in refuse(MalformedFileError, {"w": entry()}, bytes(9))


def test_every_truncated_safetensors_file_is_refused(tmp_path, safetensors_bytes):
    """A file cut at any byte is refused, by the library too."""
    whole = safetensors_bytes({"v": entry("I64", (1,)), "w": entry(start=8, end=16)}, bytes(16))
    path = tmp_path / "m.safetensors"
    path.write_bytes(whole)
    assert len(SafetensorsSource(path)) == 2
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(MalformedFileError):
            SafetensorsSource(path)
        with pytest.raises(SafetensorError):
            deserialize(whole[:size])


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "9", None])
def test_limits_are_positive_integers(value):
    """A limit of another kind is the caller's mistake."""
    with pytest.raises(ValueError, match=rf"max_shards must be a positive integer, got {value!r}"):
        Limits(max_shards=value)


def test_the_formats_own_bound_holds():
    """No limit on headers beyond the format's own."""
    assert Limits(max_safetensors_header=100_000_000).max_safetensors_header == 100_000_000
    with pytest.raises(ValueError, match="max_safetensors_header must be at most 100000000, got 100000001"):
        Limits(max_safetensors_header=100_000_001)


def test_surrogates_and_control_characters_in_names(refuse):
    """Names are printed, so they must be printable."""
    for name in ("\ud800", "a\nb", "\x1b[2J", "\u202e"):
        assert "bad tensor name" in refuse(MalformedFileError, {name: entry()}, bytes(8))


def test_nan_is_not_looked_for(tmp_path, safetensors_bytes):
    """Values are not read by opening: NaN is the business of check_finite."""
    path = tmp_path / "m.safetensors"
    path.write_bytes(safetensors_bytes({"w": entry()}, np.array([np.nan, np.inf], np.float32).tobytes()))
    assert np.isnan(SafetensorsSource(path).decode("w")[0])
