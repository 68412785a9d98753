"""The bounds of one rendering: steps, characters, processor time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, TypeVar, cast

from inference_pio.interfaces import TemplateError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

T = TypeVar("T")

CONTAINERS: tuple[type, ...] = (list, tuple, dict, type({}.keys()), type({}.values()), type({}.items()))
_STEPS_BETWEEN_LOOKS = 64
_LARGEST_NUMBER = 1400  # characters of the largest number that the guards let a template compute


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateLimits:
    """What a chat template may use up.

    Attributes:
        source_bytes: Size of the template itself, in UTF-8.
        output_chars: Size of the rendered text.
        value_chars: Size of any one value written out as text.
        created_chars: Size of all strings made while rendering.
        steps: Loop iterations, calls, filters and tests.
        cpu_s: Processor time of rendering, in seconds. (That of compiling is bounded by the size of the source.)
    """

    source_bytes: int = 256 * 1024
    output_chars: int = 4 * 1024 * 1024
    value_chars: int = 8 * 1024 * 1024
    created_chars: int = 64 * 1024 * 1024
    steps: int = 1_000_000
    cpu_s: float = 2.0


class Meter:
    """Counts down the limits of one rendering, on the thread that made it.

    The rule that keeps every single operation short: no value whose text is longer than ``limits.value_chars`` ever
    comes to be. A list that holds one long string a thousand times counts it a thousand times.
    """

    __slots__ = ("_created", "_deadline", "_look_in", "_steps", "limits")

    def __init__(self, limits: TemplateLimits) -> None:
        self.limits = limits
        self._steps = limits.steps
        self._created = limits.created_chars
        self._deadline = time.thread_time() + limits.cpu_s
        self._look_in = _STEPS_BETWEEN_LOOKS

    def step(self, count: int = 1) -> None:
        """Account for ``count`` steps.

        Raises:
            TemplateError: Out of steps or out of time.
        """
        self._steps -= count
        if self._steps < 0:
            self._exceeded(f"takes more than {self.limits.steps} steps")
        self._look_in -= count
        if self._look_in < 0:
            self._look_in = _STEPS_BETWEEN_LOOKS
            if time.thread_time() > self._deadline:
                self._exceeded(f"takes more than {self.limits.cpu_s:g} s")

    def create(self, chars: int) -> None:
        """Account for a string of ``chars`` characters, before it is made where that is possible.

        Raises:
            TemplateError: It is too long, or there are too many of them.
        """
        if chars > self.limits.value_chars:
            self._exceeded(f"makes a value of more than {self.limits.value_chars} characters")
        self._created -= chars
        if self._created < 0:
            self._exceeded(f"makes more than {self.limits.created_chars} characters")
        self.step(1 + (chars >> 14))

    def weigh(self, value: T) -> T:
        """Hold a new list, tuple or dict to the limit on values; returns it.

        Raises:
            TemplateError: Written out as text it would be too long.
        """
        if isinstance(value, CONTAINERS):
            self.measure(value)
        return value

    def measure(self, value: object) -> int:
        """Characters of a value written out, roughly: each string its length, everything else one.

        Raises:
            TemplateError: More than the limit on values.
        """
        if isinstance(value, str):
            return len(value)
        size = nodes = 0
        limit = self.limits.value_chars
        pending = [value]
        while pending:
            item = pending.pop()
            nodes += 1
            size += len(item) if isinstance(item, str) else 1
            if size > limit:
                self._exceeded(f"makes a value of more than {limit} characters")
            if isinstance(item, dict):
                pending.extend(item)
                pending.extend(item.values())
            elif isinstance(item, CONTAINERS):
                pending.extend(cast("Iterable[object]", item))
        self.step(1 + (nodes >> 3))
        return size

    def longest(self, value: object) -> int:
        """A bound on the length of ``str(value)``: escapes may quadruple what is inside a container."""
        if isinstance(value, str):
            return len(value)
        return _LARGEST_NUMBER * self.measure(value)

    def counted(self, items: Iterator[T]) -> Iterator[T]:
        """The same items, each accounted for."""
        for item in items:
            self.step()
            yield item

    def _exceeded(self, what: str) -> NoReturn:
        raise TemplateError(f"the chat template {what}", hint="give another one with chat_template=")
