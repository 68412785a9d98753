"""Parameters of one request, checked once, where they are made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import TYPE_CHECKING, Literal

from inference_pio.interfaces._errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_N = 128
MAX_BAD_WORDS = 256
MAX_CHOICES = 1024

_POOLINGS = ("mean", "last")


@dataclass(frozen=True, kw_only=True)
class StructuredOutputs:
    """A form that the text must have. Exactly one attribute is given.

    Attributes:
        json: A JSON schema, as text or as a mapping; ``{}`` allows any JSON object or value.
        regex: A regular expression that the whole text matches.
        choice: Texts of which it is one.
        grammar: A context-free grammar in EBNF (Lark's spelling).

    Raises:
        InvalidRequestError: None or several are given, or one has the wrong type. Whether a schema or grammar can be
            fulfilled is found when the request is added.
    """

    json: str | Mapping[str, object] | None = field(default=None, hash=False)
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("json", "regex", "choice", "grammar") if getattr(self, name) is not None]
        if len(given) != 1:
            raise InvalidRequestError(
                f"structured outputs need exactly one of json, regex, choice and grammar, got {given or 'none'}"
            )
        if self.json is not None and not isinstance(self.json, str | Mapping):
            raise InvalidRequestError(f"json must be a schema as text or as a mapping, got {self.json!r}")
        for name in ("regex", "grammar"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise InvalidRequestError(f"{name} must be a non-empty string, got {value!r}")
        if self.choice is not None:
            object.__setattr__(self, "choice", _strings("choice", self.choice, MAX_CHOICES))


@dataclass(frozen=True, kw_only=True)
class BeamSearchParams:
    """How to search for the most likely continuations; names follow vLLM's and transformers' beam search.

    Attributes:
        beam_width: Continuations kept at each step.
        max_tokens: Bound on new tokens.
        length_penalty: A finished continuation of ``t`` new tokens scores its log-probability over ``t`` to this power.
        ignore_eos: Go on after the model's end tokens.

    Raises:
        InvalidRequestError: A value of the wrong type or out of bounds.
    """

    beam_width: int
    max_tokens: int = 16
    length_penalty: float = 1.0
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _integer("beam_width", self.beam_width, 1, MAX_N)
        _integer("max_tokens", self.max_tokens, 1, 2**31)
        _number("length_penalty", self.length_penalty, -10.0, 10.0)
        if not isinstance(self.ignore_eos, bool):
            raise InvalidRequestError(f"ignore_eos must be True or False, got {self.ignore_eos!r}")


@dataclass(frozen=True, kw_only=True)
class PoolingParams:
    """How the hidden states of a prompt become one vector, its embedding; nothing is generated.

    Attributes:
        pooling: The ``"mean"`` of the hidden states of all tokens, or that of the ``"last"`` one, which has seen the
            others.
        normalize: Divide by the Euclidean norm, so that dot products are cosines.

    Raises:
        InvalidRequestError: A value of the wrong type, or another pooling.
    """

    pooling: Literal["mean", "last"] = "mean"
    normalize: bool = True

    def __post_init__(self) -> None:
        if self.pooling not in _POOLINGS:
            raise InvalidRequestError(f"pooling must be 'mean' or 'last', got {self.pooling!r}")
        if not isinstance(self.normalize, bool):
            raise InvalidRequestError(f"normalize must be True or False, got {self.normalize!r}")


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to continue a prompt; names and meanings follow vLLM's offline API.

    The order of operations is: logit bias, repetition, presence and frequency penalties, bad words, structure,
    temperature, top-k, typical, top-p, min-p, draw. ``temperature`` 0 takes the most likely token.

    Attributes:
        n: Continuations per prompt.
        best_of: Continuations generated, of which the ``n`` with the highest log-probability come back; None is ``n``.
        temperature: Divides the logits; 0 is greedy.
        top_k: Keep the k most likely tokens; 0 or -1 keeps all.
        top_p: Keep the smallest set of tokens whose probability reaches this, in (0, 1].
        min_p: Keep tokens at least this likely relative to the most likely one, in [0, 1].
        typical_p: Keep the locally typical set of this probability (Meister et al. 2023, arXiv:2202.00666), in (0, 1].
        max_tokens: Bound on new tokens; None goes on to the end of the context.
        min_tokens: New tokens before an end or stop token may be chosen.
        stop: Strings that end the text; they are not part of it.
        stop_token_ids: Tokens that end the text.
        seed: Seed of this request's own generator; None draws one.
        logprobs: Report this many of the most likely tokens per position, and the chosen one; None reports nothing.
        prompt_logprobs: The same for the prompt's positions.
        repetition_penalty: Divides positive and multiplies negative logits of tokens in prompt and text
            (Keskar et al. 2019, arXiv:1909.05858), in [0.01, 100]; 1 is neutral.
        presence_penalty: Subtracted from the logits of tokens already in the text, in [-2, 2].
        frequency_penalty: Subtracted once per occurrence in the text, in [-2, 2].
        logit_bias: Added to the logits of tokens, by token id, in [-100, 100].
        bad_words: Texts that must not come: the token that would complete one is forbidden.
        structured_outputs: A form that the text must have.
        ignore_eos: Go on after the model's end tokens.
        skip_special_tokens: Leave special tokens out of the text.
        include_stop_str_in_output: Keep the stop string at the end of the text.

    Raises:
        InvalidRequestError: A value of the wrong type or out of bounds.
    """

    n: int = 1
    best_of: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = field(default=None, hash=False)
    bad_words: Sequence[str] | None = None
    structured_outputs: StructuredOutputs | None = None
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        _integer("n", self.n, 1, MAX_N)
        if self.best_of is not None:
            _integer("best_of", self.best_of, self.n, MAX_N)
        _number("temperature", self.temperature, 0.0, 100.0)
        _integer("top_k", self.top_k, -1, 2**31)
        _number("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("typical_p", self.typical_p, 0.0, 1.0, open_low=True)
        if self.max_tokens is not None:
            _integer("max_tokens", self.max_tokens, 1, 2**31)
        _integer("min_tokens", self.min_tokens, 0, 2**31 if self.max_tokens is None else self.max_tokens)
        if self.seed is not None:
            _integer("seed", self.seed, -(2**63), 2**64 - 1)
        if self.logprobs is not None:
            _integer("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if self.prompt_logprobs is not None:
            _integer("prompt_logprobs", self.prompt_logprobs, 0, MAX_LOGPROBS)
        _number("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        _number("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _number("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        for name in ("ignore_eos", "skip_special_tokens", "include_stop_str_in_output"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidRequestError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if self.structured_outputs is not None and not isinstance(self.structured_outputs, StructuredOutputs):
            raise InvalidRequestError(f"structured_outputs must be StructuredOutputs, got {self.structured_outputs!r}")
        if self.bad_words is not None:
            object.__setattr__(self, "bad_words", _strings("bad_words", self.bad_words, MAX_BAD_WORDS))
        object.__setattr__(self, "stop", _stop_strings(self.stop))
        object.__setattr__(self, "stop_token_ids", _token_ids(self.stop_token_ids))
        object.__setattr__(self, "logit_bias", _logit_bias(self.logit_bias))

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """``stop``, always as a tuple."""
        return _stop_strings(self.stop)

    @property
    def num_sequences(self) -> int:
        """Continuations that are generated: ``best_of``, resolved."""
        return self.n if self.best_of is None else self.best_of

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature == 0.0


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _integer(name: str, value: object, low: int, high: int) -> None:
    if not _is_integer(value):
        raise InvalidRequestError(f"{name} must be an integer, got {value!r}")
    if not low <= int(value) <= high:  # type: ignore[call-overload]  # just checked
        raise InvalidRequestError(f"{name} must be between {low} and {high}, got {value!r}")


def _number(name: str, value: object, low: float, high: float, *, open_low: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InvalidRequestError(f"{name} must be a number, got {value!r}")
    number = float(value)
    if not math.isfinite(number) or not low <= number <= high or (open_low and number == low):
        bounds = f"{'above' if open_low else 'at least'} {low:g} and at most {high:g}"
        raise InvalidRequestError(f"{name} must be {bounds}, got {value!r}")


def _strings(name: str, value: object, most: int) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not value or not all(isinstance(item, str) and item for item in value):
        raise InvalidRequestError(f"{name} must be a list of non-empty strings, got {value!r}")
    if len(value) > most:
        raise InvalidRequestError(f"{name} must have at most {most} entries, got {len(value)}")
    return tuple(value)


def _stop_strings(stop: object) -> tuple[str, ...]:
    if stop is None:
        return ()
    strings = (stop,) if isinstance(stop, str) else stop
    if not isinstance(strings, list | tuple) or not all(isinstance(item, str) for item in strings):
        raise InvalidRequestError(f"stop must be a string or a list of strings, got {stop!r}")
    if any(not item for item in strings):
        raise InvalidRequestError("stop must not contain an empty string")
    if len(strings) > MAX_STOP_STRINGS:
        raise InvalidRequestError(f"stop must have at most {MAX_STOP_STRINGS} strings, got {len(strings)}")
    return tuple(strings)


def _token_ids(ids: object) -> tuple[int, ...]:
    if ids is None:
        return ()
    if not isinstance(ids, list | tuple) or not all(_is_integer(item) and int(item) >= 0 for item in ids):
        raise InvalidRequestError(f"stop_token_ids must be a list of non-negative integers, got {ids!r}")
    return tuple(int(item) for item in ids)


def _logit_bias(bias: object) -> dict[int, float] | None:
    if bias is None:
        return None
    if not isinstance(bias, Mapping):
        raise InvalidRequestError(f"logit_bias must map token ids to numbers, got {bias!r}")
    checked: dict[int, float] = {}
    for key, value in bias.items():
        # JSON objects have strings as keys.
        if not (_is_integer(key) and int(key) >= 0) and not (isinstance(key, str) and key.isdecimal()):
            raise InvalidRequestError(f"logit_bias must have non-negative token ids as keys, got {key!r}")
        token_id = int(key)
        _number(f"logit_bias[{token_id}]", value, -100.0, 100.0)
        checked[token_id] = float(value)
    return checked
