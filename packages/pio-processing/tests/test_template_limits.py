"""Hostile templates: none gets out, none uses up the machine."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from inference_pio.interfaces import TemplateError
from inference_pio.processing import ChatTemplate, TemplateLimits

pytest.importorskip("resource", reason="limits on a process's memory are a matter of POSIX")

PROGRAM = Path(__file__).with_name("data") / "attacks.py"
ATTACKS = runpy.run_path(str(PROGRAM))
USER = [{"role": "user", "content": "hello"}]


def attack(steps, cpu_s, divisor, timeout):
    command = [sys.executable, str(PROGRAM), str(steps), str(cpu_s), str(divisor)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def outcomes():
    """What each attack came to, under tighter limits than usual, in a process with 2 GiB of address space."""
    return attack(30_000, 0.1, 16, timeout=300)["outcomes"]


@pytest.mark.parametrize("name", ATTACKS["ESCAPES"])
def test_no_template_gets_out(outcomes, name):
    """Nothing but the variables can be reached: the attempt fails, or sees nothing."""
    kind, text, _ = outcomes[f"escape: {name}"]
    assert kind == "refused" or text in ("", "(Undefined, ['x'])")
    assert "\n" not in text


@pytest.mark.parametrize("name", ATTACKS["BOMBS"])
def test_no_template_uses_up_the_machine(outcomes, name):
    """Loops, recursion, growing strings and lists are stopped by a limit, never by the lack of memory."""
    kind, text, seconds = outcomes[f"bomb: {name}"]
    assert kind == "refused"
    assert "MemoryError" not in text
    assert "\n" not in text
    assert seconds < 30  # the limit is 0.1 s; without it most of these would take years


@pytest.mark.parametrize("name", ATTACKS["sources"](16))
def test_no_source_cannot_be_read(outcomes, name):
    """Long and deeply nested sources are compiled or refused in bounded time."""
    kind, text, seconds = outcomes[f"source: {name}"]
    assert kind in ("text", "refused")
    assert "\n" not in text
    assert seconds < 60


@pytest.mark.slow
def test_the_usual_limits_hold_as_well():
    """The same under the limits that models' templates get, with the longest sources: none ends in lack of memory."""
    limits = TemplateLimits()
    result = attack(limits.steps, limits.cpu_s, 1, timeout=1800)
    for name, (kind, text, seconds) in result["outcomes"].items():
        assert kind == "refused" or not name.startswith("bomb"), name
        assert "MemoryError" not in text, name
        assert seconds < 60, name
    assert result["peak_kib"] < 1024 * 1024


@pytest.mark.parametrize(
    "limits, source, match",
    [
        (
            {"steps": 10},
            "{% for i in range(20) %}{% endfor %}",
            r"takes more than 10 steps \(give another one with chat_t",
        ),
        ({"cpu_s": 0.0}, "{% for i in range(99999) %}{% endfor %}", r"takes more than 0 s"),
        (
            {"output_chars": 10},
            "{{ messages[0].content }} {{ messages[0].content }}",
            r"writes more than 10 characters",
        ),
        ({"value_chars": 20}, "{{ 'x' * 21 }}", r"makes a value of more than 20 characters"),
        ({"value_chars": 20}, "{{ ['x' * 10, 'y' * 10] }}", r"makes a value of more than 20 characters"),
        (
            {"created_chars": 50},
            "{% for i in range(9) %}{% set x = 'x' * 10 %}{% endfor %}",
            r"makes more than 50 characters",
        ),
    ],
)
def test_each_limit_says_which_it_is(limits, source, match):
    """The message names the limit; just below it the template renders."""
    with pytest.raises(TemplateError, match=match):
        ChatTemplate(source, special_tokens={}, limits=TemplateLimits(**limits)).render(USER)
    assert ChatTemplate(source, special_tokens={}).render(USER) is not None


def test_limits_are_per_rendering():
    """What one rendering used up does not count against the next."""
    template = ChatTemplate(
        "{% for i in range(9) %}{{ i }}{% endfor %}", special_tokens={}, limits=TemplateLimits(steps=40)
    )
    assert [template.render(USER) for _ in range(10)] == ["012345678"] * 10


def test_long_conversations_are_within_the_limits(smollm2):
    """A thousand messages of four kilobytes, near the limit on output, are no attack."""
    messages = [{"role": "user", "content": "x" * 4000}, {"role": "assistant", "content": "é" * 4000}] * 500
    assert len(smollm2.apply_chat_template(messages)) > 4_000_000


def test_conversations_beyond_the_limit_are_refused(smollm2):
    """So is too much text, with the limit that it exceeds."""
    with pytest.raises(TemplateError, match=r"writes more than 4194304 characters"):
        smollm2.apply_chat_template([{"role": "user", "content": "x" * 4_200_000}])
    with pytest.raises(TemplateError, match=r"makes a value of more than 8388608 characters"):
        smollm2.apply_chat_template([{"role": "user", "content": "x" * 9_000_000}])
