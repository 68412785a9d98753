"""Chat templates, against transformers' rendering."""

# ruff: noqa: E501 - line breaks belong to the templates

import threading

import pytest

from inference_pio.interfaces import InvalidRequestError, TemplateError
from inference_pio.processing import ChatTemplate, TemplateLimits

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}

# Written for these tests, to use between them what chat templates use.
CHATML = """
{%- if messages[0]['role'] == 'system' -%}
    {%- set system = messages[0]['content'] | trim -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set system = 'Be brief.' -%}
    {%- set rest = messages -%}
{%- endif -%}
{{ bos_token }}<|start|>system
{{ system }}
{%- if tools %}

You may call:
{%- for tool in tools %}
{{ loop.index }}. {{ tool['function']['name'] }} {{ tool | tojson }}
{%- endfor %}
{%- endif %}<|end|>
{% for message in rest %}
    {% if message.role not in ['user', 'assistant', 'tool'] %}
{{ raise_exception('unknown role ' ~ message.role) }}
    {% endif %}
    {% if message.content is not none %}
<|start|>{{ message.role }}
{{ message.content }}<|end|>
    {% endif %}
    {% for call in message.tool_calls or [] %}
<|call|>{{ call.function.name }}({{ call.function.arguments | tojson(indent=2) }})<|end|>
    {% endfor %}
{% endfor %}
{% if add_generation_prompt %}
<|start|>assistant
{% endif %}
"""

HEADERS = """
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now('%Y') %}{%- else %}{%- set date_string = '2024' %}{%- endif %}
{%- endif %}
{%- if documents %}{% for doc in documents %}[{{ doc.title | upper }}: {{ doc['text'][:5] }}]{% endfor %}{% endif %}
{{- '<|h|>system<|/h|>\\n\\nToday: ' + date_string + '\\n' }}
{%- if tools is not none and tools | length > 0 %}
    {{- 'Tools: ' + tools | map(attribute='function') | map(attribute='name') | join(', ') + '\\n' }}
    {{- tools | tojson(indent=4) }}
{%- endif %}
{%- for message in messages if message['role'] != 'system' %}
    {%- if 'tool_calls' in message and message.tool_calls %}
        {%- if message.tool_calls | length != 1 %}{{- raise_exception('one call at a time, please\\nthank you') }}{%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|h|>assistant<|/h|>{"name": "' + call.name + '", "parameters": ' }}{{- call.arguments | tojson }}{{- '}' }}
    {%- elif message.role == 'tool' %}
        {{- '<|h|>tool<|/h|>' }}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
    {%- else %}
        {{- '<|h|>' + message['role'] + '<|/h|>\\n\\n' + message['content'] | trim }}
    {%- endif %}
    {{- eos_token if loop.last else '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|h|>assistant<|/h|>\\n\\n' }}{%- endif %}
"""

THINKING = """
{%- macro show(content, plain=true) -%}
    {%- if content is string -%}{{ content if plain else content | upper }}
    {%- elif content is none or content is undefined -%}
    {%- else -%}
        {%- for part in content -%}
            {%- if part.type == 'text' -%}{{ part.text }}{%- else -%}<{{ part.type }}>{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(last=messages|length - 1, found=false, seen=[]) -%}
{%- for message in messages[::-1] -%}
    {%- if not ns.found and message.role == 'user' and not show(message.content).startswith('<result>') -%}
        {%- set ns.found = true -%}
        {%- set ns.last = messages|length - 1 - loop.index0 -%}
    {%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
    {%- set text = show(message.content) -%}
    {%- set ns.seen = ns.seen + [message.role] -%}
    {%- if message.role == 'system' -%}{% continue %}{%- endif -%}
    {%- if message.role == 'assistant' -%}
        {%- generation -%}
        {%- set reasoning = '' -%}
        {%- if message.reasoning_content is string -%}
            {%- set reasoning = message.reasoning_content -%}
        {%- elif '</think>' in text -%}
            {%- set reasoning = text.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') -%}
            {%- set text = text.split('</think>')[-1].lstrip('\\n') -%}
        {%- endif -%}
        {{ '[A' ~ (' think=' ~ reasoning.strip() if loop.index0 > ns.last and reasoning else '') ~ '] ' ~ text }}
        {%- for call in message.tool_calls or [] -%}
            {%- set function = call.function if call.function is defined else call -%}
            {{ '\\n<call>{"name": "' ~ function.name ~ '", "arguments": ' }}
            {%- if function.arguments is string %}{{ function.arguments }}{% else %}{{ function.arguments | tojson }}{% endif -%}
            {{ '}</call>' }}
        {%- endfor -%}
        {%- endgeneration -%}
    {%- elif message.role == 'tool' -%}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' -%}{{ '[T' }}{%- endif -%}
        {{ '\\n<result>' ~ text ~ '</result>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' -%}{{ ']' }}{%- endif -%}
    {%- else -%}
        {{ '[U] ' ~ text }}
    {%- endif -%}
    {{ eos_token }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '[A' }}{%- if enable_thinking is defined and enable_thinking is false -%}{{ ' <think>\\n\\n</think>' }}{%- endif -%}{{ ']' }}
{%- endif -%}
{{ ns.seen | join('/') }} {{ ns.seen | unique | list }}
"""

KITCHEN_SINK = """
{% set d = {'b': 1, 'a': [1, 2.5, none, true], 'é': 'ü<&>"\\'\\n'} %}
{{ d | tojson }}|{{ d | tojson(ensure_ascii=true) }}|{{ d | tojson(indent=1, sort_keys=true) }}|{{ d | tojson(separators=(',', ':')) }}
{{ d | dictsort }} {{ d.items() | list }} {{ d.keys() | list }} {{ d.get('x', 'none') }} {{ d }} {{ d.a[::2] }} {{ dict(x=1, y=[2]) }}
{{ 'Hello World' | replace('o', '0') }} {{ 'a,b,c'.split(',') }} {{ ' x '.strip() }} {{ 'x'.ljust(3, '.') }} {{ 'abc' | title }}
{{ 'x' * 3 ~ [1] * 2 }} {{ 7 // 2 }} {{ 7 % 4 }} {{ 2 ** 10 }} {{ 7 / 2 }} {{ -3 | abs }} {{ 3.7 | round | int }} {{ '12' | int + 1 }}
{{ '%s is %05.1f' | format('pi', 3.14159) }} {{ '%d%%' % 50 }} {{ '{} {x:>4}'.format(1, x='r') }} {{ 'a' 'b' }}
{{ [3, 1, 2] | sort }} {{ [3, 1, 2] | sort(reverse=true) | first }} {{ [1, 2, 3] | sum }} {{ [1, 2] | max }} {{ 'abc' | reverse }} {{ [1, 2, 3] | last }}
{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list }} {{ messages | map(attribute='role') | unique | join(',') }}
{{ messages | rejectattr('role', 'in', ['user']) | list | length }} {{ ['a', '', 'b'] | select | join('+') }} {{ [1, 2, 3, 4] | select('odd') | list }}
{{ 'line one\\nline two' | indent(4) }} {{ 'line one\\nline two' | indent('> ', first=true) }} {{ 'x' | center(5) }} {{ [1, 2, 3] | batch(2, 0) | list }}
{{ none }} {{ true }} {{ missing | default('d') }} {{ missing is defined }} {{ missing }} {{ 'b' in d }} {{ 1 if false }} {{ 5 is divisibleby 5 }} {{ 1.0 }} {{ 'A' < 'B' <= 'C' }}
{% for k, v in d.items() %}{{ loop.index }}/{{ loop.length }}:{{ k }}={{ v }}{{ ', ' if not loop.last }}{% else %}empty{% endfor %}
{% for i in range(10) %}{% if i == 2 %}{% continue %}{% endif %}{% if i > 4 %}{% break %}{% endif %}{{ i }}{{ loop.cycle('a', 'b') }}{% endfor %}
{% for a in [1, [2, [3]]] recursive %}{{ loop.depth }}{{ loop(a) if a is iterable else a }}{% endfor %}
{% macro outer(x) %}({{ caller(x) }}{{ varargs }}{{ kwargs }}){% endmacro %}{% call(y) outer(1, 2, z=3) %}<{{ y }}>{% endcall %}
{% set block %}captured {{ 1 + 1 }}{% endset %}{{ block | upper }} {% filter upper %}filtered{% endfilter %} {% with w = 1 %}{{ w }}{% endwith %}
{% raw %}{{ raw }}{% endraw %}{# comment #}{{ '<b>&</b>' }} {{ '<b>' | e }} {{ '<b>' | safe }} {{ ('a', 'b') }} {{ [[1, 2], [3]] | tojson }} {{ 'ß' | upper }} {{ "it's" | capitalize }}
{{ messages | groupby('role') | map('first') | list }} {{ [1, 2, 2] | map('string') | unique | list }} {{ 'abc'[1] }} {{ 'abc'[-1:] }} {{ d['a'][1:] + [9] }} {{ (1, 2) + (3,) }}
"""

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'Wetter für <Ort> & "Zeit"',
            "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Köln", "東京"]}}},
        },
    },
    {"type": "function", "function": {"name": "clock", "parameters": {}}},
]

CALL = {
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "東京", "days": 2, "f": 1.5, "n": None}},
}

CONVERSATIONS = {
    "one": [{"role": "user", "content": "Hi"}],
    "system": [{"role": "system", "content": "  Be kind. \n"}, {"role": "user", "content": "  Héllo 🙂 <|end|> \n\n"}],
    "turns": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nb"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d", "reasoning": "because"},
    ],
    "calls": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "thinking": "ask"},
        {"role": "tool", "content": "rain"},
        {"role": "tool", "content": "<b>sun</b>"},
        {"role": "assistant", "content": "Rain.", "reasoning_content": "the tool says so"},
    ],
}


@pytest.fixture(scope="module")
def transformers_render():
    utils = pytest.importorskip(
        "transformers.utils.chat_template_utils", reason="transformers, the witness, is not installed"
    )

    def render(source, messages, *, tools=None, documents=None, add_generation_prompt=True, **kwargs):
        texts, _ = utils.render_jinja_template(
            [messages],
            tools=tools,
            documents=documents,
            chat_template=source,
            add_generation_prompt=add_generation_prompt,
            **{**SPECIAL, **kwargs},
        )
        return texts[0]

    return render


@pytest.mark.parametrize(
    "source", [CHATML, HEADERS, THINKING, KITCHEN_SINK], ids=["chatml", "headers", "thinking", "sink"]
)
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("tools", [None, [], TOOLS], ids=["no-tools", "empty-tools", "tools"])
@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_renders_as_transformers(transformers_render, source, conversation, tools, add_generation_prompt):
    """Character for character, for tools, tool calls, reasoning, macros, loop controls and filters."""
    messages = CONVERSATIONS[conversation]
    options = {"tools": tools, "add_generation_prompt": add_generation_prompt}
    expected = transformers_render(source, messages, **options)
    assert ChatTemplate(source, special_tokens=SPECIAL).render(messages, **options) == expected
    assert len(expected) > 10


@pytest.mark.parametrize(
    "options",
    [
        {"enable_thinking": False},
        {"enable_thinking": True, "add_generation_prompt": False},
        {"date_string": "1 Jan 2000"},
        {"documents": [{"title": "t", "text": "a long text"}]},
        {"bos_token": "<other>"},
    ],
)
@pytest.mark.parametrize("source", [HEADERS, THINKING], ids=["headers", "thinking"])
def test_variables_reach_the_template(transformers_render, source, options):
    """Further variables and documents are what they are in transformers."""
    messages = CONVERSATIONS["turns"]
    expected = transformers_render(source, messages, **options)
    assert ChatTemplate(source, special_tokens=SPECIAL).render(messages, **options) == expected


@pytest.mark.parametrize("conversation", ["one", "system", "turns"])
@pytest.mark.parametrize("add_generation_prompt", [False, True])
def test_the_real_template_renders_as_transformers(smollm2, transformers_render, conversation, add_generation_prompt):
    """The template of the default model, its default system prompt included."""
    messages = CONVERSATIONS[conversation]
    source = smollm2.chat_template.source
    expected = transformers_render(source, messages, add_generation_prompt=add_generation_prompt)
    assert smollm2.apply_chat_template(messages, add_generation_prompt=add_generation_prompt) == expected
    assert ("named SmolLM" in expected) == (messages[0]["role"] != "system")


def test_rendered_prompts_are_tokenized_without_further_tokens(smollm2):
    """The template writes the special tokens itself; the ids hold each of them once."""
    ids = smollm2.apply_chat_template(CONVERSATIONS["one"], tokenize=True)
    assert ids == smollm2.encode(smollm2.apply_chat_template(CONVERSATIONS["one"]), add_special_tokens=False)
    assert ids.count(1) == 3
    assert ids.count(2) == 2


def test_text_parts_are_joined_for_templates_of_strings(smollm2):
    """Content as parts works with a template that knows only strings."""
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    plain = smollm2.apply_chat_template([{"role": "user", "content": "one\ntwo"}])
    assert smollm2.apply_chat_template([{"role": "user", "content": parts}]) == plain


@pytest.mark.parametrize(
    "loop",
    [
        "{% for part in message.content %}{{ part.type }};{% endfor %}",
        "{% for part in message['content'] | list %}{{ part.type }};{% endfor %}",
        "{% set content = message.content %}{% for part in content %}{{ part.type }};{% endfor %}",
        "{% set c = message['content'] %}{% for part in c %}{{ part['type'] }};{% endfor %}",
        "{% macro show(content) %}{% for part in content %}{{ part.type }};{% endfor %}{% endmacro %}{{ show(message.content) }}",
    ],
)
def test_templates_that_go_through_parts_get_them(transformers_render, loop):
    """A template that loops over the content sees the parts as they are, images too."""
    source = "{% for message in messages %}" + loop + "{% endfor %}"
    messages = [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "image"}]}]
    assert (
        ChatTemplate(source, special_tokens={}).render(messages)
        == transformers_render(source, messages)
        == "text;image;"
    )


@pytest.mark.parametrize(
    "part, match",
    [
        (
            {"type": "image_url", "image_url": {"url": "x"}},
            r"messages\[0\].content\[0\] must be a text part .* got 'image_url'",
        ),
        ({"type": "text"}, r"messages\[0\].content\[0\] must be a text part"),
        ("text", r"messages\[0\].content\[0\] must be a text part for this model, got 'text'"),
    ],
)
def test_parts_that_are_no_text_are_refused(smollm2, part, match):
    """A model of text says so."""
    with pytest.raises(InvalidRequestError, match=match):
        smollm2.apply_chat_template([{"role": "user", "content": [part]}])


@pytest.mark.parametrize(
    "messages, match",
    [
        ("hello", r"messages must be a list of dicts, got str"),
        ({"role": "user", "content": "x"}, r"messages must be a list of dicts, got dict"),
        (["hello"], r"messages\[0\] must be a dict with 'role' and 'content', got str"),
        ([{"content": "x"}], r"messages\[0\] must have a 'role' such as 'user', got None"),
        ([{"role": 3, "content": "x"}], r"messages\[0\] must have a 'role' such as 'user', got 3"),
        (
            [{"role": "user", "content": object()}],
            r"messages\[0\].content is a object; chat templates take JSON values",
        ),
        ([{"role": "user", "content": b"x"}], r"messages\[0\].content is a bytes; chat templates take JSON values"),
        ([{"role": "user", 5: "x"}], r"messages\[0\] must have strings as keys, got 5"),
    ],
)
def test_messages_of_the_wrong_shape_are_named(smollm2, messages, match):
    """The error says which message, and what it is."""
    with pytest.raises(InvalidRequestError, match=match):
        smollm2.apply_chat_template(messages)


def test_deep_messages_are_refused(smollm2):
    """Nesting beyond any use is an error, not a recursion."""
    deep = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(InvalidRequestError, match=r"is nested deeper than 64"):
        smollm2.apply_chat_template([{"role": "user", "content": "x", "extra": deep}])


@pytest.mark.parametrize("name", ["messages", "add_generation_prompt", "_private", "__class__"])
def test_reserved_variables_cannot_be_set(name):
    """Variables of a request do not replace the conversation."""
    template = ChatTemplate("x", special_tokens={})
    with pytest.raises(InvalidRequestError, match=rf"'{name}' cannot be set as a template variable"):
        template._variables(None, None, {name: 1})


def test_variables_are_plain_values():
    """No object with methods of its own reaches a template."""
    with pytest.raises(InvalidRequestError, match=r"x is a function; chat templates take JSON values only"):
        ChatTemplate("{{ x() }}", special_tokens={}).render([], x=print.__class__ and (lambda: 1))
    with pytest.raises(InvalidRequestError, match=r"tools must be a list of dicts, got \['x'\]"):
        ChatTemplate("x", special_tokens={}).render([], tools=["x"])

    class Loud(str):
        __slots__ = ()

        def upper(self):
            raise AssertionError("called")

    assert ChatTemplate("{{ x.upper() }}", special_tokens={}).render([], x=Loud("a")) == "A"


def test_a_model_without_template_says_what_to_do(byte_level_metadata):
    """The error names the ways out."""
    from inference_pio.processing import tokenizer_from_gguf

    tokenizer = tokenizer_from_gguf(byte_level_metadata("smollm"))
    assert tokenizer.chat_template is None
    with pytest.raises(TemplateError, match=r"has no chat template \(give one with chat_template=, or a plain prompt"):
        tokenizer.apply_chat_template(CONVERSATIONS["one"])


def test_refusals_of_the_template_are_one_line():
    """What a template raises comes through on one line."""
    call = {**CONVERSATIONS["calls"][1], "tool_calls": [CALL, CALL]}
    with pytest.raises(TemplateError, match=r"refuses the conversation: one call at a time, please thank you$"):
        ChatTemplate(HEADERS, special_tokens=SPECIAL).render([call])


@pytest.mark.parametrize(
    "source, match",
    [
        ("{% if %}", r"the chat template is wrong in line 1: Expected an expression"),
        ("\n\n{{ x", r"the chat template is wrong in line 3: "),
        ("{{ x | nosuch }}", r"the chat template is wrong in line 1: No filter named 'nosuch'"),
        ("{{ messages[0].role + 1 }}", r"the chat template fails: TypeError: "),
        ("{{ missing.attribute }}", r"the chat template fails: 'missing' is undefined"),
        ("{{ missing() }}", r"the chat template fails: 'missing' is undefined"),
        ("{{ 1 / 0 }}", r"the chat template fails: ZeroDivisionError: division by zero"),
        ("{{ [1] | tojson(indent='x' * 2000) }}", r"the chat template fails: templates may not use an indent"),
        ("{{ missing | tojson }}", r"the chat template fails: TypeError: Object of type Undefined"),
        ("{% include 'x' %}", r"wrong in line 1: a chat template cannot load other templates"),
        ("{% extends 'x' %}", r"wrong in line 1: a chat template cannot load other templates"),
        ("{% from 'x' import y %}", r"wrong in line 1: a chat template cannot load other templates"),
        (
            "{% autoescape true %}{% endautoescape %}",
            r"wrong in line 1: a chat template cannot switch on HTML escaping",
        ),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", r"cannot be compiled: it is nested too deeply$"),
        ("{% for x in [] %}" * 30 + "{% endfor %}" * 30, r"cannot be compiled: it is nested too deeply$"),
        ("{{ " + "9" * 5000 + " }}", r"cannot be compiled: Exceeds the limit \(4300 digits\)"),
        ("{% set ns = namespace(_x=1) %}", r"the chat template fails: templates may not store '_x' in a namespace"),
        ("{% set ns = namespace() %}{% set ns.__class__ = 1 %}", r"may not store '__class__' in a namespace"),
    ],
)
def test_errors_are_one_line(source, match):
    """Whatever is wrong with a template or its data, the error fits on a line."""
    template = ChatTemplate(source, special_tokens={})
    with pytest.raises(TemplateError, match=match) as caught:
        template.render(CONVERSATIONS["one"])
    assert "\n" not in str(caught.value)
    with pytest.raises(TemplateError, match=match):  # and stays the same when tried again
        template.render(CONVERSATIONS["one"])


def test_too_long_a_template_is_not_read():
    """256 KiB is the limit."""
    ChatTemplate("x" * 256 * 1024, special_tokens={})
    with pytest.raises(TemplateError, match=r"has 262145 bytes; the limit is 262144"):
        ChatTemplate("x" * (256 * 1024 + 1), special_tokens={})


def test_threads_share_a_template():
    """Renderings at the same time do not disturb each other."""
    template = ChatTemplate(THINKING, special_tokens=SPECIAL, limits=TemplateLimits(steps=2000))
    expected = template.render(CONVERSATIONS["calls"])
    results = []

    def work():
        results.extend(template.render(CONVERSATIONS["calls"]) for _ in range(50))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 200
