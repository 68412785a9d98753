"""What the engine counts: plain counters, gauges and histograms, under vLLM's names with the prefix ``pio:``."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


@dataclass(slots=True)
class Counter:
    """A number that only grows, or one per value of a label.

    Attributes:
        name: Full name.
        help: What it counts.
        label: Name of the label, or None.
        values: By value of the label; under ``""`` without one.
    """

    name: str
    help: str
    label: str | None = None
    values: dict[str, float] = field(default_factory=dict)

    def add(self, amount: float = 1, label: str = "") -> None:
        """Count ``amount`` more."""
        self.values[label] = self.values.get(label, 0) + amount

    @property
    def total(self) -> float:
        """Over all values of the label."""
        return sum(self.values.values())

    def copy(self) -> Counter:
        """The same, not counting on."""
        return Counter(self.name, self.help, self.label, self.values.copy())


@dataclass(slots=True)
class Gauge:
    """A number that goes up and down.

    Attributes:
        name: Full name.
        help: What it measures.
        value: The latest value.
    """

    name: str
    help: str
    value: float = 0.0

    def copy(self) -> Gauge:
        """The same, not changing any more."""
        return Gauge(self.name, self.help, self.value)


@dataclass(slots=True)
class Histogram:
    """How often values fell into which interval.

    Attributes:
        name: Full name.
        help: What it measures.
        bounds: Upper bounds of the intervals, ascending, each included; one more interval has no bound.
        counts: Values per interval, ``len(bounds) + 1``; not cumulative.
        sum: Of all values.
    """

    name: str
    help: str
    bounds: Sequence[float]
    counts: list[int] = field(init=False)
    sum: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    @property
    def count(self) -> int:
        """Values in all."""
        return sum(self.counts)

    def observe(self, value: float, times: int = 1) -> None:
        """Note ``value``, as often as ``times`` says."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def copy(self) -> Histogram:
        """The same, not counting on."""
        twin = Histogram(self.name, self.help, self.bounds)
        twin.counts, twin.sum = self.counts.copy(), self.sum
        return twin


def _seconds(name: str, text: str) -> Histogram:
    return Histogram(f"pio:{name}", text, _SECONDS)


def _tokens(name: str, text: str) -> Histogram:
    return Histogram(f"pio:{name}", text, _TOKENS)


class EngineMetrics:
    """Everything that one engine counts, from its start. Changed by the thread that runs the engine."""

    def __init__(self) -> None:
        self.requests_running = Gauge("pio:num_requests_running", "Sequences that run.")
        self.requests_waiting = Gauge("pio:num_requests_waiting", "Sequences that wait.")
        self.kv_cache_usage = Gauge("pio:kv_cache_usage_perc", "Share of the pages that sequences own, 0 to 1.")
        self.prompt_tokens = Counter("pio:prompt_tokens_total", "Tokens of prompts that the model has read.")
        self.generation_tokens = Counter("pio:generation_tokens_total", "Tokens chosen.")
        self.preemptions = Counter("pio:num_preemptions_total", "Sequences that had to give their pages back.")
        self.requests_finished = Counter("pio:request_success_total", "Requests that ended.", "finished_reason")
        self.prefix_queries = Counter("pio:prefix_cache_queries_total", "Tokens looked up in the cache at admission.")
        self.prefix_hits = Counter("pio:prefix_cache_hits_total", "Tokens found there.")
        self.drafts = Counter("pio:spec_decode_num_drafts_total", "Times that tokens were drafted for a sequence.")
        self.draft_tokens = Counter("pio:spec_decode_num_draft_tokens_total", "Tokens drafted.")
        self.accepted_tokens = Counter("pio:spec_decode_num_accepted_tokens_total", "Drafted tokens that were right.")
        self.accepted_per_position = Counter(
            "pio:spec_decode_num_accepted_tokens_per_pos_total", "The same, by place in the draft.", "position"
        )
        self.time_to_first_token = _seconds("time_to_first_token_seconds", "From arrival to the first token.")
        self.inter_token_latency = _seconds("inter_token_latency_seconds", "Between tokens of one sequence.")
        self.request_latency = _seconds("e2e_request_latency_seconds", "From arrival to the last token.")
        self.queue_time = _seconds("request_queue_time_seconds", "From arrival to the first step.")
        self.prefill_time = _seconds("request_prefill_time_seconds", "From the first step to the first token.")
        self.decode_time = _seconds("request_decode_time_seconds", "From the first token to the last.")
        self.inference_time = _seconds("request_inference_time_seconds", "From the first step to the last token.")
        self.step_tokens = _tokens("iteration_tokens_total", "Tokens read by one step.")
        self.request_prompt_tokens = _tokens("request_prompt_tokens", "Tokens of a prompt.")
        self.request_generation_tokens = _tokens("request_generation_tokens", "Tokens chosen for a sequence.")
        self.request_n = _tokens("request_params_n", "Continuations asked for.")
        self.request_max_tokens = _tokens("request_params_max_tokens", "Bound on new tokens asked for.")

    def __iter__(self) -> Iterator[Counter | Gauge | Histogram]:
        """All of them, in the order above."""
        return iter(vars(self).values())

    def copy(self) -> EngineMetrics:
        """The same, not counting on; may be called from any thread."""
        twin = EngineMetrics()
        for name, metric in vars(self).items():
            setattr(twin, name, metric.copy())
        return twin
