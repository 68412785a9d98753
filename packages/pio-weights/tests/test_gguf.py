"""Reading GGUF files that are right, held to what the gguf package writes and reads."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from inference_pio.interfaces import (
    LimitExceededError,
    MalformedFileError,
    ModelNotFoundError,
    UnsupportedError,
    WeightSource,
)
from inference_pio.weights import GGUFSource, Limits, block_layout, open_weights

BLOCKS = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K")


def all_kinds_of_metadata(writer):
    writer.add_uint8("a.u8", 255)
    writer.add_int8("a.i8", -128)
    writer.add_uint16("a.u16", 65535)
    writer.add_int16("a.i16", -32768)
    writer.add_uint32("a.u32", 2**32 - 1)
    writer.add_int32("a.i32", -(2**31))
    writer.add_uint64("a.u64", 2**64 - 1)
    writer.add_int64("a.i64", -(2**63))
    writer.add_float32("a.f32", 0.5)
    writer.add_float64("a.f64", 1e300)
    writer.add_bool("a.yes", True)  # noqa: FBT003 - the writer's signature
    writer.add_bool("a.no", False)  # noqa: FBT003 - the writer's signature
    writer.add_string("a.text", "ünïcode\n\0 and NUL")
    writer.add_array("a.ints", [1, -2, 3])
    writer.add_array("a.floats", [0.5, -0.25])
    writer.add_array("a.bools", [True, False])


def test_metadata_come_as_plain_python_values(tmp_path, write_gguf):
    """Every kind of value arrives as the Python value of the same meaning and type."""
    source = GGUFSource(write_gguf(tmp_path / "m.gguf", {}, all_kinds_of_metadata))
    expected = {
        "general.architecture": "llama",
        "a.u8": 255,
        "a.i8": -128,
        "a.u16": 65535,
        "a.i16": -32768,
        "a.u32": 2**32 - 1,
        "a.i32": -(2**31),
        "a.u64": 2**64 - 1,
        "a.i64": -(2**63),
        "a.f32": 0.5,
        "a.f64": 1e300,
        "a.yes": True,
        "a.no": False,
        "a.text": "ünïcode\n\0 and NUL",
        "a.ints": [1, -2, 3],
        "a.floats": [0.5, -0.25],
        "a.bools": [True, False],
    }
    assert source.metadata == expected
    assert {key: type(value) for key, value in source.metadata.items()} == {
        key: type(value) for key, value in expected.items()
    }
    assert all(type(item) is type(expected["a.bools"][0]) for item in source.metadata["a.bools"])
    assert len(source) == 0


@pytest.mark.parametrize(
    "tokens",
    [
        ["a"],
        ["", "a", ""],
        [""] * 3000,
        ["a" * size for size in range(300)],
        ["a\0b", "c", "\0", "\0\0\0\0\0\0\0", "d\0\0\0\0\0\0\0"],
        ["é" * 100, "\u4e2d" * 85, "x" * 255, "x" * 256, "x" * 4096],
        [f"token {index}" for index in range(20_000)],
        [f"{index}" if index % 777 else "\0" * (index % 13) for index in range(20_000)],
        [chr(1 + index % 60) for index in range(9000)],
    ],
    ids=["one", "empty", "all-empty", "lengths", "nul", "long", "many", "many-with-nul", "control"],
)
def test_string_arrays_round_trip(tokens, tmp_path, write_gguf):
    """Strings with NULs, empty ones, long ones, and many of them, come back in order, whatever road they take."""
    path = write_gguf(tmp_path / "m.gguf", {}, lambda writer: writer.add_array("tokens", tokens))
    assert GGUFSource(path).metadata["tokens"] == tokens


def test_string_arrays_with_random_lengths_round_trip(tmp_path, write_gguf):
    """A vocabulary of random lengths and characters, across the borders of the reading window."""
    rng = np.random.default_rng(0)
    alphabet = "abc é\u4e2d\U0001f600\x07"
    tokens = ["".join(rng.choice(list(alphabet), size)) for size in rng.integers(0, 90, 6000)]
    path = write_gguf(tmp_path / "m.gguf", {}, lambda writer: writer.add_array("tokens", tokens))
    assert GGUFSource(path).metadata["tokens"] == tokens


def test_plain_tensors_are_views(tmp_path, write_gguf):
    """Plain dtypes come as views in the logical shape, equal to what was written."""
    tensors = {
        f"t.{dtype}": np.arange(24).reshape(2, 3, 4).astype(dtype)
        for dtype in ("f8", "f4", "f2", "i8", "i4", "i2", "i1")
    }
    source = GGUFSource(write_gguf(tmp_path / "m.gguf", tensors))
    assert list(source) == list(tensors)
    for name, expected in tensors.items():
        view = source.array(name)
        assert view is not None
        assert source.info(name).shape == expected.shape
        assert source.info(name).numel == 24
        assert view.dtype == expected.dtype
        assert not view.flags.owndata
        np.testing.assert_array_equal(view, expected)
        np.testing.assert_array_equal(source.packed(name), expected.view(np.uint8).reshape(-1))


def test_bfloat16_is_a_view_of_bits(tmp_path, write_gguf):
    """BF16 has no NumPy dtype: its bits come as uint16."""
    bits = np.arange(64, dtype=np.uint16).reshape(4, 16)
    source = GGUFSource(write_gguf(tmp_path / "m.gguf", {"w": ("BF16", bits.view(np.uint8))}))
    assert source.info("w").encoding == "BF16"
    np.testing.assert_array_equal(source.array("w"), bits)
    np.testing.assert_array_equal(source.decode("w").view(np.uint32), bits.astype(np.uint32) << 16)


@pytest.mark.parametrize("encoding", BLOCKS)
def test_block_tensors_decode_whole_and_by_rows(encoding, tmp_path, write_gguf, random_blocks):
    """Block formats have no view, their bytes as stored, and rows that equal those of the whole."""
    elements, nbytes = block_layout(encoding)
    packed = random_blocks(encoding, 2 * 5 * 3).reshape(2, 5, 3 * nbytes)
    source = GGUFSource(write_gguf(tmp_path / "m.gguf", {"pad": np.ones(7, np.float32), "w": (encoding, packed)}))
    info = source.info("w")
    expected = gguf.dequantize(packed, gguf.GGMLQuantizationType[encoding])
    assert (info.encoding, info.shape, info.nbytes) == (encoding, (2, 5, 3 * elements), packed.size)
    assert source.array("w") is None
    np.testing.assert_array_equal(source.packed("w"), packed.reshape(-1))
    np.testing.assert_array_equal(source.decode("w"), expected)
    for rows in (slice(0, 1), slice(1, 2), slice(None), slice(-1, None), slice(2, 2), slice(1, 0), slice(0, 99)):
        np.testing.assert_array_equal(source.decode("w", rows), expected[rows])


def test_part_of_a_quantised_vector(tmp_path, write_gguf, random_blocks):
    """Rows of a vector are single elements; a range inside blocks is cut out of them."""
    packed = random_blocks("Q8_0", 4).reshape(-1)
    source = GGUFSource(write_gguf(tmp_path / "m.gguf", {"v": ("Q8_0", packed)}))
    whole = source.decode("v")
    assert whole.shape == (128,)
    for start in (0, 1, 31, 32, 33, 100):
        for stop in (start, start + 1, start + 28, 128):
            np.testing.assert_array_equal(source.decode("v", slice(start, stop)), whole[start:stop])


def test_decode_returns_new_memory(tmp_path, write_gguf):
    """Even float32 is copied by decode: what it returns may be changed."""
    source = GGUFSource(write_gguf(tmp_path / "m.gguf", {"w": np.ones((2, 3), np.float32)}))
    decoded = source.decode("w")
    decoded[:] = 7
    np.testing.assert_array_equal(source.decode("w"), np.ones((2, 3), np.float32))
    np.testing.assert_array_equal(source.array("w"), np.ones((2, 3), np.float32))


@pytest.mark.parametrize("encoding", ["IQ4_XS", "IQ2_XXS", "MXFP4", "TQ1_0", "Q2_K", "Q8_K"])
def test_undecodable_types_still_open(encoding, tmp_path, gguf_bytes):
    """The header opens and the bytes are reachable; only decoding refuses, naming type, tensor and what it can."""
    elements, nbytes = block_layout(encoding)
    number = gguf.GGMLQuantizationType[encoding].value
    data = bytes(range(256))[: nbytes % 256] + bytes(nbytes - nbytes % 256)
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes([], [("w", [elements, 1], number, 0)], data))
    source = GGUFSource(path)
    assert source.info("w").encoding == encoding
    assert source.packed("w").tobytes() == data
    assert source.array("w") is None
    with pytest.raises(UnsupportedError, match=rf"tensor 'w' is stored as {encoding}.*decoded are .*Q4_K.*use a file"):
        source.decode("w")


def test_integers_are_not_decoded(tmp_path, write_gguf):
    """Integers have a view but no float form."""
    source = GGUFSource(write_gguf(tmp_path / "m.gguf", {"ids": np.arange(4, dtype=np.int32)}))
    with pytest.raises(UnsupportedError, match=r"tensor 'ids' is stored as I32.*array\(\) gives its elements"):
        source.decode("ids")


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [1, 8, 32, 64, 4096])
def test_versions_and_alignments(version, alignment, tmp_path, gguf_bytes):
    """Versions 2 and 3, at any alignment: the second tensor is where its offset says."""
    first, second = np.arange(3, dtype=np.float32), np.arange(5, dtype=np.float32)
    gap = -(-first.nbytes // alignment) * alignment
    keys = [("general.alignment", 4, alignment.to_bytes(4, "little"))]
    data = first.tobytes().ljust(gap, b"\0") + second.tobytes()
    tensors = [("b", [5], 0, gap), ("a", [3], 0, 0)]
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes(keys, tensors, data, version=version, alignment=alignment))
    source = GGUFSource(path)
    assert (source.version, source.alignment) == (version, alignment)
    np.testing.assert_array_equal(source.decode("a"), first)
    np.testing.assert_array_equal(source.decode("b"), second)


def test_unaligned_tensors_have_no_view(tmp_path, gguf_bytes):
    """With an alignment of 1 a float can lie anywhere: no view then, but it decodes."""
    path = tmp_path / "m.gguf"
    keys = [("general.alignment", 4, (1).to_bytes(4, "little")), ("x", 8, (0).to_bytes(8, "little"))]
    for pad in range(4):
        name = "w" * (pad + 1)
        values = np.arange(3, dtype=np.float32)
        path.write_bytes(gguf_bytes(keys, [(name, [3], 0, 0)], values.tobytes(), alignment=1))
        source = GGUFSource(path)
        start = path.stat().st_size - 12
        assert (source.array(name) is None) == bool(start % 4)
        np.testing.assert_array_equal(source.decode(name), values)


def test_scalars_and_empty_tensors(tmp_path, gguf_bytes):
    """No dimensions is one element; a dimension of zero is none, and takes no bytes."""
    path = tmp_path / "m.gguf"
    tensors = [("scalar", [], 0, 0), ("empty", [0, 5], 0, 32)]
    path.write_bytes(gguf_bytes([], tensors, np.float32(3).tobytes().ljust(32, b"\0")))
    source = GGUFSource(path)
    assert source.decode("scalar").shape == ()
    assert float(source.decode("scalar")) == 3.0
    assert source.decode("empty").shape == (5, 0)
    assert source.decode("empty", slice(1, 3)).shape == (2, 0)
    with pytest.raises(ValueError, match="tensor 'scalar' is a scalar"):
        source.decode("scalar", slice(0, 1))


def test_rows_must_be_contiguous(tmp_path, write_gguf):
    """A step is the caller's mistake."""
    source = GGUFSource(write_gguf(tmp_path / "m.gguf", {"w": np.ones((4, 2), np.float32)}))
    with pytest.raises(ValueError, match=r"rows must be contiguous, got slice\(0, 4, 2\)"):
        source.decode("w", slice(0, 4, 2))


def test_unknown_names_are_key_errors(tmp_path, write_gguf):
    """Every way to ask for a tensor says which name is missing."""
    source = GGUFSource(write_gguf(tmp_path / "m.gguf", {"w": np.ones(2, np.float32)}))
    assert "w" in source
    assert "v" not in source
    assert 3 not in source
    for ask in (source.info, source.packed, source.array, source.decode, source.release):
        with pytest.raises(KeyError, match=r"no tensor 'v' among the 1 of .*m.gguf"):
            ask("v")


def test_it_is_a_weight_source(tmp_path, write_gguf):
    """The contract of the interfaces is met."""
    source = open_weights(write_gguf(tmp_path / "m.gguf", {"w": np.ones(2, np.float32)}))
    assert isinstance(source, GGUFSource)
    assert isinstance(source, WeightSource)
    assert source.format == "gguf"
    assert source.info("w").file == tmp_path / "m.gguf"


def split(tmp_path, write_gguf, count=5):
    tensors = {f"t{index}": np.full((2, 4), index, np.float32) for index in range(count)}
    write_gguf(tmp_path / "m.gguf", tensors, split_max_tensors=2)
    return tmp_path / "m-00001-of-00003.gguf", tensors


def test_split_files_are_one_source(tmp_path, write_gguf):
    """The first part brings in the others: all tensors, each with its own file, under the first part's metadata."""
    first, tensors = split(tmp_path, write_gguf)
    source = open_weights(first)
    assert list(source) == list(tensors)
    assert [path.name for path in source.files] == [f"m-0000{part}-of-00003.gguf" for part in (1, 2, 3)]
    assert source.metadata["general.architecture"] == "llama"
    for name, expected in tensors.items():
        np.testing.assert_array_equal(source.decode(name), expected)
    assert source.info("t4").file.name == "m-00003-of-00003.gguf"


def test_split_files_in_a_folder(tmp_path, write_gguf):
    """A folder with the parts of one model is that model."""
    split(tmp_path, write_gguf)
    assert len(open_weights(tmp_path)) == 5


def test_later_part_names_the_first(tmp_path, write_gguf):
    """Opening a later part says which one to open."""
    split(tmp_path, write_gguf)
    with pytest.raises(MalformedFileError, match=r"part 2 of 3 \(open m-00001-of-00003.gguf\)"):
        open_weights(tmp_path / "m-00002-of-00003.gguf")


def test_missing_part(tmp_path, write_gguf):
    """A part that is not there is named."""
    first, _ = split(tmp_path, write_gguf)
    (tmp_path / "m-00003-of-00003.gguf").unlink()
    with pytest.raises(ModelNotFoundError, match=r"m-00003-of-00003.gguf: no such file"):
        open_weights(first)


def test_renamed_part(tmp_path, write_gguf):
    """A part whose name does not say which it is cannot lead to the others."""
    first, _ = split(tmp_path, write_gguf)
    renamed = first.rename(tmp_path / "model.gguf")
    with pytest.raises(MalformedFileError, match=r"part 1 of 3 of a split file.*name it \.\.\.-00001-of-00003\.gguf"):
        open_weights(renamed)


def test_swapped_parts(tmp_path, write_gguf):
    """A part under another part's name is found out."""
    first, _ = split(tmp_path, write_gguf)
    second, third = (tmp_path / f"m-0000{part}-of-00003.gguf" for part in (2, 3))
    second.write_bytes(third.read_bytes())
    with pytest.raises(MalformedFileError, match=r"m-00002-of-00003.gguf: split.no: expected 1, got 2"):
        open_weights(first)


def test_limit_on_parts(tmp_path, write_gguf):
    """The number of parts is bounded like that of shards."""
    first, _ = split(tmp_path, write_gguf)
    with pytest.raises(LimitExceededError, match=r"split\.count: 3 parts, more than 2 .*max_shards"):
        open_weights(first, limits=Limits(max_shards=2))


@pytest.mark.parametrize(
    ("tensors", "total", "message"),
    [
        ("a", 2, "m-00002-of-00002.gguf: tensor 'a': is in an earlier part too"),
        ("b", 3, "split.tensors.count: says 3, but the parts hold 2"),
        ("b", -1, "split.tensors.count: must be a count, got -1"),
    ],
)
def test_parts_that_disagree(tensors, total, message, tmp_path, gguf_bytes):
    """A tensor in two parts, and a number of tensors that is not theirs."""
    for number, name in enumerate(("a", tensors)):
        keys = [
            ("split.no", 2, number.to_bytes(2, "little")),
            ("split.count", 2, (2).to_bytes(2, "little")),
            ("split.tensors.count", 5, total.to_bytes(4, "little", signed=True)),
        ]
        data = gguf_bytes(keys, [(name, [8], 0, 0)], bytes(32))
        (tmp_path / f"m-0000{number + 1}-of-00002.gguf").write_bytes(data)
    with pytest.raises(MalformedFileError, match=message):
        open_weights(tmp_path)


@pytest.fixture(scope="module")
def theirs(real_gguf):
    """The real file as the gguf package reads it, which takes it seconds."""
    return gguf.GGUFReader(real_gguf)


def test_the_real_file_reads_as_the_gguf_package_reads_it(real_gguf, theirs):
    """All metadata and all tensor entries of a published 98 MB model."""
    ours = GGUFSource(real_gguf)
    expected = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert ours.metadata == expected
    assert list(ours) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        info = ours.info(tensor.name)
        assert info.shape == tuple(int(size) for size in reversed(tensor.shape))
        assert info.encoding == tensor.tensor_type.name
        assert info.nbytes == tensor.n_bytes
        assert ours.packed(tensor.name).ctypes.data % ours.alignment == 0


def test_every_tensor_of_the_real_file(real_gguf, theirs):
    """All 134.5 million weights decode to the bits that the gguf package gives."""
    ours = GGUFSource(real_gguf)
    for tensor in theirs.tensors:
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        decoded = ours.decode(tensor.name)
        ours.release(tensor.name)
        assert decoded.shape == expected.shape
        np.testing.assert_array_equal(decoded.view(np.uint32), expected.view(np.uint32))
