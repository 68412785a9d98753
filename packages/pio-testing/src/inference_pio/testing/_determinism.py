"""The deterministic mode: a request gets the same bits in any company."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inference_pio.layers import InvariantLinear
from inference_pio.testing._compare import ParityError
from inference_pio.testing._engine_run import build_engine, make_request, run_requests
from inference_pio.testing._run import random_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inference_pio.interfaces import RequestOutput
    from inference_pio.testing._load import LoadedModel


def check_deterministic(
    loaded: LoadedModel,
    *,
    tolerance: float = 0.0,  # noqa: ARG001 - taken like that of every other check; the promise is about every bit
    dtypes: Sequence[str] = ("float32", "bfloat16"),
) -> None:
    """Tokens and log-probabilities are the same bits alone, in company, in chunks and after a prefix hit.

    Loads the checkpoint again, with products and attention whose rows do not depend on each other. They exist for CPUs,
    so that is where the check computes, wherever ``loaded`` is.

    Raises:
        ParityError: They are not, or no prefix was found.
        UnsupportedError: This machine has no such products.
    """
    prompt = random_tokens(loaded, 22)
    requests = [
        make_request("long", prompt, max_tokens=6, logprobs=2),
        make_request("shared", [*prompt[:13], *random_tokens(loaded, 4, seed=1)], max_tokens=6, seed=1, logprobs=2),
        make_request("short", random_tokens(loaded, 1, seed=2), max_tokens=6, logprobs=2),
        make_request("two", random_tokens(loaded, 9, seed=3), max_tokens=6, seed=3, n=2, logprobs=2),
    ]
    for dtype in dtypes:
        invariant = loaded.reload(dtype=dtype, backend="invariant", linear=InvariantLinear())
        engine = build_engine(invariant, num_pages=4, page_size=16, max_model_len=32, prefix_caching=False)
        alone = [run_requests(engine, [request])[0] for request in requests]
        engine = build_engine(
            invariant, num_pages=40, page_size=4, max_model_len=32, max_num_seqs=8, max_step_tokens=11
        )
        for seed in range(2):
            outputs = run_requests(engine, requests, seed=seed)
            for ours, expected in zip(outputs, alone, strict=True):
                _compare_bits(f"in company, {dtype}, round {seed}", ours, expected)
        if engine.cache.stats.hits == 0:
            raise ParityError("no prefix was found, so nothing is proved")


def _compare_bits(what: str, output: RequestOutput, expected: RequestOutput) -> None:
    for ours, theirs in zip(output.outputs, expected.outputs, strict=True):
        place = f"{what}: {output.request_id!r}, continuation {ours.index}"
        if output.error or expected.error:
            raise ParityError(f"{place}: {output.error or expected.error}")
        positions = zip(ours.logprobs or [], theirs.logprobs or [], strict=True)
        different = [index for index, (mine, other) in enumerate(positions) if mine != other]
        if ours.token_ids != theirs.token_ids or different:
            first = different[0] if different else 0
            raise ParityError(
                f"{place}: not the bits that it has alone; token {first} is {ours.token_ids[first]} with "
                f"{(ours.logprobs or [])[first]}, and {theirs.token_ids[first]} with {(theirs.logprobs or [])[first]} "
                "alone"
            )
