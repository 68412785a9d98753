"""The one way in which the release tools say no."""

from __future__ import annotations


class RefusedError(Exception):
    """A release that must not go on.

    Attributes:
        reasons: One line each: what is wrong, with the values, and the way out.
    """

    def __init__(self, *reasons: str) -> None:
        super().__init__("\n".join(reasons))
        self.reasons = reasons
