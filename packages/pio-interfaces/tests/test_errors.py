"""The error taxonomy: exit codes, messages, and that errors survive a journey."""

import copy
import pickle

import pytest

from inference_pio import interfaces
from inference_pio.interfaces import InvalidRequestError, MalformedFileError, PioError

EXIT_CODES = {
    "PioError": 1,
    "BrokenDependencyError": 5,
    "ConfigError": 2,
    "DoesNotFitError": 4,
    "EngineError": 1,
    "HubError": 1,
    "InvalidRequestError": 2,
    "LimitExceededError": 1,
    "MalformedFileError": 1,
    "MissingDependencyError": 5,
    "MissingPluginError": 5,
    "ModelNotFoundError": 3,
    "PathEscapeError": 1,
    "PromptTooLongError": 2,
    "QueueFullError": 1,
    "RemoteCodeRefusedError": 1,
    "StructureError": 1,
    "TemplateError": 1,
    "UnsupportedError": 5,
}


def errors():
    return {name: getattr(interfaces, name) for name in interfaces.__all__ if name.endswith("Error")}


def make(error, hint=None):
    if issubclass(error, MalformedFileError):
        return error("model.gguf", "header.version", "must be 2 or 3, got 9", hint=hint)
    return error("version must be 2 or 3, got 9", hint=hint)


def test_every_error_has_its_documented_exit_code():
    """The table of the design, and no error outside of it."""
    assert {name: error.exit_code for name, error in errors().items()} == EXIT_CODES
    assert all(issubclass(error, PioError) for error in errors().values())


@pytest.mark.parametrize("name", sorted(EXIT_CODES))
def test_a_message_is_one_line_with_its_hint(name):
    """What was wrong, and in brackets what to do about it."""
    error = errors()[name]
    assert str(make(error)).endswith("must be 2 or 3, got 9")
    full = str(make(error, "convert the file again"))
    assert full.endswith("must be 2 or 3, got 9 (convert the file again)")
    assert "\n" not in full


def through_pickle(error):
    return pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes


@pytest.mark.parametrize("name", sorted(EXIT_CODES))
@pytest.mark.parametrize("journey", [copy.copy, through_pickle])
def test_an_error_survives_a_journey(name, journey):
    """Errors cross processes: type, text and attributes arrive."""
    error = make(errors()[name], "convert the file again")
    arrived = journey(error)
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert vars(arrived) == vars(error)


def test_a_malformed_file_names_its_place():
    """File, field and rule, apart and in the message."""
    error = make(MalformedFileError)
    assert str(error) == "model.gguf: header.version: must be 2 or 3, got 9"
    assert (error.path, error.field, error.problem) == ("model.gguf", "header.version", "must be 2 or 3, got 9")


def test_an_invalid_request_is_a_value_error():
    """Callers in Python may catch what they know."""
    assert issubclass(InvalidRequestError, ValueError)
    assert not issubclass(PioError, ValueError)
