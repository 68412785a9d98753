"""What rendering a chat template costs, and what its limits add.

    python benchmarks/bench_template.py [--json FILE] [--quick]

Medians. Rendering is measured in turns with the same template in Jinja's own immutable sandbox, which bounds nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2.ext import LoopControlExtension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from inference_pio.processing import ChatTemplate

if TYPE_CHECKING:
    from collections.abc import Callable

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TOOLS = """
{%- set ns = namespace(last=0) -%}
{%- for message in messages[::-1] -%}
    {%- if ns.last == 0 and message.role == 'user' -%}{%- set ns.last = messages | length - loop.index -%}{%- endif -%}
{%- endfor -%}
{%- if tools -%}{{ '[tools]' }}{%- for tool in tools -%}{{ tool | tojson }}{%- endfor -%}{%- endif -%}
{%- for message in messages -%}
    {%- set text = message.content | trim -%}
    {%- if message.role == 'assistant' and '</think>' in text -%}
        {%- set text = text.split('</think>')[-1].lstrip('\\n') -%}
    {%- endif -%}
    {{ '[' ~ message.role ~ (' last' if loop.index0 >= ns.last else '') ~ '] ' ~ text ~ '\\n' }}
    {%- for call in message.tool_calls or [] -%}{{ call.name ~ (call.arguments | tojson) }}{%- endfor -%}
{%- endfor -%}
"""
TOOL_LIST = [
    {"name": f"tool{n}", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}} for n in range(8)
]


def in_turns(repeats: int, number: int, **sides: Callable[[], object]) -> dict[str, float]:
    """Median seconds per call of each side, ``number`` calls a time, one side after the other in every round."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            for _ in range(number):
                side()
            if turn:
                times[name].append((time.perf_counter() - start) / number)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the result there too")
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    args = parser.parse_args()
    repeats, number = (3, 5) if args.quick else (15, 40)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[LoopControlExtension])
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    results: list[dict[str, object]] = []
    for name, source in (("chatml", CHATML), ("tools", TOOLS)):
        compiled = in_turns(
            repeats, 1, compile=lambda source=source: ChatTemplate(source, special_tokens={}).render([])
        )
        results.append({"name": f"{name}: compile", "value": 1e3 * compiled["compile"], "unit": "ms"})
        ours, plain = ChatTemplate(source, special_tokens={}), environment.from_string(source)
        for turns in (1, 20, 200):
            messages = [
                {"role": role, "content": f"{role} says something of ordinary length, number {n}. " * 8}
                for n in range(turns)
                for role in ("user", "assistant")
            ]
            tools = TOOL_LIST if name == "tools" else None
            variables = {"messages": messages, "tools": tools, "add_generation_prompt": True}
            assert ours.render(messages, tools=tools) == plain.render(**variables)
            seconds = in_turns(
                repeats,
                max(1, number // turns),
                ours=lambda ours=ours, messages=messages, tools=tools: ours.render(messages, tools=tools),
                plain=lambda plain=plain, variables=variables: plain.render(**variables),
            )
            label = f"{name}: {2 * turns} messages"
            results.append({"name": label, "value": 1e6 * seconds["ours"], "unit": "us"})
            results.append({"name": f"{label}, ours / Jinja", "value": seconds["ours"] / seconds["plain"], "unit": "x"})
    report(results, args.json)


def report(results: list[dict[str, object]], path: Path | None) -> None:
    """A table for people, and one line of JSON last."""
    for result in results:
        print(f"{result['name']:36} {result['value']:10.2f} {result['unit']}")
    machine = {"machine": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version()}
    record = {"benchmark": "template", "package": "pio-processing", "results": results, "machine": machine}
    if path is not None:
        path.write_text(json.dumps(record) + "\n", encoding="utf-8")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
