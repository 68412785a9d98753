"""Reading JSON objects strictly: every key is expected, present, and of the type it should be."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, NoReturn, TypeAlias, TypeVar

from inference_pio.interfaces import LimitExceededError, MalformedFileError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

Scalar: TypeAlias = str | int | float | bool | None
Typed = TypeVar("Typed")

MAX_BYTES = 16 << 20
"""Records are some kilobytes; what is a thousand times larger is something else."""

SMALLEST, LARGEST = 1e-30, 1e30
"""Of the magnitudes of numbers but 0, so that products and ratios of them stay finite."""

_NAMES = {str: "a string", int: "an integer", float: "a number", bool: "true or false", dict: "an object"}


class Fields:
    """The keys of one JSON object, taken one by one.

    Args:
        path: File that the object is in, for messages.
        value: The object; anything else is an error.
        place: Where in the file it is, such as ``"results[3]"``.

    Raises:
        MalformedFileError: ``value`` is no object.
    """

    def __init__(self, path: Path, value: object, place: str) -> None:
        self._path = path
        self._place = place
        if not isinstance(value, dict):
            self.fail(f"is {_shown(value)}, not an object")
        self._values: dict[str, object] = value

    def fail(self, problem: str, key: str | None = None) -> NoReturn:
        """Raise a MalformedFileError about ``key``, or about the object as a whole."""
        field = ".".join(part for part in (self._place, key) if part) or "document"
        raise MalformedFileError(self._path, field, problem)

    def keys(self, required: Collection[str], optional: Collection[str] = ()) -> None:
        """Hold the object to these keys.

        Raises:
            MalformedFileError: A required key is missing, or there is one that is neither.
        """
        for key in required:
            if key not in self._values:
                self.fail("is missing", key)
        for key in self._values:
            if key not in required and key not in optional:
                self.fail(f"unknown key; known are {', '.join([*required, *optional])}", _shown(key)[1:-1])

    def rest(self, known: Collection[str]) -> dict[str, object]:
        """All entries but those of ``known``."""
        return {key: value for key, value in self._values.items() if key not in known}

    def raw(self, key: str) -> object:
        """The value of ``key`` as it was parsed; None if there is none."""
        return self._values.get(key)

    def text(self, key: str) -> str:
        """A string that is not empty."""
        value = self._take(key, str)
        return value if value.strip() else self.fail("is empty", key)

    def optional_text(self, key: str) -> str | None:
        """A string that is not empty, or null."""
        return None if self._values.get(key) is None else self.text(key)

    def integer(self, key: str, *, minimum: int = 0) -> int:
        """An integer of at least ``minimum``."""
        value = self._take(key, int)
        return value if value >= minimum else self.fail(f"is {value}, less than {minimum}", key)

    def optional_integer(self, key: str) -> int | None:
        """A non-negative integer, or null."""
        return None if self._values.get(key) is None else self.integer(key)

    def number(self, key: str) -> float:
        """A finite number."""
        return self._finite(self._values.get(key), key)

    def optional_positive(self, key: str) -> float | None:
        """A positive number, or null."""
        if self._values.get(key) is None:
            return None
        value = self.number(key)
        return value if value > 0 else self.fail(f"is {value:g}, not positive", key)

    def numbers(self, key: str) -> tuple[float, ...]:
        """A list of finite numbers, at least one."""
        values = self.items(key)
        if not values:
            self.fail("is empty", key)
        return tuple(self._finite(value, f"{key}[{index}]") for index, value in enumerate(values))

    def items(self, key: str) -> list[object]:
        """A list."""
        value = self._values.get(key)
        return value if isinstance(value, list) else self.fail(f"is {_shown(value)}, not a list", key)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings."""
        values = self.items(key)
        for index, value in enumerate(values):
            if not isinstance(value, str):
                self.fail(f"is {_shown(value)}, not a string", f"{key}[{index}]")
        return tuple(str(value) for value in values)

    def mapping(self, key: str) -> dict[str, object]:
        """An object."""
        return self._take(key, dict)

    def text_mapping(self, key: str) -> dict[str, str]:
        """An object whose values are strings."""
        values = self.mapping(key)
        for name, value in values.items():
            if not isinstance(value, str):
                self.fail(f"is {_shown(value)}, not a string", f"{key}.{name}")
        return {name: str(value) for name, value in values.items()}

    def scalars(self, key: str) -> dict[str, Scalar]:
        """An object whose values are strings, finite numbers, true, false or null."""
        return self.as_scalars(self.mapping(key), key)

    def as_scalars(self, values: Mapping[str, object], place: str) -> dict[str, Scalar]:
        """``values``, held to be strings, finite numbers, true, false or null."""
        found: dict[str, Scalar] = {}
        for name, value in values.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                self._finite(value, f"{place}.{name}")
            if value is not None and not isinstance(value, (str, int, float)):
                self.fail(f"is {_shown(value)}, neither text, number, true, false nor null", f"{place}.{name}")
            found[name] = value
        return found

    def _take(self, key: str, kind: type[Typed]) -> Typed:
        value = self._values.get(key)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self.fail(f"is {_shown(value)}, not {_NAMES[kind]}", key)
        return value

    def _finite(self, value: object, key: str) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.fail(f"is {_shown(value)}, not a number", key)
        try:
            number = float(value)
        except OverflowError:
            self.fail("is too large", key)
        if not math.isfinite(number):
            self.fail("is not finite", key)
        if number and not SMALLEST <= abs(number) <= LARGEST:
            self.fail(f"is {number:g}, whose magnitude is not between {SMALLEST:g} and {LARGEST:g}", key)
        return number


def read_object(path: Path) -> Fields:
    """The JSON object in ``path``: the whole file, or its last line, where a script prints its result.

    Raises:
        MalformedFileError: It is no JSON object in UTF-8, has a key twice, or a number that JSON does not know.
        LimitExceededError: It is larger than 16 MiB.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise LimitExceededError(path, "document", f"is larger than {MAX_BYTES} bytes", hint="this is no record")

    def constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON")

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key occurs twice in one object")
        return found

    try:
        value: object = json.loads(data.decode("utf-8"), parse_constant=constant, object_pairs_hook=unique)
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # half a surrogate pair could not be written anywhere
    except RecursionError as error:
        raise MalformedFileError(path, "document", "is nested too deeply") from error
    except ValueError as error:  # of json, of UTF-8, of integers with thousands of digits, and the two above
        problem = f"is no JSON record: {error}"
        raise MalformedFileError(path, "document", problem, hint="scripts write one with --json FILE") from error
    return Fields(path, value, "")


def _shown(value: object) -> str:
    """The beginning of ``value`` for a message; ``missing`` is what a lookup without a find gives."""
    if value is None:
        return "null or missing"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    try:
        text = repr(value)
    except ValueError:  # an integer too long to be written out
        return "a huge integer"
    return text if len(text) <= 60 else f"{text[:57]}..."
