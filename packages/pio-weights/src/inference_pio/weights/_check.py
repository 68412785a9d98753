"""An optional look at the values themselves, for weights from a source that is not trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from inference_pio.interfaces import MalformedFileError
from inference_pio.weights._dequantize import decodable_encodings

if TYPE_CHECKING:
    from collections.abc import Iterable

    from inference_pio.interfaces import WeightSource

_CHUNK_ELEMENTS = 1 << 20


def check_finite(source: WeightSource, names: Iterable[str] | None = None) -> None:
    """Read tensors and refuse NaN and infinity. Costs a pass over the file, a chunk in memory at a time.

    Args:
        source: Where the tensors are.
        names: Which to check; None checks all. Encodings that cannot be decoded to float32 are passed over.

    Raises:
        MalformedFileError: Names the first tensor, and its row, with a value that is not finite.
    """
    for name in source if names is None else names:
        info = source.info(name)
        if info.encoding not in decodable_encodings():
            continue
        count = info.shape[0] if info.shape else 1
        step = max(1, _CHUNK_ELEMENTS * count // max(info.numel, 1))
        for start in range(0, count, step):
            values = source.decode(name, slice(start, start + step) if info.shape else None)
            finite = np.isfinite(values).reshape(values.shape[0] if info.shape else 1, -1).all(axis=1)
            if not finite.all():
                row = start + int(np.argmin(finite))
                raise MalformedFileError(info.file, f"tensor {name!r}", f"row {row} holds NaN or infinity")
        source.release(name)
