"""From the name of a model to an engine that runs it: options checked, files opened, executors built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from inference_pio.core._checkpoint import open_checkpoint
from inference_pio.core._draft_model import DraftModelProposer
from inference_pio.core._drafting import Drafting
from inference_pio.core._engine import Engine
from inference_pio.core._executors import build_executor
from inference_pio.core._proposers import NgramProposer
from inference_pio.core._registry import Registry
from inference_pio.core._speculation import SpeculationControl
from inference_pio.interfaces import InvalidRequestError, ModelNotFoundError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from inference_pio.core._checkpoint import Checkpoint
    from inference_pio.core._executors import ModelExecutor
    from inference_pio.core._locate import LocatedModel
    from inference_pio.core._proposers import Proposer
    from inference_pio.core._registry import InstalledPlugin
    from inference_pio.core._scheduler import Policy
    from inference_pio.processing import Tokenizer

_CHOICES = {
    "executor": ("auto", "native", "torch"),
    "dtype": ("auto", "float32", "bfloat16", "float16", "int8"),
    "kv_cache": ("auto", "paged", "contiguous"),
    "kv_cache_dtype": ("auto", "float32", "bfloat16", "float16", "int8"),
    "scheduling_policy": ("fcfs", "priority"),
    "on_failure": ("continue", "stop"),
}
MAX_DRAFT = 64
"""Tokens drafted at most; nothing guesses so many in a row that more would pay."""
STEP_TOKENS = 512
"""Tokens of a step, unless asked for: as many as keep the processor busy; more would only make others wait longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How a model is loaded and run; the arguments of :class:`LLM` of the same names say what each means.

    Defaults are those of :class:`LLM` too, so that whoever has no say in an option need not state it.

    Raises:
        InvalidRequestError: A value that is not one of the choices, or out of bounds.
    """

    executor: str = "auto"
    dtype: str = "auto"
    device: str = "auto"
    threads: int | None = None
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int | None = None
    attention: str = "auto"
    kv_cache: str = "auto"
    kv_cache_dtype: str = "auto"
    kv_cache_bytes: int | None = None
    swap_bytes: int = 0
    enable_prefix_caching: bool | None = None
    scheduling_policy: Policy = "fcfs"
    speculative: str | Path | None = None
    num_speculative_tokens: int = 5
    deterministic: bool = False
    ignore_unknown_keys: bool = False
    packed_cache: Path | None = None
    packed_cache_bytes: int | None = None

    def __post_init__(self) -> None:
        check_choices(
            executor=self.executor,
            dtype=self.dtype,
            kv_cache=self.kv_cache,
            kv_cache_dtype=self.kv_cache_dtype,
            scheduling_policy=self.scheduling_policy,
        )
        check_positive(
            threads=self.threads,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            kv_cache_bytes=self.kv_cache_bytes,
            num_speculative_tokens=self.num_speculative_tokens,
        )
        if self.packed_cache_bytes != 0:
            check_positive(packed_cache_bytes=self.packed_cache_bytes)
        if self.num_speculative_tokens > MAX_DRAFT:
            raise InvalidRequestError(
                f"num_speculative_tokens must be at most {MAX_DRAFT}, got {self.num_speculative_tokens}"
            )
        if self.step_tokens < self.max_num_seqs:
            raise InvalidRequestError(
                f"max_num_batched_tokens {self.step_tokens} is below max_num_seqs {self.max_num_seqs}, and each "
                "sequence reads a token per step",
                hint="raise the one or lower the other",
            )

    @property
    def step_tokens(self) -> int:
        """``max_num_batched_tokens``, resolved."""
        asked = self.max_num_batched_tokens
        return max(STEP_TOKENS, self.max_num_seqs) if asked is None else asked


@dataclass(frozen=True, slots=True, kw_only=True)
class AssembledEngine:
    """An engine and what it was made from.

    Attributes:
        checkpoint: The opened model.
        tokenizer: The tokenizer that came with the weights, or None.
        executor: Computes the model.
        reason: Why that is not the native executor, where it might have been; else None.
        draft: Computes the draft model; None without one.
        engine: Runs requests.
    """

    checkpoint: Checkpoint
    tokenizer: Tokenizer | None
    executor: ModelExecutor
    reason: str | None
    draft: ModelExecutor | None
    engine: Engine


def assemble_engine(
    model: str | Path,
    options: EngineOptions,
    *,
    locate: Callable[..., LocatedModel],
    progress: Callable[[int, int], None] | None,
) -> AssembledEngine:
    """Find ``model``, load it and set up its engine.

    Args:
        model: As :class:`LLM` takes it.
        options: How to load and run it.
        locate: Finds a model's files: called with a model and the registry.
        progress: Called with bytes loaded and bytes in all.

    Raises:
        PioError: The model is not there, its files are not sound, no plugin serves them, or they do not fit.
    """
    registry = Registry.discover()
    checkpoint = open_checkpoint(locate(model, registry), registry, ignore_unknown_keys=options.ignore_unknown_keys)
    capabilities = checkpoint.installed.manifest.capabilities
    _check_capabilities(checkpoint.installed, options)
    # Before the weights of the model are read, for it may well not be there.
    draft = None
    if options.speculative is not None and options.speculative != "ngram":
        draft = _open_draft(options.speculative, registry, locate)
    tokenizer = checkpoint.tokenizer()
    executor, reason = build_executor(checkpoint, options, max_model_len=options.max_model_len, progress=progress)
    draft_executor = None
    if draft is not None:
        longest = min(executor.max_model_len, draft.shape.max_position)
        draft_executor, _ = build_executor(draft, options, max_model_len=longest, is_draft=True)
    engine = Engine(
        executor,
        tokenizer,
        vocab_size=checkpoint.shape.vocab_size,
        eos_token_ids=(*checkpoint.eos_token_ids, *(tokenizer.end_token_ids if tokenizer else ())),
        max_model_len=executor.max_model_len,
        max_num_seqs=options.max_num_seqs,
        max_step_tokens=options.step_tokens,
        chunked_prefill="chunked-prefill" in capabilities,
        logprobs="logprobs" in capabilities,
        embed="embed" in capabilities,
        prefix_caching="prefix-caching" in capabilities and options.enable_prefix_caching is not False,
        policy=options.scheduling_policy,
        drafting=_drafting(options, checkpoint, draft, draft_executor),
    )
    return AssembledEngine(
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        executor=executor,
        reason=reason,
        draft=draft_executor,
        engine=engine,
    )


def check_choices(**chosen: str) -> None:
    """Refuse a value that is not one of the choices of its option.

    Raises:
        InvalidRequestError: It is not.
    """
    for name, value in chosen.items():
        if value not in _CHOICES[name]:
            raise InvalidRequestError(f"unknown {name} {value!r}", hint=f"give {', '.join(_CHOICES[name])}")


def check_positive(**numbers: int | None) -> None:
    """Refuse a number that is not an integer of at least 1; None passes.

    Raises:
        InvalidRequestError: It is not.
    """
    for name, value in numbers.items():
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            raise InvalidRequestError(f"{name} must be an integer, got {value!r}")
        if value < 1:
            hint = "leave speculative out to draft nothing" if name == "num_speculative_tokens" else None
            raise InvalidRequestError(f"{name} must be at least 1, got {value}", hint=hint)


def _check_capabilities(installed: InstalledPlugin, options: EngineOptions) -> None:
    """What the conformance kit has not passed for a model is not done with it."""
    needed: Mapping[str, bool] = {
        "generate": True,
        "paged-kv": options.kv_cache == "paged",
        "prefix-caching": bool(options.enable_prefix_caching),
        "speculative-decoding": options.speculative is not None,
        "deterministic": options.deterministic,
    }
    for capability, wanted in needed.items():
        if wanted and capability not in installed.manifest.capabilities:
            raise UnsupportedError(
                f"{installed.manifest.distribution} {installed.version} does not declare the capability {capability!r}",
                hint="upgrade it, or choose kv_cache='contiguous'" if capability == "paged-kv" else "upgrade it",
            )


def _open_draft(speculative: str | Path, registry: Registry, locate: Callable[..., LocatedModel]) -> Checkpoint:
    try:
        located = locate(speculative, registry)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"speculative={str(speculative)!r}: {error.message}",
            hint=f"'ngram' needs no model; {error.hint or 'check the name'}",
        ) from error
    return open_checkpoint(located, registry)


def _drafting(
    options: EngineOptions, checkpoint: Checkpoint, draft: Checkpoint | None, executor: ModelExecutor | None
) -> Drafting | None:
    if options.speculative is None:
        return None
    proposer: Proposer = NgramProposer()
    if draft is not None and executor is not None:
        proposer = DraftModelProposer(
            executor,
            vocab_size=draft.shape.vocab_size,
            target_vocab_size=checkpoint.shape.vocab_size,
            max_length=executor.max_model_len,
            max_step_tokens=options.step_tokens,
        )
    control = SpeculationControl(options.num_speculative_tokens)
    return Drafting(proposer, control, max_step_tokens=options.step_tokens)
