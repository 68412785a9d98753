"""Requests through the real engine over a loaded model, on token ids, with hand-picked sizes."""

from __future__ import annotations

import random
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

from inference_pio.core import Engine
from inference_pio.core.torch_executor import TorchExecutor
from inference_pio.interfaces import Request, SamplingParams
from inference_pio.testing._compare import ParityError
from inference_pio.testing._run import paged_cache

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from inference_pio.interfaces import Executor, PoolingParams, RequestOutput
    from inference_pio.testing._load import LoadedModel


def build_engine(
    loaded: LoadedModel,
    *,
    num_pages: int,
    page_size: int,
    max_model_len: int,
    **options: Any,  # noqa: ANN401 - passed on as they are
) -> Engine:
    """An engine over ``loaded`` and a paged cache of its own; ``options`` as :class:`Engine` takes them.

    The cache of the torch executor is full of stale values.
    """
    make = loaded.executor or partial(_torch_executor, loaded)
    executor = make(num_pages=num_pages, page_size=page_size, max_model_len=max_model_len)
    return Engine(
        executor,
        None,
        vocab_size=loaded.shape.vocab_size,
        eos_token_ids=loaded.shape.eos_token_ids,
        max_model_len=max_model_len,
        **options,
    )


def _torch_executor(loaded: LoadedModel, *, num_pages: int, page_size: int, max_model_len: int) -> Executor:
    return TorchExecutor(
        loaded.module,
        paged_cache(loaded, num_pages=num_pages, page_size=page_size),
        hidden_size=loaded.shape.hidden_size,
        max_model_len=max_model_len,
        device=loaded.device,
        dtype=loaded.dtype,
        report=loaded.report,
    )


def make_request(
    name: str, prompt: Iterable[int], *, max_tokens: int, seed: int | None = None, n: int = 1, logprobs: int = 0
) -> Request:
    """A request for exactly ``max_tokens`` tokens with their log-probabilities: greedy, or sampled with ``seed``."""
    params = SamplingParams(
        n=n,
        temperature=0.0 if seed is None else 1.0,
        seed=seed,
        max_tokens=max_tokens,
        ignore_eos=True,
        logprobs=logprobs,
    )
    return Request(request_id=name, prompt_token_ids=tuple(prompt), params=params)


def make_embedding_request(name: str, prompt: Iterable[int], params: PoolingParams) -> Request:
    """A request to embed a prompt."""
    return Request(request_id=name, prompt_token_ids=tuple(prompt), params=params)


def run_requests(engine: Engine, requests: Sequence[Request], *, seed: int = 0) -> list[RequestOutput]:
    """The outputs of ``requests``, which arrive a few at a time, at random, while others run.

    Raises:
        ParityError: The engine is idle afterwards, and still holds pages.
    """
    draw = random.Random(seed)  # noqa: S311 - a test layout, not a secret
    waiting = deque(requests)
    while waiting or engine.has_work:
        for _ in range(min(len(waiting), draw.randint(0 if engine.has_work else 1, 3))):
            engine.add(waiting.popleft())
        engine.step()
    engine.cache.check()
    if engine.cache.usage > 0:
        raise ParityError(f"{engine.cache.usage:.1%} of the cache are in use after the last request")
    return [engine.forget(request.request_id) for request in requests]
