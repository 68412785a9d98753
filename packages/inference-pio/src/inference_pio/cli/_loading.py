"""Loading the model, with something to look at meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inference_pio.cli._output import as_count, as_size, note
from inference_pio.cli._progress import byte_progress, status
from inference_pio.cli._settings import engine_arguments

if TYPE_CHECKING:
    from inference_pio.cli._settings import RunSettings
    from inference_pio.core import LLM

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def load(run: RunSettings, *, progress: bool, verbose: bool) -> LLM:
    """The model that the settings name, ready to answer.

    Raises:
        PioError: It cannot be found, read or held.
    """
    from inference_pio.core import LLM

    name = run.settings.model
    with (
        status(f"loading {name} ...", wanted=progress),
        byte_progress(f"loading {name}", wanted=progress) as loading,
        byte_progress(f"fetching {name}", wanted=progress) as fetching,
    ):
        llm = LLM(**engine_arguments(run), progress=loading, download_progress=fetching)
    if verbose:
        tell_loaded(llm)
    return llm


def tell_loaded(llm: LLM) -> None:
    """One line about the loaded model on standard error."""
    shape = llm.shape
    size = as_size(shape.num_parameters * _BYTES[llm.dtype])
    note(
        f"{llm.name}: {shape.architecture}, {as_count(shape.num_parameters)} parameters, {size} in {llm.dtype} on "
        f"{llm.device}, context {llm.max_model_len}, loaded in {llm.load_s:.2f} s"
    )
