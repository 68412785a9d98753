"""Servers whose model calls a tool, or reasons first, whatever it is asked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from inference_pio.interfaces import StructuredOutputs
from inference_pio.processing import reasoning_parser, tool_call_parser

CALL = r'Let me see\. <tool_call>\n\{"name": "get_weather", "arguments": \{"city": "(Paris|Rome)"\}\}\n</tool_call>'
THOUGHT = r"<think>Is it so\?( It is\.){2}</think>(Yes|No), it is\."


@pytest.fixture
def forced(start_server, load_model):
    """Starts a server whose answers are held to a form that the default model would not keep; all else is real."""

    def begin(regex, **parsers):
        def load():
            llm = load_model()
            make = llm.make_request

            def make_forced(prompt, params, **more):
                return make(prompt, replace(params, structured_outputs=StructuredOutputs(regex=regex)), **more)

            llm.make_request = make_forced
            for name, parser in parsers.items():
                setattr(llm, name, parser)
            return llm

        return start_server(load)

    return begin


@pytest.fixture
def calling(forced):
    """A model that says something and calls a tool."""
    return forced(CALL, tool_call_parser=lambda: tool_call_parser("hermes"))


@pytest.fixture
def reasoning(forced):
    """A model that reasons before it answers."""
    return forced(THOUGHT, reasoning_parser=lambda _prompt: reasoning_parser("think"))
