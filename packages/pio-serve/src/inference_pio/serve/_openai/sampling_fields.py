"""Parameters that chat and plain completions share: OpenAI's names, and vLLM's for what OpenAI does not have."""

from typing import Any, Literal

import msgspec

from inference_pio.serve._openai.bounded import (
    AtLeastOne,
    BadWords,
    Bias,
    Choices,
    MinP,
    NotNegative,
    Penalty,
    RepetitionPenalty,
    Seed,
    StopStrings,
    Temperature,
    Text,
    TopK,
    TopP,
)


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """How to stream.

    Attributes:
        include_usage: End with a chunk that holds the usage and no choice.
        include_obfuscation: Accepted; nothing is obfuscated.
    """

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class FormRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A form that the text must have; exactly one is given.

    Attributes:
        json: A JSON schema.
        regex: A regular expression.
        choice: Texts of which it is one.
        grammar: A grammar in Lark's spelling.
    """

    json: dict[str, Any] | str | None = None
    regex: Text | None = None
    choice: Choices | None = None
    grammar: Text | None = None


class TextFormat(msgspec.Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    """Any text."""


class JsonObjectFormat(msgspec.Struct, tag_field="type", tag="json_object", forbid_unknown_fields=True):
    """Any JSON object."""


class NamedSchema(msgspec.Struct, forbid_unknown_fields=True):
    """A JSON schema with a name.

    Attributes:
        name: What it is called.
        schema: The schema; without one, any JSON object.
        description: What it is for.
        strict: Accepted; every schema is followed strictly.
    """

    name: str
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(msgspec.Struct, tag_field="type", tag="json_schema", forbid_unknown_fields=True):
    """JSON that follows a schema.

    Attributes:
        json_schema: The schema.
    """

    json_schema: NamedSchema


class SamplingFields(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How to continue; null is as if the parameter were left out.

    Attributes:
        model: Which model; may be left out where there is one.
        n: Continuations of each prompt.
        temperature: Divides the logits; 0 takes the likeliest token.
        top_p: Keep the smallest set of tokens with this probability.
        top_k: Keep the k likeliest tokens; 0 or -1 keeps all.
        min_p: Keep tokens at least this likely relative to the likeliest.
        typical_p: Keep the locally typical set of this probability.
        max_tokens: New tokens at most.
        min_tokens: New tokens before the text may end.
        stop: Strings that end the text.
        stop_token_ids: Tokens that end the text.
        seed: Makes the text repeatable.
        presence_penalty: Against tokens that are in the text already.
        frequency_penalty: The same, by how often.
        repetition_penalty: Divides positive logits of tokens in prompt and text.
        logit_bias: Added to logits, by token id.
        bad_words: Texts that must not come.
        ignore_eos: Go on after the model's end tokens.
        skip_special_tokens: Leave special tokens out of the text.
        include_stop_str_in_output: Keep the stop string in the text.
        structured_outputs: A form that the text must have.
        response_format: The same, in OpenAI's terms.
        stream: Send the text as it comes.
        stream_options: How.
        user: Accepted without effect, as the following.
        metadata: Accepted without effect.
        store: Accepted without effect: nothing is stored.
        service_tier: Accepted without effect.
        safety_identifier: Accepted without effect.
        prompt_cache_key: Accepted without effect: prompts are shared in the cache by what they hold.
        prompt_cache_retention: Accepted without effect.
    """

    model: str | None = None
    n: AtLeastOne | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    typical_p: TopP | None = None
    max_tokens: NotNegative | None = None
    min_tokens: NotNegative | None = None
    stop: Text | StopStrings | None = None
    stop_token_ids: list[NotNegative] | None = None
    seed: Seed | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: RepetitionPenalty | None = None
    logit_bias: dict[str, Bias] | None = None
    bad_words: BadWords | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    structured_outputs: FormRequest | None = None
    response_format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)
