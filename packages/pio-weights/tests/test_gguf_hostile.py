"""GGUF files that are wrong: each is refused at once, in one line that names field, value and place."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest

from inference_pio.interfaces import LimitExceededError, MalformedFileError, UnsupportedError
from inference_pio.weights import GGUFSource, Limits

U32, STRING, ARRAY, BOOL = 4, 8, 9, 7
F32, Q4_0 = 0, 2


def string(text):
    return struct.pack("<Q", len(text.encode())) + text.encode()


def array(kind, count, payload=b""):
    return struct.pack("<IQ", kind, count) + payload


@pytest.fixture
def refuse(tmp_path, gguf_bytes):
    """Open the file that ``gguf_bytes`` builds from the arguments, and return the error."""

    def check(error, *args, limits=None, **kwargs):
        path = tmp_path / "m.gguf"
        path.write_bytes(gguf_bytes(*args, **kwargs))
        with pytest.raises(error) as caught:
            GGUFSource(path, limits=limits or Limits())
        message = str(caught.value)
        assert "\n" not in message
        assert str(path) in message
        return message

    return check


def test_array_of_2_to_63_in_49_bytes(tmp_path):
    """The file that hangs the reference reader: 49 bytes that claim an array of 2^63 elements."""
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("a") + struct.pack("<IIQ", ARRAY, 0, 2**63))
    assert path.stat().st_size == 49
    with pytest.raises(LimitExceededError, match=r"value of 'a' at byte 49: an array of 9223372036854775808 elements"):
        GGUFSource(path)


@pytest.mark.parametrize("kind", [0, 4, 8, 12])
def test_array_longer_than_the_file(kind, refuse):
    """An array within the limit but beyond the end of the file."""
    message = refuse(MalformedFileError, [("a", ARRAY, array(kind, 10_000_000))])
    assert "value of 'a' at byte" in message
    assert "but 0 are left (download the file again)" in message


def test_array_of_10_to_18(refuse):
    """A length that no memory holds."""
    assert "1000000000000000000 elements, more than 16777216" in refuse(
        LimitExceededError, [("a", ARRAY, array(STRING, 10**18))]
    )


def test_too_many_keys_and_tensors(refuse):
    """Counts are bounded before anything is read for them."""
    assert "key count at byte 24: 65537, more than 65536 (Limits(max_gguf_keys=...)" in refuse(
        LimitExceededError, num_keys=65537
    )
    assert "tensor count at byte 24: 18446744073709551615, more than 65536" in refuse(
        LimitExceededError, num_tensors=2**64 - 1
    )


def test_counts_beyond_the_file(refuse):
    """Counts within the limits, but nothing there."""
    assert "key at byte 24: needs 8 bytes, but 0 are left" in refuse(MalformedFileError, num_keys=65536)
    assert "tensor name at byte 24: needs 8 bytes, but 0 are left" in refuse(MalformedFileError, num_tensors=65536)


def test_strings_beyond_limit_or_file(refuse):
    """A string's length is compared with the file first, with the limit next."""
    assert "value of 's' at byte 37: claims 9223372036854775808 bytes" in refuse(
        MalformedFileError, [("s", STRING, struct.pack("<Q", 2**63))]
    )
    assert "a string of 65537 bytes, more than 65536 (Limits(max_string_bytes=...) raises the limit)" in refuse(
        LimitExceededError, [("s", STRING, string("x" * 65537))]
    )
    assert "key at byte 24: claims 18446744073709551615 bytes" in refuse(
        MalformedFileError, [], num_keys=1, data=b"\xff" * 64, alignment=1
    )


def test_long_token(refuse):
    """A token may be 4 KiB long, and not one byte longer."""
    message = refuse(LimitExceededError, [("t", ARRAY, array(STRING, 2, string("ok") + string("x" * 4097)))])
    assert "value of 't'[1] at byte" in message
    assert "a string of 4097 bytes, more than 4096" in message


def test_last_string_cut_short(refuse):
    """An array whose last string, or its length, ends with the file; on either road."""
    for tokens in (["a", "b"], ["", "b"]):
        payload = b"".join(map(string, tokens))
        for cut in (1, 5):
            assert "but" in refuse(MalformedFileError, [("t", ARRAY, array(STRING, 3, payload + bytes(8))[:-cut])])
        message = refuse(MalformedFileError, [("t", ARRAY, array(STRING, 3, payload + struct.pack("<Q", 9) + b"abc"))])
        assert "value of 't'[2] at byte" in message
        assert "needs 9 bytes, but 3 are left" in message or "claims 9 bytes" in message


def test_tight_limit_on_tokens(refuse):
    """A limit below the reach of the fast road still holds."""
    limits = Limits(max_array_string_bytes=8)
    assert "'t'[1] at byte" in refuse(
        LimitExceededError, [("t", ARRAY, array(STRING, 2, string("ok") + string("x" * 9)))], limits=limits
    )


def test_limits_can_be_raised(tmp_path, gguf_bytes):
    """What the limits refuse, larger limits let through."""
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes([("s", STRING, string("x" * 100_000))]))
    assert len(GGUFSource(path, limits=Limits(max_string_bytes=1 << 20)).metadata["s"]) == 100_000


def test_all_metadata_together_are_bounded(refuse):
    """Many arrays within their limit are too much together."""
    limits = Limits(max_gguf_metadata=1000)
    keys = [(f"k{index}", ARRAY, array(U32, 100, bytes(400))) for index in range(3)]
    assert "value of 'k2' at byte" in refuse(LimitExceededError, keys, limits=limits)
    strings = [(f"k{index}", ARRAY, array(STRING, 20, string("x" * 12) * 20)) for index in range(3)]
    assert "beyond the 1024 allowed (Limits(max_gguf_metadata=...) raises the limit)" in refuse(
        LimitExceededError, strings, limits=limits
    )


def test_nested_arrays(refuse):
    """Arrays of arrays are refused, so nothing recurses."""
    message = refuse(MalformedFileError, [("a", ARRAY, array(ARRAY, 1, array(ARRAY, 1)))])
    assert "value of 'a' at byte 37: an array of arrays" in message


@pytest.mark.parametrize("kind", [13, 255, 2**32 - 1])
def test_unknown_value_types(kind, refuse):
    """Value and element types are checked against the format's list."""
    assert f"value of 'a' at byte 33: unknown value type {kind}" in refuse(MalformedFileError, [("a", kind, b"")])
    assert f"value of 'a' at byte 37: unknown element type {kind}" in refuse(
        MalformedFileError, [("a", ARRAY, array(kind, 1, bytes(64)))]
    )


def test_duplicate_key(refuse):
    """The second of two equal keys is refused."""
    keys = [("a.b", U32, bytes(4)), ("a.b", U32, bytes(4))]
    assert "key at byte 43: duplicate key 'a.b'" in refuse(MalformedFileError, keys)


@pytest.mark.parametrize("key", ["", "a\nb", "a\0b", "\u202ea"])
def test_unprintable_keys(key, refuse):
    """Keys are printed, so they must be printable."""
    assert "is empty or not printable" in refuse(MalformedFileError, [(key, U32, bytes(4))])


def test_bad_text(refuse):
    """Text that is not UTF-8 is refused at its first wrong byte, on the fast road too."""
    bad = struct.pack("<Q", 3) + b"a\xffb"
    assert "key at byte 33: not UTF-8" in refuse(MalformedFileError, [(b"a\xffb", U32, bytes(4))])
    assert "value of 's' at byte 46: not UTF-8" in refuse(MalformedFileError, [("s", STRING, bad)])
    assert "value of 's'[8] at byte 146: not UTF-8" in refuse(
        MalformedFileError, [("s", ARRAY, array(STRING, 9, string("abc") * 8 + bad))]
    )
    half = struct.pack("<Q", 2) + "é".encode()[:1] + b"a"
    assert "value of 's'[0] at byte 57: not UTF-8" in refuse(
        MalformedFileError, [("s", ARRAY, array(STRING, 2, half + half))]
    )


def test_booleans_are_0_or_1(refuse):
    """Any other byte is refused, alone and in arrays."""
    assert "a boolean must be 0 or 1, got 2" in refuse(MalformedFileError, [("b", BOOL, b"\x02")])
    assert "a boolean must be 0 or 1, got 255" in refuse(
        MalformedFileError, [("b", ARRAY, array(BOOL, 3, b"\0\xff\1"))]
    )


@pytest.mark.parametrize("value", [0, 3, 48, 2**31 + 1])
def test_alignment_is_a_power_of_two(value, refuse):
    """Zero and other numbers are refused."""
    keys = [("general.alignment", U32, struct.pack("<I", value))]
    assert f"general.alignment at byte 57: must be a power of two as uint32, got {value}" in refuse(
        MalformedFileError, keys
    )


def test_alignment_of_another_type_or_size(refuse):
    """Alignment is a uint32 of at most 1 MiB."""
    assert "must be a power of two as uint32, got 32" in refuse(
        MalformedFileError, [("general.alignment", 10, struct.pack("<Q", 32))]
    )
    assert "must be a power of two as uint32, got True" in refuse(
        MalformedFileError, [("general.alignment", BOOL, b"\1")]
    )
    assert "2097152, more than 1048576 (Limits(max_alignment=...)" in refuse(
        LimitExceededError, [("general.alignment", U32, struct.pack("<I", 1 << 21))]
    )


@pytest.mark.parametrize("magic", [b"GGUX", b"\0\0\0\0", b"ggml"])
def test_wrong_magic(magic, refuse):
    """Anything but GGUF is refused by its first bytes."""
    assert "magic at byte 0:" in refuse(MalformedFileError, magic=magic)


@pytest.mark.parametrize(
    ("data", "meaning"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer.*git lfs pull"),
        (b"PK\x03\x04 and so on, a whole archive", "zip archive.*convert it to safetensors"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"ggjt\x03\0\0\0", "format before GGUF"),
        (b"GG", "starts with b'GG'"),
    ],
)
def test_what_it_seems_to_be(data, meaning, tmp_path):
    """Common mistakes are recognised."""
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    with pytest.raises(MalformedFileError, match=meaning):
        GGUFSource(path)


@pytest.mark.parametrize("version", [0, 1, 4, 99])
def test_other_versions(version, refuse):
    """Only versions 2 and 3 are read."""
    assert f"GGUF version {version} is not read (versions 2 and 3 are)" in refuse(UnsupportedError, version=version)


@pytest.mark.parametrize("version", [2, 3])
def test_big_endian(version, refuse):
    """A big-endian file is called that."""
    swapped = int.from_bytes(version.to_bytes(4, "big"), "little")
    assert "a big-endian GGUF file (convert it" in refuse(UnsupportedError, version=swapped)


def test_rank(refuse):
    """Five dimensions, or four billion, are refused before their sizes are read."""
    assert "tensor 'w' at byte 33: 5 dimensions, more than 4" in refuse(
        MalformedFileError, [], [("w", [1] * 5, F32, 0)], bytes(32)
    )


@pytest.mark.parametrize("number", [4, 5, 31, 36, 38, 42, 99, 2**32 - 1])
def test_unknown_tensor_types(number, refuse):
    """Types that were removed from the format or never in it."""
    assert f"tensor 'w' at byte 45: unknown type {number}" in refuse(
        MalformedFileError, [], [("w", [32], number, 0)], bytes(64)
    )


@pytest.mark.parametrize("sizes", [[2**63, 2**63], [2**40 + 1], [0, 2**62], [2**21, 2**20, 1, 0], [2**64 - 1] * 4])
def test_overflowing_sizes(sizes, refuse):
    """Products that overflow 64 bits, and huge sizes hidden behind a zero."""
    assert "make more than 1099511627776 elements" in refuse(LimitExceededError, [], [("w", sizes, F32, 0)], bytes(32))


def test_sizes_beyond_the_file(refuse):
    """A terabyte of claimed tensor costs nothing."""
    message = refuse(MalformedFileError, [], [("w", [2**20, 2**20], F32, 0)], bytes(32))
    assert "ends at byte 4398046511200, but the file has 128 (the file is truncated: download it again)" in message


@pytest.mark.parametrize("sizes", [[33], [], [16, 2], [31, 32]])
def test_rows_of_broken_blocks(sizes, refuse):
    """A row of a block format is whole blocks."""
    assert "are not whole blocks of Q4_0 (32)" in refuse(MalformedFileError, [], [("w", sizes, Q4_0, 0)], bytes(64))


def test_offsets(refuse):
    """Offsets are aligned and inside the file."""
    assert "offset 4 is no multiple of the alignment 32" in refuse(
        MalformedFileError, [], [("w", [1], F32, 4)], bytes(64)
    )
    assert "tensor 'w' at byte 24: ends at byte 18446744073709551652" in refuse(
        MalformedFileError, [], [("w", [1], F32, 2**64 - 32)], bytes(64)
    )
    assert "ends at byte" in refuse(MalformedFileError, [], [("w", [0], F32, 2**40)], bytes(64))


def test_overlapping_tensors(refuse):
    """Two tensors never share bytes."""
    tensors = [("a", [16], F32, 0), ("b", [8], F32, 32)]
    assert "tensor 'b': starts at byte 128, inside the tensor before it" in refuse(
        MalformedFileError, [], tensors, bytes(64)
    )
    assert "inside the tensor before it" in refuse(
        MalformedFileError, [], [("a", [8], F32, 0), ("b", [8], F32, 0)], bytes(64)
    )


def test_duplicate_tensor(refuse):
    """Names are unique."""
    tensors = [("w", [8], F32, 0), ("w", [8], F32, 32)]
    assert "a second tensor of this name" in refuse(MalformedFileError, [], tensors, bytes(64))


@pytest.mark.parametrize(
    "name", ["", "a\0", "../../etc/passwd", "a/../b", "/abs", "\\\\host", "tab\t", "\x1b[31m", "..\\x"]
)
def test_bad_tensor_names(name, refuse):
    """Names that could harm a terminal or a path are refused."""
    assert "bad tensor name" in refuse(MalformedFileError, [], [(name, [8], F32, 0)], bytes(32))


def test_long_tensor_name(refuse):
    """A name of more than 512 bytes."""
    assert "a string of 513 bytes, more than 512" in refuse(
        LimitExceededError, [], [("w" * 513, [8], F32, 0)], bytes(32)
    )


def test_shown_values_are_cut(refuse):
    """A key of 60,000 characters does not flood the message."""
    assert len(refuse(MalformedFileError, [("k" * 60_000, 99, b"")])) < 400


def test_every_truncation_is_refused(tmp_path, gguf_bytes):
    """A file cut at any byte, header or data, is refused."""
    keys = [
        ("general.alignment", U32, struct.pack("<I", 8)),
        ("t", ARRAY, array(STRING, 2, string("a") + string("bc"))),
    ]
    whole = gguf_bytes(keys, [("w", [3], F32, 0), ("v", [2, 2], F32, 16)], bytes(32), alignment=8)
    path = tmp_path / "m.gguf"
    path.write_bytes(whole)
    assert len(GGUFSource(path)) == 2
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(MalformedFileError):
            GGUFSource(path)


CLAIMS = {
    "array": {"keys": [("a", ARRAY, array(0, 2**24))]},
    "huge-array": {"keys": [("a", ARRAY, array(12, 2**63))]},
    "strings": {"keys": [("a", ARRAY, array(STRING, 2**24))]},
    "string": {"keys": [("a", STRING, struct.pack("<Q", 2**40))]},
    "keys": {"num_keys": 65536},
    "tensors": {"num_tensors": 65536},
    "tensor": {"tensors": [("w", [2**20, 2**20], F32, 0)], "data": bytes(32)},
    "gap": {"tensors": [("w", [8], F32, 2**40)], "data": bytes(32)},
}


@pytest.mark.parametrize("case", CLAIMS)
def test_claims_allocate_nothing(case, tmp_path, gguf_bytes):
    """What a file claims to hold is not allocated before it is seen to be there."""
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes(**CLAIMS[case]))
    tracemalloc.start()
    try:
        with pytest.raises(MalformedFileError):
            GGUFSource(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_nothing_is_read_after_the_header(tmp_path, gguf_bytes):
    """A sparse file of a tebibyte opens at once: only its header is looked at."""
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes([], [("w", [2**20, 2**17], F32, 0)], bytes(32)))
    with path.open("r+b") as file:
        file.truncate(2**40)
    source = GGUFSource(path)
    assert source.info("w").nbytes == 2**39
    np.testing.assert_array_equal(source.decode("w", slice(2**16, 2**16 + 1)), np.zeros((1, 2**20), np.float32))
