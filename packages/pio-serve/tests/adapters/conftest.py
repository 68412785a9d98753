"""A server whose model calls a tool, whatever it is asked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from inference_pio.interfaces import StructuredOutputs
from inference_pio.processing import tool_call_parser

CALL = r'Let me see\. <tool_call>\n\{"name": "get_weather", "arguments": \{"city": "(Paris|Rome)"\}\}\n</tool_call>'


@pytest.fixture
def calling(start_server, load_model):
    """The default model calls no tools of itself, so its answers are held to a form that does; all else is real."""

    def load():
        llm = load_model()
        make = llm.make_request

        def make_call(prompt, params, **more):
            return make(prompt, replace(params, structured_outputs=StructuredOutputs(regex=CALL)), **more)

        llm.make_request = make_call
        llm.tool_call_parser = lambda: tool_call_parser("hermes")
        return llm

    return start_server(load)
