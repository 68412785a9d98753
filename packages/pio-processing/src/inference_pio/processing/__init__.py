"""Text to token ids and back: tokenizers, sandboxed chat templates, incremental detokenization. No torch.

The libraries that do the work (``tokenizers``, ``jinja2``) are imported when they are first needed.
"""

from inference_pio.processing._detokenizer import IncrementalDetokenizer
from inference_pio.processing._folder import tokenizer_from_folder
from inference_pio.processing._gguf import tokenizer_from_gguf
from inference_pio.processing._meter import TemplateLimits
from inference_pio.processing._reasoning import ReasoningDelta, ReasoningParser, reasoning_parser
from inference_pio.processing._reasoning_grammar import after_reasoning
from inference_pio.processing._stops import StopMatcher
from inference_pio.processing._template import ChatTemplate
from inference_pio.processing._tokenizer import Tokenizer
from inference_pio.processing._tool_calls import TextDelta, ToolCallDelta, ToolCallParser, tool_call_parser
from inference_pio.processing._tool_grammar import tool_call_grammar

__all__ = [
    "ChatTemplate",
    "IncrementalDetokenizer",
    "ReasoningDelta",
    "ReasoningParser",
    "StopMatcher",
    "TemplateLimits",
    "TextDelta",
    "Tokenizer",
    "ToolCallDelta",
    "ToolCallParser",
    "after_reasoning",
    "reasoning_parser",
    "tokenizer_from_folder",
    "tokenizer_from_gguf",
    "tool_call_grammar",
    "tool_call_parser",
]
