"""Stop strings: found one character at a time, so that the answer does not depend on where tokens begin and end."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class StopMatcher:
    """Watches a text for the first stop string to be completed.

    Of several stop strings the one that ends first in the text wins; of those that end together, the longest. Each
    string is followed by the automaton of Knuth, Morris and Pratt (1977), so a character costs amortised constant time
    per stop string, however long it is.

    Args:
        stops: The stop strings, none of them empty.

    Raises:
        ValueError: A stop string is empty.
    """

    __slots__ = ("_failures", "_held", "_matched", "_stops")

    def __init__(self, stops: Sequence[str]) -> None:
        if any(not stop for stop in stops):
            msg = "stop strings must not be empty"
            raise ValueError(msg)
        self._stops = tuple(stops)
        self._failures = [_failure_links(stop) for stop in self._stops]
        self._matched = [0] * len(self._stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """Take more text.

        Returns:
            Text that cannot be part of a stop string any more, and the stop string that was completed, or None. The
            text ends where the stop string begins; what follows it is dropped.
        """
        if not self._stops:
            return text, None
        pending = self._held + text
        for position, char in enumerate(text, start=len(self._held)):
            found = ""
            for index, stop in enumerate(self._stops):
                if self._advance(index, char) == len(stop) > len(found):
                    found = stop
            if found:
                self.flush()
                return pending[: position + 1 - len(found)], found
        keep = len(pending) - max(self._matched)
        self._held = pending[keep:]
        return pending[:keep], None

    def flush(self) -> str:
        """The text still held back, once no more follows."""
        held, self._held = self._held, ""
        self._matched = [0] * len(self._stops)
        return held

    def _advance(self, index: int, char: str) -> int:
        """Follow one stop string by one character; returns how much of it the text now ends with."""
        stop, links, matched = self._stops[index], self._failures[index], self._matched[index]
        while matched and stop[matched] != char:
            matched = links[matched - 1]
        if stop[matched] == char:
            matched += 1
        self._matched[index] = matched
        return matched


def _failure_links(pattern: str) -> list[int]:
    """Per prefix of ``pattern``, the length of its longest proper prefix that is also its suffix."""
    links = [0] * len(pattern)
    matched = 0
    for position in range(1, len(pattern)):
        while matched and pattern[position] != pattern[matched]:
            matched = links[matched - 1]
        if pattern[position] == pattern[matched]:
            matched += 1
        links[position] = matched
    return links
