"""Why a model cannot be had now, as clients are told: reasons and figures, no paths."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from inference_pio.interfaces import (
    BrokenDependencyError,
    ConfigError,
    DoesNotFitError,
    HubError,
    MalformedFileError,
    MissingDependencyError,
    MissingPluginError,
    ModelNotFoundError,
    UnsupportedError,
)
from inference_pio.serve._errors import ApiError, invalid, unavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

_REASONS: Mapping[type[Exception], str] = MappingProxyType(
    {
        ModelNotFoundError: "its files are not there",
        MalformedFileError: "its files break the rules of their format",
        ConfigError: "its config has a key or a value that is not known",
        MissingPluginError: "nothing that is installed serves its architecture",
        MissingDependencyError: "something that it needs is not installed",
        BrokenDependencyError: "something that it needs is installed and does not work",
        UnsupportedError: "it cannot be computed here",
        HubError: "the model hub does not give it",
        MemoryError: "there is no memory for it",
    }
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a model is not there; each request that waits is told so in an error of its own.

    Attributes:
        message: The reason.
        code: What programs tell errors apart by.
        retry_after_s: When it is worth asking again; None for never.
    """

    message: str
    code: str
    retry_after_s: int | None

    def error(self, retry_after_s: float | None = None) -> ApiError:
        """As an error: 400 where asking again never helps, else 503.

        Args:
            retry_after_s: How long it is until then by now, if that is not what it was.
        """
        if self.retry_after_s is None:
            return invalid(self.message, "model", code=self.code)
        seconds = self.retry_after_s if retry_after_s is None else max(1, round(retry_after_s))
        return unavailable(self.message, self.code, retry_after_s=seconds)


def load_failed(label: str, error: BaseException, retry_after_s: int) -> Refusal:
    """Loading ``label`` raised ``error``. What that says goes to the log: it may name paths."""
    if isinstance(error, DoesNotFitError):
        reason = error.message  # figures
    else:
        reason = next((text for kind, text in _REASONS.items() if isinstance(error, kind)), "the server's log says why")
    return Refusal(f"{label} could not be loaded: {reason}", "model_load_failed", retry_after_s)


def never_fits(label: str, nbytes: int, budget: int) -> Refusal:
    """``label`` alone takes more than all models may."""
    return Refusal(f"{label} takes {gib(nbytes)}, and all models together may take {gib(budget)}", "does_not_fit", None)


def others_busy(label: str, nbytes: int, free: int, busy: int, budget: int) -> Refusal:
    """``label`` would fit, were others not in use."""
    return Refusal(
        f"{label} takes {gib(nbytes)}; of the {gib(budget)} that all models may take {gib(busy)} are in use by "
        f"models that are loading or have open requests, and {gib(free)} are free",
        "memory_busy",
        2,
    )


def gib(nbytes: int) -> str:
    """For people."""
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.1f} MiB"
