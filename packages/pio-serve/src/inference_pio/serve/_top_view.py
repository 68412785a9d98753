"""Draws a server's figures as lines of text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from inference_pio.serve._figures import Figures, Latency

_BLOCKS = "▁▂▃▄▅▆▇█"
_PLAIN_BLOCKS = "_.-=+*%#"
_NAMES = 10
_VALUES = 22
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}


def draw(url: str, history: Sequence[Figures], *, width: int = 80, plain: bool = False, problem: str = "") -> list[str]:
    """Lines for a terminal.

    Args:
        url: Where the server is.
        history: Its figures, oldest first; at least one.
        width: Columns; no line is longer.
        plain: Draw with ASCII alone.
        problem: Why there are no newer figures, if there are none.
    """
    now = history[-1]
    room = max(0, width - _NAMES - _VALUES)
    blocks = _PLAIN_BLOCKS if plain else _BLOCKS

    def row(name: str, value: str, values: Sequence[float | None], top: float | None = None) -> str:
        return f"{name:<{_NAMES}}{value:<{_VALUES}}{sparkline(values[-room:] if room else [], blocks, top)}"

    hits = "-" if now.prefix_hit_share is None else f"{now.prefix_hit_share:.0%}"
    lines = [
        f"{', '.join(now.models) or 'no model yet'} at {url}",
        "",
        row("running", str(now.running), [item.running for item in history], None),
        row("waiting", str(now.waiting), [item.waiting for item in history], None),
        row("generated", _rate(now.generated_per_s), [item.generated_per_s for item in history]),
        row("read", _rate(now.read_per_s), [item.read_per_s for item in history]),
        row("KV cache", f"{now.kv_cache_usage:.1%}", [item.kv_cache_usage for item in history], 1.0),
        "",
        f"{'':<{_NAMES}}{'mean':>9}{'p50':>9}{'p95':>9}",
        _latency("TTFT", now.first_token),
        _latency("ITL", now.between_tokens),
        _latency("request", now.request),
        "",
        f"{'finished':<{_NAMES}}{_counts(now.finished)}",
        f"{'errors':<{_NAMES}}{_counts(now.errors)}",
        f"{'prefixes':<{_NAMES}}{hits} of prompt tokens found, {now.preemptions} preempted",
    ]
    if problem:
        lines += ["", problem]
    return [line.translate(_CONTROLS)[:width].rstrip() for line in lines]  # names come from the server


def sparkline(values: Sequence[float | None], blocks: str = _BLOCKS, top: float | None = None) -> str:
    """One character per value; a space where there is none.

    Args:
        values: Not negative.
        blocks: From lowest to highest.
        top: What the highest stands for; None for the largest value.
    """
    most = top if top is not None else max((value for value in values if value is not None), default=0.0)
    last = len(blocks) - 1
    return "".join(
        " " if value is None else blocks[min(last, round(value / most * last)) if most > 0 else 0] for value in values
    )


def _counts(counts: Mapping[str, int]) -> str:
    return "  ".join(f"{name} {count}" for name, count in counts.items() if count) or "none"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} tokens/s"


def _latency(name: str, latency: Latency) -> str:
    cells = (_seconds(value) for value in (latency.mean, latency.p50, latency.p95))
    return f"{name:<{_NAMES}}{''.join(f'{cell:>9}' for cell in cells)}"


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1000:.1f} ms" if value < 0.1 else f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"
