"""From a path to the file that is meant."""

from __future__ import annotations

import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from inference_pio.interfaces import MalformedFileError, ModelNotFoundError, PathEscapeError, PioError, UnsupportedError
from inference_pio.weights import GGUFSource, SafetensorsSource, open_weights


def some(path):
    save_file({"w": np.ones(2, np.float32)}, path)


@pytest.mark.parametrize("suffix", [".safetensors", ".SafeTensors"])
def test_suffix_decides_safetensors(suffix, tmp_path):
    """The format goes by the suffix, in any case."""
    some(tmp_path / f"x{suffix}")
    assert isinstance(open_weights(str(tmp_path / f"x{suffix}")), SafetensorsSource)
    assert isinstance(open_weights(tmp_path), SafetensorsSource)


@pytest.mark.parametrize("suffix", [".gguf", ".GGUF"])
def test_suffix_decides_gguf(suffix, tmp_path, gguf_bytes):
    """The format goes by the suffix, in any case."""
    (tmp_path / f"x{suffix}").write_bytes(gguf_bytes())
    assert isinstance(open_weights(tmp_path / f"x{suffix}"), GGUFSource)
    assert isinstance(open_weights(tmp_path), GGUFSource)


def test_order_in_a_folder(tmp_path, gguf_bytes):
    """model.safetensors comes before other safetensors files, and these before GGUF."""
    (tmp_path / "m.gguf").write_bytes(gguf_bytes())
    assert open_weights(tmp_path).format == "gguf"
    some(tmp_path / "weights.safetensors")
    assert open_weights(tmp_path).files[0].name == "weights.safetensors"
    some(tmp_path / "model.safetensors")
    assert open_weights(tmp_path).files[0].name == "model.safetensors"


def test_several_candidates_are_listed(tmp_path, gguf_bytes):
    """Which of several files is meant is not guessed."""
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(gguf_bytes())
    with pytest.raises(
        MalformedFileError, match=r"2 \.gguf files and no index: a\.gguf, b\.gguf \(name one of the files\)"
    ):
        open_weights(tmp_path)
    for number in range(6):
        some(tmp_path / f"s{number}.safetensors")
    with pytest.raises(MalformedFileError, match=r"6 \.safetensors files and no index: .*s3\.safetensors, \.\.\."):
        open_weights(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "x.pkl", "x.pickle", "x.ckpt"])
def test_pickles_are_never_opened(name, tmp_path):
    """A pickle is refused by its name, without being touched; a file that cannot even be read shows it."""
    path = tmp_path / name
    os.mkfifo(path)
    for target in (path, tmp_path):
        with pytest.raises(UnsupportedError, match=r"pickles can run code.*convert them to safetensors"):
            open_weights(target)
    some(tmp_path / "model.safetensors")
    assert len(open_weights(tmp_path)) == 1


def test_empty_folder(tmp_path):
    """A folder without weights says what was expected."""
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(ModelNotFoundError, match=r"no weights in this folder \(expected a \.safetensors or a \.gguf"):
        open_weights(tmp_path)


@pytest.mark.parametrize("name", ["x.gguf", "x.safetensors", "x.safetensors.index.json", "x", "x.bin"])
def test_missing_file(name, tmp_path):
    """Nothing there is not found, in every format: exit code 3."""
    with pytest.raises(ModelNotFoundError, match=f"{name}: no such file") as caught:
        open_weights(tmp_path / name)
    assert caught.value.exit_code == 3


def test_other_suffixes(tmp_path):
    """A file of another kind names the kinds that are read."""
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(UnsupportedError, match=r"model.onnx: not a weight file by its suffix \(read are .*\.gguf\)"):
        open_weights(tmp_path / "model.onnx")


@pytest.mark.parametrize("suffix", [".gguf", ".safetensors", ".safetensors.index.json"])
def test_special_files_are_refused(suffix, tmp_path):
    """A pipe, a folder, an empty file: refused at once, without waiting for a writer."""
    pipe = tmp_path / f"pipe{suffix}"
    os.mkfifo(pipe)
    with pytest.raises(MalformedFileError, match="is a named pipe, not a regular file"):
        open_weights(pipe)
    empty = tmp_path / f"empty{suffix}"
    empty.touch()
    with pytest.raises(MalformedFileError, match="the file is empty"):
        open_weights(empty)
    for kind in (GGUFSource, SafetensorsSource):
        with pytest.raises(MalformedFileError, match="is a folder, not a regular file"):
            kind(tmp_path)


@pytest.mark.parametrize("suffix", [".gguf", ".safetensors", ".safetensors.index.json"])
def test_endless_device(suffix, tmp_path):
    """A link to /dev/zero is not read from."""
    link = tmp_path / f"zero{suffix}"
    link.symlink_to("/dev/zero")
    with pytest.raises(MalformedFileError, match="is a device, not a regular file"):
        open_weights(link)


def test_pipe_inside_a_folder(tmp_path):
    """The same when the folder leads to it."""
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(MalformedFileError, match="is a named pipe"):
        open_weights(tmp_path)


def test_a_file_that_is_a_link(tmp_path):
    """Whoever names a link wants what it leads to."""
    some(tmp_path / "blob")
    link = tmp_path / "x.safetensors"
    link.symlink_to(tmp_path / "blob")
    assert len(open_weights(link)) == 1


def test_a_file_that_links_to_itself(tmp_path):
    """A loop of links is an error, not a hang."""
    link = tmp_path / "x.gguf"
    link.symlink_to(link)
    with pytest.raises(MalformedFileError, match="path: cannot be resolved"):
        open_weights(link)


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (FileNotFoundError(2, "No such file"), ModelNotFoundError, "x.safetensors: no such file"),
        (PermissionError(13, "Permission denied"), PioError, r"cannot be opened: Permission denied \(check its perm"),
        (OSError(24, "Too many open files"), PioError, "cannot be opened: Too many open files"),
    ],
)
def test_failure_to_open(error, expected, message, tmp_path, monkeypatch):
    """Whatever the system says when a file is opened becomes an error of ours."""
    some(tmp_path / "x.safetensors")

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(expected, match=message):
        open_weights(tmp_path / "x.safetensors")


def test_a_file_swapped_for_a_pipe(tmp_path, monkeypatch):
    """What was opened is checked again: between looking and opening, the name may have changed hands."""
    some(tmp_path / "x.safetensors")
    os.mkfifo(tmp_path / "pipe")
    system_open, opened = os.open, []

    def swapped(path, flags):
        opened.append(system_open(tmp_path / "pipe", flags))
        return opened[-1]

    monkeypatch.setattr(os, "open", swapped)
    with pytest.raises(MalformedFileError, match="is a named pipe, not a regular file"):
        open_weights(tmp_path / "x.safetensors")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])


def test_single_file_in_a_folder_that_leads_out(tmp_path):
    """A folder's own file may not be a link out of it."""
    some(tmp_path / "outside.safetensors")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.safetensors").symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(PathEscapeError, match="is a link out of the folder"):
        open_weights(folder)


def test_a_path_that_cannot_be(tmp_path):
    """A name longer than the system allows is an error like others."""
    with pytest.raises(PioError, match="cannot be read: File name too long"):
        open_weights(tmp_path / ("x" * 300 + ".gguf"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path):
    """A file without permission says so."""
    some(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").chmod(0)
    with pytest.raises(PioError, match="cannot be opened: Permission denied"):
        open_weights(tmp_path / "x.safetensors")
