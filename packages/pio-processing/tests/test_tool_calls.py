"""Tool calls come out of the text as they were written, however it is cut."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_pio.interfaces import InvalidRequestError
from inference_pio.processing import TextDelta, ToolCallDelta, tool_call_parser
from inference_pio.processing._json_scanner import MAX_DEPTH, JsonScanner

CALL = '{"name": "get_weather", "arguments": {"city": "Köln <b>", "days": [1, 2.5e3, null]}}'
ARGUMENTS = '{"city": "Köln <b>", "days": [1, 2.5e3, null]}'
WEATHER = ("get_weather", ARGUMENTS)


def parse(name, pieces):
    """Content, and name and arguments of each call; checks the order of the pieces."""
    parser = tool_call_parser(name)
    deltas = [delta for piece in pieces for delta in parser.push(piece)] + parser.finish()
    content, calls = "", []
    for delta in deltas:
        if isinstance(delta, TextDelta):
            assert delta.text
            content += delta.text
        elif delta.name is not None:
            assert delta == ToolCallDelta(len(calls), delta.name, "")
            calls.append([delta.name, ""])
        else:
            assert delta.index == len(calls) - 1
            assert delta.arguments
            calls[-1][1] += delta.arguments
    return content, [tuple(call) for call in calls]


HERMES = {
    "no call": ("Hello, <b>world</b> <tool", "Hello, <b>world</b> <tool", []),
    "one call": (f"<tool_call>\n{CALL}\n</tool_call>", "", [WEATHER]),
    "text around": (f"Let me see.\n<tool_call>{CALL}</tool_call>\nDone.", "Let me see.\n\nDone.", [WEATHER]),
    "two calls": (f"<tool_call>\n{CALL}\n</tool_call>\n<tool_call>\n{CALL}\n</tool_call>\n", "", [WEATHER] * 2),
    "two in one": (f"<tool_call>\n{CALL}\n{CALL}\n</tool_call>", "", [WEATHER] * 2),
    "no closing tag": (f"<tool_call>{CALL}", "", [WEATHER]),
    "next without closing tag": (f"<tool_call>{CALL}\n<tool_call>{CALL}</tool_call>", "", [WEATHER] * 2),
    "half a closing tag": (f"<tool_call>{CALL}</tool", "</tool", [WEATHER]),
    "text for the closing tag": (f"<tool_call>{CALL} and", " and", [WEATHER]),
    "name last": ('<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', "", [("f", '{"a": 1}')]),
    "parameters": ('<tool_call>{"name": "f", "parameters": {}}</tool_call>', "", [("f", "{}")]),
    "no arguments": ('<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
    "more keys": ('<tool_call>{"type": "function", "id": "1", "name": "f", "arguments": {}}', "", [("f", "{}")]),
    "tag in a string": (
        '<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}</tool_call>',
        "",
        [("f", '{"a": "</tool_call>"}')],
    ),
    "escaped name": ('<tool_call>{"name": "f\\u00e9", "arguments": {}}</tool_call>', "", [("fé", "{}")]),
    "cut in the arguments": ('<tool_call>{"name": "f", "arguments": {"a": "x', "", [("f", '{"a": "x')]),
}
HERMES_MALFORMED = [
    "<tool_call>",
    "<tool_call>not JSON</tool_call>",
    "<tool_call>{}</tool_call>",
    '<tool_call>{"name": "f", "age": 3}</tool_call>',
    '<tool_call>{"name": "f", "name": "g", "arguments": {}}</tool_call>',
    '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
    '<tool_call>{"name": "", "arguments": {}}</tool_call>',
    '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>',
    '<tool_call>{"name": "f", "arguments": "x"}</tool_call>',
    '<tool_call>{"name": "f", "argum',
    '<tool_call>["name"]</tool_call> text',
    "<tool_call>{'name': 'f', 'arguments': {}}</tool_call>",
]
LLAMA = {
    "no call": ("Hello {", "Hello {", []),
    "one call": (CALL.replace("arguments", "parameters"), "", [WEATHER]),
    "with tag": (f"<|python_tag|>{CALL}", "", [WEATHER]),
    "white space": (f"\n {CALL}\n", "", [WEATHER]),
    "two calls": (f"<|python_tag|>{CALL}; {CALL};", "", [WEATHER] * 2),
    "two lines": (f"{CALL}\n{CALL}", "", [WEATHER] * 2),
    "with type": ('{"type": "function", "name": "f", "parameters": {}}', "", [("f", "{}")]),
    "text after": (f"{CALL} So be it.", " So be it.", [WEATHER]),
    "call later": (f"I call {CALL}", f"I call {CALL}", []),
    "cut": ('{"name": "f", "parameters": {"a": [', "", [("f", '{"a": [')]),
}
LLAMA_MALFORMED = [
    "",
    "  ",
    "<|python",
    "<|python_tag|>",
    '<|python_tag|>search.call(query="x")',
    '{"name": "Bob"}',
    '{"name": "Bob", "age": 3}',
    '{"age": 3}',
    '[{"name": "f", "parameters": {}}]',
    '{"name": "f", "parameters": 3}',
]


@pytest.mark.parametrize("case", HERMES)
def test_hermes(case):
    """Calls and content as written, at once and by character."""
    text, *expected = HERMES[case]
    assert parse("hermes", [text]) == parse("hermes", text) == tuple(expected)


@pytest.mark.parametrize("case", LLAMA)
def test_llama3_json(case):
    """Calls and content as written, at once and by character."""
    text, *expected = LLAMA[case]
    assert parse("llama3-json", [text]) == parse("llama3-json", text) == tuple(expected)


@pytest.mark.parametrize(
    ("name", "text"),
    [("hermes", text) for text in HERMES_MALFORMED] + [("llama3-json", text) for text in LLAMA_MALFORMED],
)
def test_what_is_no_call_comes_back_unchanged(name, text):
    """Not a character is lost."""
    assert parse(name, [text]) == parse(name, text) == (text, [])


def test_a_call_after_what_was_none():
    """The search for tags goes on behind the first tag of a malformed call."""
    bad = '<tool_call>{"name": '
    assert parse("hermes", bad + f"<tool_call>{CALL}</tool_call>") == (bad, [WEATHER])


@pytest.mark.parametrize("name", ["hermes", "llama3-json"])
def test_what_follows_an_error_in_the_arguments_is_content(name):
    """What was given out cannot be taken back; nothing is lost or comes twice."""
    start = "<tool_call>" if name == "hermes" else ""
    text = start + '{"name": "f", "arguments": {"a": 1, oops}} and more'
    assert parse(name, text) == parse(name, [text]) == ("oops}} and more", [("f", '{"a": 1, ')])


def test_pieces_come_as_soon_as_they_can():
    """Content at once, the name with the first brace of the arguments, then every character."""
    parser = tool_call_parser("hermes")
    assert parser.push("Hi <") == [TextDelta("Hi ")]
    assert parser.push("b> ") == [TextDelta("<b> ")]
    assert parser.push('<tool_call>{"name": "f", "arg') == []
    assert parser.push('uments": {"a"') == [ToolCallDelta(0, "f", ""), ToolCallDelta(0, None, '{"a"')]
    assert parser.push(": ") == [ToolCallDelta(0, None, ": ")]
    assert parser.push("1}}</tool_call>!") == [ToolCallDelta(0, None, "1}"), TextDelta("!")]
    assert parser.finish() == []


def test_unknown_parsers_are_named():
    """The error lists what there is."""
    with pytest.raises(InvalidRequestError, match=r"named 'mistral' \(there are hermes, llama3-json\)"):
        tool_call_parser("mistral")


FRAGMENTS = [
    *("<tool_call>", "</tool_call>", "<|python_tag|>", CALL, '{"name": "f", "arguments": '),
    *("{", "{}", "}", "\n", " x ", "<", ";", '"'),
]


@pytest.mark.parametrize("name", ["hermes", "llama3-json"])
@settings(deadline=None)
@given(parts=st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=8), cuts=st.lists(st.integers(0, 200)))
def test_any_chunking_gives_the_same(name, parts, cuts):
    """Pieces are those of the whole text, and complete calls have valid arguments."""
    text = "".join(parts)
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    chunked = parse(name, [text[a:b] for a, b in pairwise(bounds)])
    assert chunked == parse(name, [text])


@settings(deadline=None)
@given(
    calls=st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=5),
            st.dictionaries(
                st.text(max_size=3),
                st.recursive(
                    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
                    max_leaves=5,
                ),
                max_size=3,
            ),
        ),
        min_size=1,
        max_size=3,
    ),
    ascii_only=st.booleans(),
)
def test_any_arguments_come_through(calls, ascii_only):
    """Whatever ``json`` writes, both formats give it back."""
    formats = (
        ("hermes", "<tool_call>\n", "arguments", "\n</tool_call>\n"),
        ("llama3-json", "", "parameters", "; "),
    )
    for name, before, key, after in formats:
        objects = [
            json.dumps({"name": function, key: arguments}, ensure_ascii=ascii_only) for function, arguments in calls
        ]
        content, found = parse(name, "".join(before + written + after for written in objects))
        assert content == ""
        assert [(function, json.loads(arguments)) for function, arguments in found] == calls


@settings(deadline=None)
@given(st.text(st.sampled_from('{}[]":,\\ u0a1-.eE\ntrfalsn'), max_size=12).map(lambda text: '{"a":' + text + "}"))
def test_the_scanner_agrees_with_json(text):
    """It accepts an object where ``json`` does (whose own extensions, NaN and infinities, cannot be spelled here)."""
    scanner = JsonScanner()
    accepted = all(not scanner.done and scanner.feed(char) for char in text) and scanner.done
    try:
        json.loads(text)
        valid = True
    except ValueError:
        valid = False
    assert accepted == valid


def test_deep_nesting_is_no_call():
    """Readers of JSON that recurse are spared it."""
    text = '<tool_call>{"name": "f", "arguments": {"a": ' + "[" * MAX_DEPTH + "</tool_call>"
    content, calls = parse("hermes", [text])
    assert calls == [("f", '{"a": ' + "[" * (MAX_DEPTH - 1))]
    assert content == "[</tool_call>"
