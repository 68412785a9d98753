"""Memory for large arrays from the native library: zero, and in 2 MiB pages where the system has them."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import numpy as np

from inference_pio.interfaces import DoesNotFitError
from inference_pio.kernels._library import load_library

if TYPE_CHECKING:
    from numpy.typing import NDArray


def allocate(nbytes: int, purpose: str) -> NDArray[np.uint8]:
    """``nbytes`` zero bytes, given back when no array refers to them any more.

    Args:
        nbytes: Size.
        purpose: What it is for, as the error says it.

    Raises:
        DoesNotFitError: There is no memory.
    """
    return np.asarray(_Block(nbytes, purpose))


class _Block:
    """Owns memory; arrays made from it keep it alive."""

    def __init__(self, nbytes: int, purpose: str) -> None:
        library = load_library()
        pointer = library.pio_memory_new(max(nbytes, 1))
        if not pointer:
            raise DoesNotFitError(
                f"no memory for {nbytes} bytes of {purpose}", hint="use less context or a smaller model"
            )
        # The process gives all of it back at its end; at that time the library may be gone before the arrays are.
        weakref.finalize(self, library.pio_memory_free, pointer, max(nbytes, 1)).atexit = False
        self.__array_interface__ = {"version": 3, "data": (pointer, False), "shape": (nbytes,), "typestr": "|u1"}
