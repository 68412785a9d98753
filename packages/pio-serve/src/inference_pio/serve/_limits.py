"""How much each key may have at once: open requests, and tokens per minute."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inference_pio.serve._errors import too_many
from inference_pio.serve._keys import KeyRing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MINUTE = 60.0


@dataclass(slots=True)
class _Use:
    open: int = 0
    tokens: float = 0.0
    since: float = 0.0


class KeyLimits:
    """Counts what each key has open and has used. For one event loop.

    Tokens are a bucket that holds a minute's worth and fills evenly. An answer's length is not known before, so a
    request begins while the bucket is not empty, takes what it used, and may leave a debt that the next ones wait for.

    Args:
        max_open: Requests that one key may have open at once.
        tokens_per_minute: Tokens of prompts and answers that one key may use per minute; None for no bound.
        keys: What some keys may have instead.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        max_open: int,
        tokens_per_minute: int | None,
        *,
        keys: KeyRing | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_open = max_open
        self._rate = tokens_per_minute
        self._keys = KeyRing() if keys is None else keys
        self._clock = clock
        self._uses: dict[str, _Use] = {}

    @contextmanager
    def opened(self, key_id: str) -> Iterator[None]:
        """One more open request of a key.

        Raises:
            ApiError: 429; it has as many as it may, or has used up its tokens.
        """
        max_open, rate = self._of(key_id)
        use = self._uses.setdefault(key_id, _Use(tokens=float(rate or 0), since=self._clock()))
        if use.open >= max_open:
            raise too_many(f"this key has {use.open} open requests, as many as it may", "too_many_requests")
        if rate is not None:
            self._fill(use, rate)
            if use.tokens <= 0:
                wait = 1 + int(-use.tokens * _MINUTE / rate)
                raise too_many(
                    f"this key has used its {rate} tokens per minute", "tokens_per_minute", retry_after_s=wait
                )
        use.open += 1
        try:
            yield
        finally:
            use.open -= 1
            if use.open == 0 and rate is None:
                del self._uses[key_id]  # a flood of names leaves nothing behind

    def spend(self, key_id: str, tokens: int) -> None:
        """``key_id`` has used ``tokens``."""
        use = self._uses.get(key_id)
        if use is not None and self._of(key_id)[1] is not None:
            use.tokens -= tokens

    def _of(self, key_id: str) -> tuple[int, int | None]:
        """Open requests and tokens per minute that a key may have."""
        grant = self._keys.grant(key_id)
        if grant is None:
            return self._max_open, self._rate
        rate = self._rate if grant.tokens_per_minute is None else grant.tokens_per_minute
        return grant.max_concurrent or self._max_open, rate

    def _fill(self, use: _Use, rate: int) -> None:
        now = self._clock()
        use.tokens = min(float(rate), use.tokens + (now - use.since) * rate / _MINUTE)
        use.since = now
