"""Forms of tool calls: which tools and choices, what is refused. That texts of a form are read back, the core tests."""

import json
import re

import pytest

from inference_pio.interfaces import InvalidRequestError, StructuredOutputs
from inference_pio.processing import after_reasoning, tool_call_grammar

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
NOW = {"type": "function", "name": "now"}
STRICT = {"type": "function", "function": {**WEATHER["function"], "name": "strict", "strict": True}}


def schemas(grammar):
    """The schema of each tool in a grammar."""
    return [json.loads(text) for text in re.findall(r"^arguments_\d+: %json (.*)$", grammar, re.MULTILINE)]


def test_required_offers_every_tool():
    """Nested and flat definitions, in their order; one without parameters takes no arguments."""
    grammar = tool_call_grammar("hermes", [WEATHER, NOW]).grammar
    first, second = schemas(grammar)
    assert first.pop("x-guidance")["lenient"] is True
    assert first == WEATHER["function"]["parameters"]
    assert second["properties"] == {}
    assert second["additionalProperties"] is False
    assert r'"{\"name\": \"get_weather\", \"arguments\": "' in grammar
    assert 'call: "\\n" (call_0 | call_1)' in grammar


@pytest.mark.parametrize(
    "choice",
    [{"type": "function", "function": {"name": "now"}}, {"type": "function", "name": "now"}],
)
def test_a_named_function_is_the_only_one(choice):
    """And is called once, parallel calls or not."""
    grammar = tool_call_grammar("llama3-json", [WEATHER, NOW], tool_choice=choice).grammar
    assert len(schemas(grammar)) == 1
    assert "get_weather" not in grammar
    assert "{0," not in grammar
    assert r"\"parameters\": " in grammar


def test_parallel_calls_can_be_forbidden():
    """One call and no more; else up to 64."""
    assert " call){0,63}" in tool_call_grammar("hermes", [NOW]).grammar
    assert "{0," not in tool_call_grammar("hermes", [NOW], parallel_tool_calls=False).grammar


@pytest.mark.parametrize(
    ("tools", "options", "enforced"),
    [
        ([WEATHER], {"tool_choice": "none"}, False),
        ([STRICT], {"tool_choice": "none"}, False),
        ([WEATHER], {"tool_choice": "auto"}, False),
        ([WEATHER, STRICT], {"tool_choice": "auto"}, True),
        ([WEATHER], {"tool_choice": "auto", "parallel_tool_calls": False}, True),
    ],
)
def test_there_is_a_form_only_where_something_is_enforced(tools, options, enforced):
    """Free text costs no masks."""
    assert (tool_call_grammar("hermes", tools, **options) is not None) == enforced


def test_strict_schemas_are_taken_to_the_letter():
    """Others leave out what cannot be enforced; what a schema says of its own reading is overruled."""
    own = {"type": "function", "function": {**STRICT["function"], "parameters": {"x-guidance": {"lenient": True}}}}
    assert schemas(tool_call_grammar("hermes", [own]).grammar)[0]["x-guidance"]["lenient"] is False


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ([], "non-empty list"),
        ("tools", "non-empty list"),
        ([NOW] * 2, "two tools are named 'now'"),
        ([{"type": "function", "name": f"f{index}"} for index in range(129)], "at most 128 definitions, got 129"),
        ([{"type": "web_search"}], r"tools\[0\] must be a definition of type 'function'"),
        (["f"], r"tools\[0\] must be a definition"),
        ([{"type": "function"}], "1 to 128 printable characters, got None"),
        ([{"type": "function", "name": "a\nb"}], "printable"),
        ([{"type": "function", "name": "\ud800"}], "printable"),
        ([{"type": "function", "name": "f" * 129}], "1 to 128"),
        ([{"type": "function", "name": "f", "strict": "yes"}], "strict of tool 'f' must be true or false"),
        ([{"type": "function", "name": "f", "parameters": []}], "must be a JSON schema"),
        ([{"type": "function", "name": "f", "parameters": {"type": "array"}}], "must describe an object, got type"),
        ([{"type": "function", "name": "f", "parameters": {"const": object()}}], "are not JSON"),
        ([{"type": "function", "name": "f", "parameters": {"const": float("nan")}}], "are not JSON"),
    ],
    ids=lambda value: str(value)[:30].encode("ascii", "replace").decode(),
)
def test_malformed_tools_are_refused(tools, message):
    """With the place and the value."""
    with pytest.raises(InvalidRequestError, match=message):
        tool_call_grammar("hermes", tools)


@pytest.mark.parametrize("choice", ["always", 3, {}, {"type": "function"}, {"function": {"name": 3}}])
def test_unknown_choices_are_refused(choice):
    """Only OpenAI's are known."""
    with pytest.raises(InvalidRequestError, match="tool_choice must be one of none, auto, required or name a function"):
        tool_call_grammar("hermes", [NOW], tool_choice=choice)


def test_a_choice_must_be_among_the_tools():
    """The message lists them."""
    with pytest.raises(InvalidRequestError, match=r"names 'f', which is none of the tools \(there are now"):
        tool_call_grammar("hermes", [NOW], tool_choice={"type": "function", "name": "f"})


def test_unknown_parsers_are_refused():
    """Of calls, and of reasoning."""
    with pytest.raises(InvalidRequestError, match="no tool call parser is named 'xml'"):
        tool_call_grammar("xml", [NOW])
    with pytest.raises(InvalidRequestError, match="no reasoning parser is named 'r'"):
        tool_call_grammar("hermes", [NOW], reasoning_parser="r")
    with pytest.raises(InvalidRequestError, match="no reasoning parser is named 'r'"):
        after_reasoning(StructuredOutputs(regex="a"), "r")


@pytest.mark.parametrize(
    ("schema", "message"),
    [("{", "cannot be used"), ("[1]", "must be an object"), ({"const": object()}, "cannot be used")],
)
def test_reasoning_does_not_hide_malformed_schemas(schema, message):
    """They are refused where the form is made."""
    with pytest.raises(InvalidRequestError, match=message):
        after_reasoning(StructuredOutputs(json=schema), "think")
