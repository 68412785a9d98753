"""The error taxonomy: what a user can be told, and the exit code that goes with it.

Every error says what was wrong, with which value, and what to do about it, on one line. Exit codes: 1 runtime, 2 usage,
3 not found, 4 does not fit, 5 missing plugin or hardware.
"""

from __future__ import annotations

from typing import ClassVar


class PioError(Exception):
    """Base of all errors that Inference-PIO raises for reasons outside the calling code.

    Args:
        message: What was wrong, with the offending value. One line.
        hint: What the user can do about it. One line.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message} ({self.hint})"


class InvalidRequestError(PioError, ValueError):
    """A request or a parameter that can never be served; also a ``ValueError`` for callers in Python."""

    exit_code = 2


class PromptTooLongError(InvalidRequestError):
    """The prompt leaves no room for a single new token within the model's context."""


class ConfigError(PioError):
    """A setting or a model config with an unknown key or a value out of bounds."""

    exit_code = 2


class ModelNotFoundError(PioError):
    """No registered name, folder, file or hub id matches the model argument."""

    exit_code = 3


class DoesNotFitError(PioError):
    """Weights, cache or a request need more memory than there is."""

    exit_code = 4


class QueueFullError(PioError):
    """As many requests wait as may: worth trying again later."""


class MissingPluginError(PioError):
    """No installed distribution brings the architecture, backend or format that was asked for."""

    exit_code = 5


class MissingDependencyError(PioError):
    """An optional distribution is not installed."""

    exit_code = 5


class BrokenDependencyError(PioError):
    """An optional distribution is installed, but importing or using it fails."""

    exit_code = 5


class UnsupportedError(PioError):
    """A combination that the chosen backend, device or model cannot compute."""

    exit_code = 5


class MalformedFileError(PioError):
    """A file that breaks the rules of its format.

    Args:
        path: The file.
        field: The field or tensor at fault.
        problem: Which rule is broken, with the value.
        hint: What the user can do about it.
    """

    def __init__(self, path: object, field: str, problem: str, *, hint: str | None = None) -> None:
        super().__init__(f"{path}: {field}: {problem}", hint=hint)
        self.path = path
        self.field = field
        self.problem = problem

    def __reduce__(self) -> tuple[object, ...]:
        """Carry all arguments over to another process; ``hint`` travels in the attributes."""
        return type(self), (self.path, self.field, self.problem), self.__dict__


class LimitExceededError(MalformedFileError):
    """A file within the rules of its format but beyond a limit that keeps loading safe."""


class PathEscapeError(MalformedFileError):
    """A file that names a path outside its own folder."""


class RemoteCodeRefusedError(PioError):
    """A model that asks to run code of its own."""


class TemplateError(PioError):
    """A chat template that fails, refuses its messages or exceeds its limits."""


class HubError(PioError):
    """The model hub cannot be reached or refuses the request."""


class EngineError(PioError):
    """The engine cannot go on; carries the reason of the step that failed."""


class StructureError(EngineError):
    """No text in the form that was asked for goes on from here: the same request would fail again."""
