"""From a request's parameters to the core's, within the server's bounds."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from inference_pio.interfaces import SamplingParams, StructuredOutputs
from inference_pio.serve._errors import ApiError, invalid
from inference_pio.serve._json import encode
from inference_pio.serve._openai.sampling_fields import JsonObjectFormat, JsonSchemaFormat

if TYPE_CHECKING:
    from inference_pio.serve._models.served import ServedModel
    from inference_pio.serve._openai.sampling_fields import FormRequest, SamplingFields
    from inference_pio.serve._settings import Bounds

_PASSED = (
    "n", "temperature", "top_p", "top_k", "min_p", "typical_p", "min_tokens", "stop", "stop_token_ids", "seed",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "bad_words", "ignore_eos",
    "skip_special_tokens", "include_stop_str_in_output",
)  # fmt: skip
_ANY_OBJECT = {"type": "object"}


def sampling_params(
    fields: SamplingFields,
    model: ServedModel,
    bounds: Bounds,
    *,
    max_tokens: int | None,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
    structured: StructuredOutputs | None = None,
) -> SamplingParams:
    """What the request says, over what the model's authors recommend.

    Args:
        fields: The request.
        model: What continues it.
        bounds: The server's.
        max_tokens: New tokens at most; None for all that fit.
        logprobs: As the core's.
        prompt_logprobs: As the core's.
        structured: A form that the text must have.

    Raises:
        ApiError: A value beyond the server's bounds.
        InvalidRequestError: A value beyond the core's.
    """
    _check_bounds(fields, bounds)
    room = model.llm.max_model_len
    if max_tokens is not None and max_tokens > room:
        raise invalid(f"max_tokens {max_tokens} is above the model's context of {room} tokens", "max_tokens")
    given = {name: value for name in _PASSED if (value := getattr(fields, name)) is not None}
    return replace(
        model.llm.get_default_sampling_params(),
        **given,
        max_tokens=max_tokens,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        structured_outputs=structured,
    )


def structured_outputs(fields: SamplingFields, bounds: Bounds) -> StructuredOutputs | None:
    """The form that a request asks for, in either spelling.

    Raises:
        ApiError: In both, or beyond the bounds.
        InvalidRequestError: None or several forms in one.
    """
    asked = fields.structured_outputs
    formats = fields.response_format
    if isinstance(formats, JsonObjectFormat | JsonSchemaFormat):
        if asked is not None:
            raise invalid("response_format and structured_outputs exclude each other", "structured_outputs")
        schema = formats.json_schema.schema if isinstance(formats, JsonSchemaFormat) else None
        schema = _ANY_OBJECT if schema is None else schema
        check_schema(schema, bounds, "response_format")
        return StructuredOutputs(json=schema)
    return None if asked is None else _form(asked, bounds)


def check_schema(schema: object, bounds: Bounds, param: str) -> None:
    """Refuse what is too large or too deep.

    Raises:
        ApiError: It is.
    """
    size = len(encode(schema))
    if size > bounds.schema_bytes:
        raise invalid(f"the JSON schema has {size} bytes; the limit is {bounds.schema_bytes}", param)
    if _depth(schema) > bounds.schema_depth:
        raise invalid(f"the JSON schema is nested more than {bounds.schema_depth} deep", param)


def _form(asked: FormRequest, bounds: Bounds) -> StructuredOutputs:
    if asked.json is not None:
        check_schema(asked.json, bounds, "structured_outputs")
    for text in (asked.regex, asked.grammar, *(asked.choice or ())):
        if text is not None and len(text) > bounds.grammar_chars:
            raise invalid(
                f"a form has {len(text)} characters; the limit is {bounds.grammar_chars}", "structured_outputs"
            )
    return StructuredOutputs(json=asked.json, regex=asked.regex, choice=asked.choice, grammar=asked.grammar)


def _check_bounds(fields: SamplingFields, bounds: Bounds) -> None:
    if fields.n is not None and not 1 <= fields.n <= bounds.n:
        raise invalid(f"n must be between 1 and {bounds.n}, got {fields.n}", "n")
    if fields.logit_bias is not None and len(fields.logit_bias) > bounds.logit_bias:
        raise invalid(
            f"logit_bias has {len(fields.logit_bias)} entries; the limit is {bounds.logit_bias}", "logit_bias"
        )
    stops = [fields.stop] if isinstance(fields.stop, str) else fields.stop or []
    for one in stops:
        if len(one) > bounds.stop_chars:
            raise invalid(f"a stop string has {len(one)} characters; the limit is {bounds.stop_chars}", "stop")
    if fields.stream_options is not None and not fields.stream:
        raise ApiError(400, "stream_options are for streams: set 'stream' to true", param="stream_options")


def _depth(value: Any) -> int:  # noqa: ANN401 - JSON, whatever it is
    """How deep ``value`` is nested; the decoder has bounded it already."""
    deepest, pending = 0, [(value, 0)]
    while pending:
        item, depth = pending.pop()
        deepest = max(deepest, depth)
        if isinstance(item, dict):
            pending += [(inner, depth + 1) for inner in item.values()]
        elif isinstance(item, list):
            pending += [(inner, depth + 1) for inner in item]
    return deepest
