"""From flags to settings, and from settings to what the engine takes."""

from __future__ import annotations

import dataclasses
import difflib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inference_pio.config import Settings, load_settings, model_arguments
from inference_pio.interfaces import ConfigError, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from inference_pio.config import ResolvedSettings

_SETTING_KEYS = frozenset(Settings.__struct_fields__)
SAMPLING_SETTINGS = ("max_tokens", "temperature", "top_k", "top_p", "min_p", "seed")
_CHOOSING = ("temperature", "top_k", "top_p", "min_p")
_NOT_HERE = frozenset({"n", "logprobs", "prompt_logprobs"})  # one text is written, without candidates
SAMPLING_KEYS = frozenset(field.name for field in dataclasses.fields(SamplingParams)) - _NOT_HERE
"""Sampling parameters that can be set from the command line."""


@dataclass(frozen=True, slots=True)
class RunSettings:
    """All that was said about one run.

    Attributes:
        resolved: The settings, with their origins.
        sampling: Sampling parameters that are no settings, from ``--set`` and ``--stop``.
    """

    resolved: ResolvedSettings
    sampling: Mapping[str, object]

    @property
    def settings(self) -> Settings:
        """The settings that hold."""
        return self.resolved.settings


def resolve(flags: Mapping[str, object], assignments: Iterable[str] = (), stop: Iterable[str] = ()) -> RunSettings:
    """Settings from flags, environment and files; ``assignments`` are ``KEY=VALUE`` as in ``--set``.

    Raises:
        ConfigError: An unknown key, a value out of bounds, or something said twice.
    """
    chosen: dict[str, object] = dict(flags)
    sampling: dict[str, object] = {"stop": list(stop)} if stop else {}
    for assignment in assignments:
        key, value = parse_assignment(assignment)
        if key in chosen or key in sampling:
            raise ConfigError(f"flag --set {assignment}: {key} is given twice", hint="say it once")
        if key in _SETTING_KEYS:
            chosen[key] = value
        else:
            sampling[key] = parse_value(value)
    return RunSettings(load_settings(flags=chosen), sampling)


def said_on_the_command_line(run: RunSettings) -> list[str]:
    """Settings that flags or ``--set`` gave."""
    return [row.key for row in run.resolved.rows() if row.origin.startswith("flag")]


def parse_assignment(text: str) -> tuple[str, str]:
    """``KEY=VALUE`` in two.

    Raises:
        ConfigError: Not of that form, or the key is unknown.
    """
    key, separator, value = text.partition("=")
    key = key.strip().replace("-", "_")
    if not separator:
        raise ConfigError(f"flag --set: expected KEY=VALUE, got {text!r}", hint="such as --set temperature=0.7")
    known = _SETTING_KEYS | SAMPLING_KEYS
    if key not in known:
        nearest = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(sorted(known))}"
        raise ConfigError(f"flag --set {text}: unknown setting {key!r}", hint=hint)
    return key, value


def parse_value(text: str) -> object:
    """A value that may be JSON (numbers, lists, true) and is plain text otherwise."""
    try:
        value: object = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return text
    return value


def engine_arguments(run: RunSettings) -> dict[str, Any]:
    """Keyword arguments of ``LLM`` from the settings."""
    settings = run.settings
    # A command line has one conversation, so a cache for more is made only if somebody asked for it.
    sequences = 1 if run.resolved.origin("max_num_seqs") == "default" else settings.max_num_seqs
    return {**model_arguments(settings), "max_num_seqs": sequences}


def sampling_params(settings: Settings, extra: Mapping[str, object], recommended: SamplingParams) -> SamplingParams:
    """How to sample: what was said, over what the model's authors recommend, over greedy.

    A model without a recommendation is sampled at temperature 1 if any of top-k, top-p or min-p was given, and greedily
    otherwise.

    Raises:
        InvalidRequestError: A value of the wrong type or out of bounds.
    """
    said = {name: getattr(settings, name) for name in SAMPLING_SETTINGS if getattr(settings, name) is not None}
    said.update(extra)
    neutral = SamplingParams()
    silent = all(getattr(recommended, name) == getattr(neutral, name) for name in _CHOOSING)
    if silent and not said.keys() & set(_CHOOSING):
        said["temperature"] = 0.0
    return dataclasses.replace(recommended, **{"max_tokens": None, **said})
