"""A checkpoint in memory, and random numbers that do not change from run to run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from inference_pio.interfaces import TensorInfo, UnsupportedError

NUMPY_DTYPES = {"F32": np.float32, "F16": np.float16}


class MemorySource:
    """A weight source over float32 arrays, each stored in an encoding of the test's choice.

    ``F32``, ``F16`` and ``BF16`` can be mapped; ``Q8_0`` stands for any format that must be decoded (its stored size is
    that of the real one, its values are exact); ``OPAQUE`` has no decoder.
    """

    format = "gguf"

    def __init__(self, tensors, encodings=(), *, file="model.gguf", files=()):
        self.tensors = {name: np.asarray(value, dtype=np.float32) for name, value in tensors.items()}
        self.encodings = dict(encodings)
        self.files = dict(files)
        self.file = Path(file)
        self.metadata: dict[str, object] = {}
        self.released: list[str] = []
        self.decoded: list[tuple[str, slice | None]] = []
        self.stored = {name: self._store(name) for name in self.tensors}

    def _store(self, name):
        value, encoding = self.tensors[name], self.encodings.get(name, "F32")
        if encoding == "BF16":
            return (torch.from_numpy(value).to(torch.bfloat16).view(torch.uint16)).numpy().copy()
        if encoding in NUMPY_DTYPES:
            return value.astype(NUMPY_DTYPES[encoding], copy=False)
        return value

    def __contains__(self, name):
        return name in self.tensors

    def __iter__(self):
        return iter(self.tensors)

    def __len__(self):
        return len(self.tensors)

    def info(self, name):
        value, encoding = self.tensors[name], self.encodings.get(name, "F32")
        nbytes = value.size * 34 // 32 if encoding == "Q8_0" else self.stored[name].nbytes
        file = Path(self.files.get(name, self.file))
        return TensorInfo(name=name, shape=value.shape, encoding=encoding, nbytes=nbytes, file=file)

    def packed(self, name):
        return self.stored[name].reshape(-1).view(np.uint8)

    def array(self, name):
        return self.stored[name] if self.encodings.get(name, "F32") in {"F32", "F16", "BF16"} else None

    def decode(self, name, rows=None):
        encoding = self.encodings.get(name, "F32")
        if encoding == "OPAQUE":
            raise UnsupportedError(f"tensor {name!r} is stored as OPAQUE, which cannot be decoded to float32")
        self.decoded.append((name, rows))
        stored = self.stored[name] if rows is None else self.stored[name][rows]
        if encoding == "BF16":
            return torch.from_numpy(stored).view(torch.bfloat16).float().numpy()
        return stored.astype(np.float32)

    def release(self, name):
        self.released.append(name)

    def close(self):
        pass


@pytest.fixture
def memory_source():
    """The class :class:`MemorySource`."""
    return MemorySource


@pytest.fixture
def rng():
    """A torch generator with a fixed seed."""
    return torch.Generator().manual_seed(20240917)
