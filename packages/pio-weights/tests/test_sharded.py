"""Checkpoints of several files: the index, and the paths it may name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from inference_pio.interfaces import LimitExceededError, MalformedFileError, ModelNotFoundError, PathEscapeError
from inference_pio.weights import Limits, SafetensorsSource, open_weights

INDEX = "model.safetensors.index.json"


@pytest.fixture
def checkpoint(tmp_path):
    """A folder with three shards; the index goes to disk by ``write``."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()

    class Checkpoint:
        path = folder

        def __init__(self):
            self.tensors = {f"t{index}": np.full((2, index + 1), index, np.float32) for index in range(6)}
            self.index = {"metadata": {"total_size": 168}, "weight_map": {}}

        def write(self, index=None):
            (folder / INDEX).write_text(json.dumps(self.index if index is None else index))
            return folder

    result = Checkpoint()
    for shard in range(3):
        name = f"model-0000{shard + 1}-of-00003.safetensors"
        part = {key: result.tensors[key] for key in (f"t{2 * shard}", f"t{2 * shard + 1}")}
        save_file(part, folder / name, metadata={"format": "pt", "shard": str(shard)})
        result.index["weight_map"] |= dict.fromkeys(part, name)
    result.write()
    return result


def test_shards_are_one_source(checkpoint):
    """All tensors of all shards, each knowing its file; metadata are what the shards agree on."""
    for path in (checkpoint.path, checkpoint.path / INDEX, str(checkpoint.path)):
        source = open_weights(path)
        assert isinstance(source, SafetensorsSource)
        assert list(source) == list(checkpoint.tensors)
        assert source.metadata == {"format": "pt"}
        assert len(source.files) == 3
        for name, expected in checkpoint.tensors.items():
            np.testing.assert_array_equal(source.array(name), expected)
            assert source.info(name).file.name == checkpoint.index["weight_map"][name]


def test_an_index_comes_before_other_files(checkpoint):
    """Consolidated copies beside the shards are left alone."""
    (checkpoint.path / "consolidated.safetensors").write_bytes(b"not looked at")
    (checkpoint.path / "pytorch_model.bin").write_bytes(b"not looked at")
    assert len(open_weights(checkpoint.path)) == 6


@pytest.mark.parametrize(
    "name",
    [
        "../model-00001-of-00003.safetensors",
        "/etc/model.safetensors",
        "sub/model.safetensors",
        "sub\\model.safetensors",
        "C:model.safetensors",
        "model.safetensors\0",
        "model.safetensors\n",
        "model.bin",
        "..",
        "",
        ".safetensors/../x",
        "modèl.safetensors",
        "~root.safetensors",
        3,
        None,
        ["model.safetensors"],
    ],
)
def test_shard_names_are_plain(name, checkpoint):
    """A shard is a plain name of a safetensors file, in ASCII, whatever the system would make of others."""
    checkpoint.index["weight_map"]["t0"] = name
    with pytest.raises(PathEscapeError, match=r"tensor 't0' is said to be in .*no plain .safetensors file name"):
        open_weights(checkpoint.write())


def test_missing_shard(checkpoint):
    """The missing file is named."""
    (checkpoint.path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match=r"model-00002-of-00003.safetensors: no such file \(the download may"):
        open_weights(checkpoint.path)


def test_truncated_shard(checkpoint):
    """A shard that is cut short is named."""
    shard = checkpoint.path / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(MalformedFileError, match=r"model-00002-of-00003.safetensors: tensor 't[23]'.*truncated"):
        open_weights(checkpoint.path)


def test_tensor_missing_from_its_shard(checkpoint):
    """The index promises a tensor that is nowhere."""
    checkpoint.index["weight_map"]["ghost"] = "model-00001-of-00003.safetensors"
    with pytest.raises(MalformedFileError, match=r"tensor 'ghost' is not in model-00001-of-00003.safetensors"):
        open_weights(checkpoint.write())
    del checkpoint.index["weight_map"]["ghost"]
    checkpoint.index["weight_map"][""] = "model-00001-of-00003.safetensors"
    with pytest.raises(MalformedFileError, match=r"tensor '' is not in model-00001-of-00003.safetensors"):
        open_weights(checkpoint.write())


def test_tensor_that_the_index_does_not_list(checkpoint):
    """A shard brings a tensor that the index does not know."""
    del checkpoint.index["weight_map"]["t3"]
    with pytest.raises(
        MalformedFileError, match=r"model-00002-of-00003.safetensors holds tensor 't3', but the index does"
    ):
        open_weights(checkpoint.write())


def test_tensor_in_two_shards(checkpoint):
    """Every tensor is in exactly one file."""
    shard = checkpoint.path / "model-00003-of-00003.safetensors"
    save_file({name: checkpoint.tensors[name] for name in ("t0", "t4", "t5")}, shard)
    with pytest.raises(MalformedFileError, match="holds tensor 't0', but the index places it in model-00001"):
        open_weights(checkpoint.path)


@pytest.mark.parametrize("total", [168.0, None])
def test_total_size_may_be_a_whole_float_or_absent(total, checkpoint):
    """Some writers sum in floats; some leave it out."""
    checkpoint.index["metadata"] = {"total_size": total}
    assert len(open_weights(checkpoint.write())) == 6
    del checkpoint.index["metadata"]
    assert len(open_weights(checkpoint.write())) == 6


@pytest.mark.parametrize("total", [167, 169, 0])
def test_total_size_must_match(total, checkpoint):
    """A sum that differs says that files and index are not of one checkpoint."""
    checkpoint.index["metadata"]["total_size"] = total
    with pytest.raises(MalformedFileError, match=f"metadata.total_size: says {total} bytes, but the files hold 168"):
        open_weights(checkpoint.write())


@pytest.mark.parametrize("total", [-1, 1.5, "168", True, [168]])
def test_total_size_must_be_a_size(total, checkpoint):
    """Other kinds of value are refused."""
    checkpoint.index["metadata"]["total_size"] = total
    with pytest.raises(MalformedFileError, match=r"metadata.total_size: must be a number of bytes"):
        open_weights(checkpoint.write())


@pytest.mark.parametrize("index", [[], {}, {"weight_map": {}}, {"weight_map": []}, {"weight_map": "x"}, 7, "text"])
def test_what_is_no_index(index, checkpoint):
    """An index maps at least one tensor to a file."""
    with pytest.raises(MalformedFileError, match="weight_map: must map tensor names to files"):
        open_weights(checkpoint.write(index))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "duplicate key 'a'"),
        ('{"metadata": {"total_size": 1e999}, "weight_map": {"a": "x.safetensors"}}', "must be a number of bytes"),
        ('{"metadata": {"total_size": NaN}, "weight_map": {"a": "x.safetensors"}}', "NaN is not JSON"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_index_is_strict_json(text, message, checkpoint):
    """Duplicates, NaN, and nesting without end are refused."""
    (checkpoint.path / INDEX).write_text(text)
    with pytest.raises(MalformedFileError, match=message):
        open_weights(checkpoint.path)


def test_limits_on_the_index(checkpoint):
    """Size of the index and number of shards are bounded."""
    with pytest.raises(LimitExceededError, match=r"size: [0-9]+ bytes, more than 100 .*max_index_bytes"):
        open_weights(checkpoint.path, limits=Limits(max_index_bytes=100))
    with pytest.raises(LimitExceededError, match=r"weight_map: 3 files, more than 2 .*max_shards"):
        open_weights(checkpoint.path, limits=Limits(max_shards=2))


def test_link_out_of_the_folder(checkpoint, tmp_path):
    """A shard that is a link to a file elsewhere is refused, and where it leads is said."""
    shard = checkpoint.path / "model-00001-of-00003.safetensors"
    outside = shard.rename(tmp_path / "outside.safetensors")
    shard.symlink_to(outside)
    with pytest.raises(
        PathEscapeError, match=r"is a link out of the folder, to .*outside.safetensors \(name that file"
    ):
        open_weights(checkpoint.path)


def test_link_within_the_folder(checkpoint):
    """A link to a neighbour is as good as the neighbour."""
    shard = checkpoint.path / "model-00001-of-00003.safetensors"
    shard.symlink_to(shard.rename(checkpoint.path / "blob").name)
    assert len(open_weights(checkpoint.path)) == 6


@pytest.fixture
def hub_cache(checkpoint, tmp_path):
    """The checkpoint as the Hugging Face hub's cache lays it out: links in snapshots/, files in blobs/."""
    repo = tmp_path / "hub" / "models--org--name"
    snapshot = repo / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    for number, file in enumerate(sorted(checkpoint.path.iterdir())):
        file.rename(repo / "blobs" / f"blob{number}")
        (snapshot / file.name).symlink_to(os.path.relpath(repo / "blobs" / f"blob{number}", snapshot))
    return snapshot


def test_hub_cache_links_are_followed(hub_cache, checkpoint):
    """Links from a snapshot to the blobs of its own repository are followed; also through a link to the snapshot."""
    for path in (hub_cache, hub_cache / INDEX):
        source = open_weights(path)
        for name, expected in checkpoint.tensors.items():
            np.testing.assert_array_equal(source.array(name), expected)
    alias = hub_cache.parents[3] / "alias"
    alias.symlink_to(hub_cache)
    assert len(open_weights(alias)) == 6


def test_hub_cache_links_to_another_repository(hub_cache):
    """A link from a snapshot to anything but the blobs of its repository is refused."""
    other = hub_cache.parents[2] / "models--org--other" / "blobs"
    other.mkdir(parents=True)
    shard = hub_cache / "model-00001-of-00003.safetensors"
    shard.resolve().rename(other / "blob")
    shard.unlink()
    shard.symlink_to(other / "blob")
    with pytest.raises(PathEscapeError, match="is a link out of the folder"):
        open_weights(hub_cache)


def test_broken_link(hub_cache):
    """A link to nothing is a missing file."""
    (hub_cache / "model-00001-of-00003.safetensors").resolve().unlink()
    with pytest.raises(ModelNotFoundError, match=r"model-00001-of-00003.safetensors: no such file"):
        open_weights(hub_cache)


def test_loop_of_links(checkpoint):
    """Links that lead to each other are an error, not a hang."""
    shard = checkpoint.path / "model-00001-of-00003.safetensors"
    shard.unlink()
    shard.symlink_to(shard.name)
    with pytest.raises(MalformedFileError, match="cannot be resolved"):
        open_weights(checkpoint.path)


def test_failed_opening_closes_what_it_opened(checkpoint):
    """After an error in the last shard, no file of the first is still open."""
    (checkpoint.path / "model-00003-of-00003.safetensors").write_bytes(b"x")
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("no /proc/self/fd on this system")
    before = len(list(descriptors.iterdir()))
    for _ in range(3):
        with pytest.raises(MalformedFileError, match="too few"):
            open_weights(checkpoint.path)
    assert len(list(descriptors.iterdir())) == before
