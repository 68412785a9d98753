"""Forced tool calls: whatever the model would rather write, its parser reads calls with arguments of the schema."""

from __future__ import annotations

import json
import re

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from inference_pio.core import Engine
from inference_pio.core._host_sampler import HostSampler
from inference_pio.interfaces import (
    CacheGroup,
    FinishReason,
    InvalidRequestError,
    Request,
    SamplingParams,
    StructuredOutputs,
)
from inference_pio.processing import (
    TextDelta,
    after_reasoning,
    reasoning_parser,
    tokenizer_from_folder,
    tool_call_grammar,
    tool_call_parser,
)

PARSERS = ["hermes", "llama3-json"]
TEXTS = [
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bonn", "n": [1], "deep": {"a": null}}}\n</tool_call>',
    "<think>\nWell.\n</think>\n\nThe answer is true or false.",
]
MAX_TOKENS = 3000


class DiceExecutor:
    """A model that knows nothing: random logits, drawn more and more to what closes a text."""

    name = "dice"
    page_size = 64
    cache_groups = (CacheGroup(kind="full", num_pages=64),)

    def __init__(self, tokenizer) -> None:
        self.sampler = HostSampler()
        self.vocab_size = tokenizer.vocab_size
        self.rng = np.random.default_rng(0)
        self.closing = np.zeros(self.vocab_size, dtype=np.float32)
        for token_id in range(self.vocab_size):
            self.closing[token_id] = bool(set(tokenizer.token_bytes(token_id)) & set(b'"}]')) - 0.5
        self.closing[tokenizer.encode("</think>")] = 0.3  # less than a quote, or no string with it would ever end
        self.closing[list(tokenizer.end_token_ids)] = 2.0

    def step(self, batch):
        drawn = self.rng.normal(scale=2.0, size=(batch.logit_rows.size, self.vocab_size)).astype(np.float32)
        return drawn + self.closing * (batch.positions[batch.logit_rows] / 20).astype(np.float32)[:, None]

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Byte-level, with tags as tokens of their own that are no special tokens, as Qwen has them."""
    folder = tmp_path_factory.mktemp("tokenizer")
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|im_end|>", "<|python_tag|>"],
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS * 3, trainer)
    tags = ("<tool_call>", "</tool_call>", "<think>", "</think>")
    backend.add_tokens([AddedToken(tag, special=False) for tag in tags])
    backend.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return tokenizer_from_folder(folder)


@pytest.fixture(scope="module")
def write(tokenizer):
    """Has the dice write a text of some form."""
    executor = DiceExecutor(tokenizer)
    engine = Engine(
        executor,
        tokenizer,
        vocab_size=tokenizer.vocab_size,
        eos_token_ids=tokenizer.end_token_ids,
        max_model_len=MAX_TOKENS + 1,
        max_num_seqs=1,
        prefix_caching=False,
    )

    def run(form: StructuredOutputs, seed: int) -> str:
        executor.rng = np.random.default_rng(seed)
        params = SamplingParams(seed=seed, max_tokens=None, structured_outputs=form)
        engine.add(Request(request_id="a", prompt_token_ids=(0,), params=params))
        while engine.has_work:
            engine.step()
        output = engine.forget("a")
        assert output.outputs[0].finish_reason is FinishReason.STOP, output.error or output.outputs[0].text[:200]
        return output.outputs[0].text

    yield run
    engine.close()


def read(parser, text):
    """Content and calls, as the parser gives them to a client."""
    reader = tool_call_parser(parser)
    content, calls = "", []
    for delta in reader.push(text) + reader.finish():
        if isinstance(delta, TextDelta):
            content += delta.text
        elif delta.name is not None:
            calls.append([delta.name, ""])
        else:
            calls[delta.index][1] += delta.arguments
    return content, [(name, json.loads(arguments)) for name, arguments in calls]


def tool(name, schema, *, strict=True):
    return {"type": "function", "function": {"name": name, "parameters": schema, "strict": strict}}


def between(low, high):
    return st.tuples(st.integers(low, high), st.integers(0, 5))


def objects(values):
    names = st.text(st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=1, max_size=4)

    def make(properties, required):
        chosen = [name for name in properties if required]
        return {"type": "object", "properties": properties, "required": chosen, "additionalProperties": False}

    return st.builds(make, st.dictionaries(names, values, max_size=3), st.booleans())


SCALARS = st.one_of(
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"$ref": "#/$defs/word"}]),
    between(-99, 99).map(lambda bounds: {"type": "integer", "minimum": bounds[0], "maximum": sum(bounds)}),
    between(0, 3).map(lambda bounds: {"type": "string", "minLength": bounds[0], "maxLength": sum(bounds)}),
    st.lists(st.text(st.characters(max_codepoint=0xFFF), max_size=4) | st.integers(-9, 9), min_size=1, max_size=4).map(
        lambda values: {"enum": values}
    ),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.builds(lambda item, most: {"type": "array", "items": item, "maxItems": most}, inner, st.integers(0, 4))
        | objects(inner)
        | st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts})
    ),
    max_leaves=5,
)
PARAMETERS = objects(VALUES).map(lambda schema: {**schema, "$defs": {"word": {"enum": ["</tool_call>", 'a"b\\']}}})
NAMES = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1, max_size=12)
TOOLS = st.dictionaries(NAMES, PARAMETERS, min_size=1, max_size=4)


@pytest.mark.parametrize("parser", PARSERS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schemas=TOOLS, parallel=st.booleans(), named=st.booleans(), strict=st.booleans(), seed=st.integers(0, 999))
def test_forced_calls_are_read_back_and_valid(write, parser, schemas, parallel, named, strict, seed):
    """Of any tools: calls and nothing else, of tools that were offered, as many as may be, arguments of the schema."""
    choice = {"type": "function", "function": {"name": next(iter(schemas))}} if named else "required"
    tools = [tool(name, schema, strict=strict) for name, schema in schemas.items()]
    form = tool_call_grammar(parser, tools, tool_choice=choice, parallel_tool_calls=parallel)
    content, calls = read(parser, write(form, seed))
    assert not content
    assert calls
    assert len(calls) == 1 or (parallel and not named)
    for name, arguments in calls:
        assert not named or name == next(iter(schemas))
        jsonschema.validate(arguments, schemas[name])


@pytest.mark.parametrize("parser", PARSERS)
def test_a_call_may_follow_another(write, parser):
    """Where calls may be parallel, several come, and all tools are within reach."""
    tools = [tool("a", None), tool("b", {"properties": {"x": {"type": "boolean"}}})]
    found = [read(parser, write(tool_call_grammar(parser, tools), seed))[1] for seed in range(30)]
    assert max(map(len, found)) > 1
    assert {name for calls in found for name, _ in calls} == {"a", "b"}


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("parser", PARSERS)
def test_free_choice_gives_text_or_valid_calls(write, parser, parallel):
    """The model decides; once it begins a call, it must write a valid one."""
    schema = {"type": "object", "properties": {"x": {"const": 1}}, "required": ["x"], "additionalProperties": False}
    form = tool_call_grammar(parser, [tool("f", schema)], tool_choice="auto", parallel_tool_calls=parallel)
    texts = [write(form, seed) for seed in range(40)]
    answers = [read(parser, text) for text in texts]
    assert any(content and not calls for content, calls in answers)
    for (content, calls), text in zip(answers, texts, strict=True):
        assert all(call == ("f", {"x": 1}) for call in calls), text
        assert parallel or len(calls) <= 1
        assert parser != "hermes" or "<tool_call>" not in content


def test_begun_calls_must_be_finished(write):
    """After the opening tag no text goes on but a call."""
    form = tool_call_grammar("hermes", [tool("f", None)], tool_choice="auto", parallel_tool_calls=False)
    texts = [text for seed in range(100) if "<tool_call>" in (text := write(form, seed))]
    assert texts
    assert all(read("hermes", text)[1] for text in texts)


@pytest.mark.parametrize(("prompt", "opened"), [("", False), ("<|im_start|>assistant\n<think>\n", True)])
def test_reasoning_may_come_before_calls(write, prompt, opened):
    """Its parser takes it off; what is left are calls. A prompt that opened it has it closed."""
    form = tool_call_grammar("hermes", [tool("f", None)], reasoning_parser="think", prompt=prompt)
    seen = set()
    for seed in range(40):
        text = write(form, seed)
        parser = reasoning_parser("think", prompt=prompt)
        first, last = parser.push(text), parser.finish()
        seen.add("</think>" in text)
        assert read("hermes", first.content + last.content)[1], text
    assert seen == ({True} if opened else {True, False})


FORMS = [
    (StructuredOutputs(json={"items": {"const": "</think>"}, "type": "array"}), r'\[\s*("</think>"[,\s]*)*\]'),
    (StructuredOutputs(json='{"const": 3}'), "3"),
    (StructuredOutputs(regex=r"a/b\/[cd]\n"), "a/b/[cd]\n"),
    (StructuredOutputs(choice=("yes", 'n"o')), 'yes|n"o'),
    (StructuredOutputs(grammar='start: "(" start? ")"'), r"\(+\)+"),
]


@pytest.mark.parametrize(("form", "pattern"), FORMS, ids=lambda value: str(value)[:30])
def test_any_form_may_follow_reasoning(write, form, pattern):
    """What the parser leaves has the form."""
    for seed in range(10):
        parser = reasoning_parser("think", prompt="<think>")
        text = write(after_reasoning(form, "think", prompt="<think>"), seed)
        first, last = parser.push(text), parser.finish()
        assert re.fullmatch(pattern, first.content + last.content), text


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"properties": {"a": {"type": "strin"}}}, "Invalid type: strin"),
        ({"properties": {"a": {"uniqueItems": True}}}, "uniqueItems"),
        ({"properties": {"a": {"$ref": "#/$defs/none"}}}, "none"),
        ({"properties": json.loads('{"a":{"items":' * 30 + "{}" + "}}" * 30)}, "nested more than 32 deep"),
        ({"description": "x" * 70_000}, "the limit is 65536"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_schemas_that_cannot_be_enforced_are_refused(write, schema, message):
    """Where the request is added, with the reason."""
    with pytest.raises(InvalidRequestError, match=message):
        write(tool_call_grammar("hermes", [tool("f", schema)]), 0)


def test_schemas_that_are_not_strict_are_enforced_as_far_as_they_can_be(write):
    """A keyword that nobody knows how to enforce costs nothing but its own effect."""
    schema = {"properties": {"a": {"type": "array", "items": {"type": "null"}, "uniqueItems": True}}, "required": ["a"]}
    [(_, arguments)] = read(
        "hermes",
        write(tool_call_grammar("hermes", [tool("f", schema, strict=False)], parallel_tool_calls=False), 1),
    )[1]
    assert set(arguments["a"]) <= {None}
