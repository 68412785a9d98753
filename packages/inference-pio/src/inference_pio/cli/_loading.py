"""Loading the model, with something to look at meanwhile."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

from inference_pio.cli._output import as_count, as_size, note, show_warnings
from inference_pio.cli._progress import byte_progress, status
from inference_pio.cli._settings import engine_arguments

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inference_pio.cli._settings import RunSettings
    from inference_pio.core import LLM


def load(run: RunSettings, *, progress: bool, quiet: bool, verbose: bool) -> LLM:
    """The model that the settings name, ready to answer.

    Raises:
        PioError: It cannot be found, read or held.
    """
    name = run.settings.model
    show_warnings(wanted=not quiet)
    with (
        _no_collection(),
        status(f"loading {name} ...", wanted=progress),
        byte_progress(f"loading {name}", wanted=progress) as loading,
        byte_progress(f"fetching {name}", wanted=progress) as fetching,
    ):
        from inference_pio.core import LLM

        llm = LLM(**engine_arguments(run), progress=loading, download_progress=fetching)
    if verbose:
        tell_loaded(llm)
    return llm


@contextmanager
def _no_collection() -> Iterator[None]:
    """Spare the garbage collector the libraries.

    Importing torch makes very many objects that live as long as the process; looking for garbage among them again and
    again takes a tenth of a run's start-up.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def tell_loaded(llm: LLM) -> None:
    """One line about the loaded model on standard error."""
    shape = llm.shape
    size = as_size(llm.weight_bytes)
    note(
        f"{llm.name}: {shape.architecture}, {as_count(shape.num_parameters)} parameters, {size} in {llm.dtype} on "
        f"{llm.device}, context {llm.max_model_len}, loaded in {llm.load_s:.2f} s"
    )
