"""What two readings of a server's metrics say together: rates, latencies, shares."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inference_pio.serve._scrape import Scrape


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Of some observations, in seconds; None where there were none.

    Attributes:
        mean: Their mean.
        p50: The median, as far as the intervals tell.
        p95: What 95 % are below, likewise.
    """

    mean: float | None
    p50: float | None
    p95: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """A server at one moment, all models together.

    Attributes:
        models: Their names.
        running: Sequences that run.
        waiting: Sequences that wait.
        generated_per_s: Tokens chosen per second since the last reading; None at the first.
        read_per_s: Tokens of prompts read per second, likewise.
        kv_cache_usage: Share of the pages in use, 0 to 1, of the model that uses most of its own.
        prefix_hit_share: Share of prompts' tokens that were found in the cache, since the server's start.
        preemptions: Sequences that had to give their pages back, since the server's start.
        finished: Requests that ended since the server's start, by reason.
        errors: Replies with a status of 400 and above since the server's start, by status.
        first_token: From arrival to the first token, over the window.
        between_tokens: Between tokens, over the window.
        request: From arrival to the last token, over the window.
    """

    models: list[str]
    running: int
    waiting: int
    generated_per_s: float | None
    read_per_s: float | None
    kv_cache_usage: float
    prefix_hit_share: float | None
    preemptions: int
    finished: dict[str, int]
    errors: dict[str, int]
    first_token: Latency
    between_tokens: Latency
    request: Latency

    def as_object(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def figures(now: Scrape, last: Scrape | None, oldest: Scrape | None, *, seconds: float) -> Figures:
    """What the readings say.

    Args:
        now: The newest.
        last: The one before, which rates count from; None if there is none.
        oldest: The one that latencies count from; None counts from the server's start.
        seconds: Between ``last`` and ``now``.
    """

    def per_second(name: str) -> float | None:
        if last is None or seconds <= 0:
            return None
        more = now.total(name) - last.total(name)
        return more / seconds if more >= 0 else None  # fewer than before: the server was started again

    def latency(name: str) -> Latency:
        histogram = now.histogram(name)
        if oldest is not None:
            histogram = histogram.since(oldest.histogram(name))
        return Latency(mean=histogram.mean, p50=histogram.quantile(0.5), p95=histogram.quantile(0.95))

    queries = now.total("pio:prefix_cache_queries_total")

    def counts(name: str, label: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for labels, value in now.samples.get(name, ()):
            found[labels.get(label, "")] = found.get(labels.get(label, ""), 0) + int(value)
        return found

    return Figures(
        models=now.models,
        running=int(now.total("pio:num_requests_running")),
        waiting=int(now.total("pio:num_requests_waiting")),
        generated_per_s=per_second("pio:generation_tokens_total"),
        read_per_s=per_second("pio:prompt_tokens_total"),
        kv_cache_usage=max(now.values("pio:kv_cache_usage_perc"), default=0.0),
        prefix_hit_share=now.total("pio:prefix_cache_hits_total") / queries if queries else None,
        preemptions=int(now.total("pio:num_preemptions_total")),
        finished=counts("pio:request_success_total", "finished_reason"),
        errors=counts("pio:http_error_replies_total", "code"),
        first_token=latency("pio:time_to_first_token_seconds"),
        between_tokens=latency("pio:inter_token_latency_seconds"),
        request=latency("pio:e2e_request_latency_seconds"),
    )
