"""transformers in a process of its own, spoken to as :mod:`._gen_worker` describes it.

Decoding and requests run as static batches: all sequences begin and end together, which suits transformers best.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference_pio.benchmarks._gen_case import case_from_json
from inference_pio.benchmarks._gen_worker import worker_main, write_line
from inference_pio.interfaces import MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from inference_pio.benchmarks._gen_case import Case


def measure(spec: Mapping[str, Any], write: Callable[[str], object]) -> None:
    """Measure what ``spec`` says, writing lines of JSON.

    Raises:
        MissingDependencyError: torch or transformers is not installed.
    """
    for name in ("torch", "transformers"):
        if importlib.util.find_spec(name) is None:
            raise MissingDependencyError(f"this rival needs {name}, which is not installed", hint=f"pip install {name}")
    import torch

    torch.set_num_threads(spec["threads"])
    cases = [case_from_json(each) for each in spec["cases"]]
    started = time.perf_counter()
    model = _load(Path(spec["model"]), spec["dtype"])
    write(json.dumps({"executor": "transformers", "load_s": time.perf_counter() - started}) + "\n")
    for number in range(spec["rounds"]):
        skipped = int(spec["warm_up"] and number == 0)
        for index, case in enumerate(cases):
            seconds = [_seconds(case, model) for _ in range(spec["repeats"] + skipped)]
            values = [case.counted / each for each in seconds[skipped:]]
            write(json.dumps({"case": index, "round": number, "values": values}) + "\n")


def _load(path: Path, dtype: str) -> Any:  # noqa: ANN401 - transformers has no narrower public type with generate()
    import transformers

    logging: Any = transformers.utils.logging
    logging.disable_progress_bar()
    auto: Any = transformers.AutoModelForCausalLM
    options = {"dtype": dtype, "local_files_only": True}
    if path.suffix == ".gguf":
        return auto.from_pretrained(path.parent, gguf_file=path.name, **options).eval()
    return auto.from_pretrained(path if path.is_dir() else path.parent, **options).eval()


def _seconds(case: Case, model: Any) -> float:  # noqa: ANN401 - as in _load
    import torch

    with torch.inference_mode():
        if case.phase == "engine":
            return _request_seconds(case, model)
        past = None
        if case.context:
            past = model(_tokens(model, case.batch, case.context), use_cache=True, logits_to_keep=1).past_key_values
        count, steps = (case.tokens, 1) if case.phase == "prefill" else (1, case.tokens)
        inputs = [_tokens(model, case.batch, count) for _ in range(steps)]
        started = time.perf_counter()
        for tokens in inputs:
            past = model(tokens, past_key_values=past, use_cache=True, logits_to_keep=1).past_key_values
        return time.perf_counter() - started


def _request_seconds(case: Case, model: Any) -> float:  # noqa: ANN401 - as in _load
    import torch

    prompts = _tokens(model, case.batch, case.prompt)
    started = time.perf_counter()
    model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=case.tokens,
        min_new_tokens=case.tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return time.perf_counter() - started


def _tokens(model: Any, batch: int, count: int) -> Tensor:  # noqa: ANN401 - as in _load
    import torch

    return torch.randint(model.config.vocab_size, (batch, count))


if __name__ == "__main__":
    sys.exit(worker_main(measure, sys.argv[1:], write_line))
