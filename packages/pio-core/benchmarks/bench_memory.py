"""Peak memory of loading and running a model, against the weights and cache that it must hold.

    python benchmarks/bench_memory.py [--dtype bfloat16] [--quick] [--json FILE]

Runs in a fresh process per dtype. What importing torch and this package takes is measured there before the model is
loaded and left out: it is the same for every model. Linux only, since it reads ``/proc/self/status``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

DTYPES = ("bfloat16", "float32")
NEW_TOKENS = 64


def resident(field: str) -> int:
    """``VmRSS`` (now) or ``VmHWM`` (peak) of this process, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    msg = f"/proc/self/status has no {field}"
    raise OSError(msg)


def child(dtype: str) -> dict[str, float]:
    """Load and run the default model in this process."""
    import torch

    from inference_pio.core import LLM, SamplingParams
    from inference_pio.core.torch_executor import build_torch_executor  # everything that will be imported

    assert build_torch_executor is not None
    torch.ones(64, 64, dtype=torch.bfloat16) @ torch.ones(64, 64, dtype=torch.bfloat16)  # the matrix library, too
    baseline = resident("VmRSS")
    llm = LLM("smollm2-135m-instruct", dtype=dtype)
    loaded = resident("VmHWM")
    prompt = llm.get_tokenizer().encode("Tell me a story about a cache that never forgets. " * 8)
    (output,) = llm.generate([prompt], SamplingParams(temperature=0.0, max_tokens=NEW_TOKENS, ignore_eos=True))
    size = getattr(torch, dtype).itemsize
    tokens = len(prompt) + len(output.outputs[0].token_ids)
    needed = (llm.shape.num_parameters + tokens * llm.shape.kv_elements_per_token) * size
    return {"baseline": baseline, "loaded": loaded, "peak": resident("VmHWM"), "needed": needed}


def main() -> None:
    """Print a table, then one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dtype", choices=DTYPES, help="only this one")
    parser.add_argument("--quick", action="store_true", help="only bfloat16")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=DTYPES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(arguments.child)))
        return
    results: list[dict[str, object]] = []
    for dtype in (arguments.dtype,) if arguments.dtype else DTYPES[: 1 if arguments.quick else None]:
        command = [sys.executable, __file__, "--child", dtype]
        sizes = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        above = sizes["peak"] - sizes["baseline"]
        print(
            f"{dtype:<10} weights and cache {sizes['needed'] / 2**20:7.1f} MiB, peak above the imports "
            f"{above / 2**20:7.1f} MiB, imports {sizes['baseline'] / 2**20:7.1f} MiB: {above / sizes['needed']:.2f}x"
        )
        results += [
            {"name": f"{dtype} peak over weights and cache", "value": round(above / sizes["needed"], 3), "unit": "x"},
            {"name": f"{dtype} peak, imports included", "value": round(sizes["peak"] / 2**20, 1), "unit": "MiB"},
        ]
    machine = {"cpu": platform.machine(), "cores": os.cpu_count()}
    line = json.dumps({"benchmark": "memory", "package": "pio-core", "results": results, "machine": machine})
    if arguments.json is not None:
        arguments.json.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
