"""What an engine does with a model, over random mixes of requests, leaves no trace in what comes out.

Each check runs requests through the real engine and holds every continuation to plain decoding of that sequence alone,
token by token: see :mod:`inference_pio.testing._plain_decoding`. It also makes sure that what it is about happened.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import torch

from inference_pio.core import Drafting, NgramProposer
from inference_pio.interfaces import PoolingParams
from inference_pio.testing._compare import ParityError, compare
from inference_pio.testing._drafts import AlwaysDraft, HalfKnowing
from inference_pio.testing._engine_run import build_engine, make_embedding_request, make_request, run_requests
from inference_pio.testing._plain_decoding import judge
from inference_pio.testing._run import hidden_whole, random_tokens

if TYPE_CHECKING:
    from inference_pio.core import Engine, Proposer
    from inference_pio.interfaces import RequestOutput
    from inference_pio.testing._load import LoadedModel

_PAGE_SIZE = 4
_STEP_TOKENS = 20
_MAX_DRAFT = 4


def check_prefix_hit(loaded: LoadedModel, *, tolerance: float = 1e-4, rounds: int = 3) -> None:
    """Prompts that share random prefixes, computed once, equal each one alone; so do continuations of one prompt.

    The cache is too small for all of them, so prefixes are evicted too. Continuations of one prompt share its pages
    until they write to them, each to a copy of its own.

    Raises:
        ParityError: They do not, or no prefix was found, or no page was copied.
    """
    draw = random.Random(2)  # noqa: S311 - test data, not a secret
    engine, longest = _sharing_engine(loaded, max_num_seqs=6)
    prefixes = [random_tokens(loaded, longest, seed=seed) for seed in range(2)]
    for number in range(rounds):
        requests = []
        for index in range(5):
            shared = draw.choice(prefixes)[: draw.randint(longest // 4, longest)]
            own = random_tokens(loaded, draw.randint(1, 5), seed=draw.getrandbits(32))
            n = draw.choice((1, 1, 3))  # greedy continuations of one prompt would all be the same
            seed = None if n == 1 else draw.getrandbits(32)
            requests.append(make_request(f"{number}.{index}", [*shared, *own], max_tokens=6, seed=seed, n=n))
        for request, output in zip(requests, run_requests(engine, requests, seed=number), strict=True):
            judge("shared prefixes", loaded, request, output, tolerance=tolerance)
    if engine.cache.stats.hits == 0 or engine.cache.stats.copies == 0:
        raise ParityError(f"nothing was shared, so nothing is proved: {engine.cache.stats}")


def check_preempted(loaded: LoadedModel, *, tolerance: float = 1e-4) -> None:
    """Sequences that had to give their pages back and were computed again equal undisturbed ones.

    Raises:
        ParityError: They do not, or none was preempted.
    """
    page_size, num_pages = _pages(loaded, 2, 32)
    max_tokens = max(14, 3 * page_size)
    num_pages = max(num_pages, 6)
    requests = [
        make_request(
            str(index),
            random_tokens(loaded, 3 + 2 * (index % 4), seed=index),
            max_tokens=max_tokens,
            seed=index if index % 2 else None,
        )
        for index in range(5)
    ]
    for prefix_caching in (False, True):
        engine = build_engine(
            loaded,
            num_pages=num_pages,
            page_size=page_size,
            max_model_len=max_tokens + 10,
            max_num_seqs=5,
            max_step_tokens=_STEP_TOKENS,
            prefix_caching=prefix_caching,
        )
        outputs = run_requests(engine, requests)
        if engine.scheduler.num_preemptions == 0:
            raise ParityError("no sequence was preempted, so nothing is proved")
        for request, output in zip(requests, outputs, strict=True):
            judge("after preemption", loaded, request, output, tolerance=tolerance)


def check_speculative(loaded: LoadedModel, *, tolerance: float = 1e-4) -> None:
    """Whatever is drafted, greedy and sampled continuations equal those of plain decoding, draw for draw.

    Drafts come from the text itself, and from one who knows what is to come and lies at random.

    Raises:
        ParityError: They do not, or no draft was accepted, or none was rejected.
    """
    requests = []
    for index in range(4):
        prompt = random_tokens(loaded, 4 + 3 * index, seed=index) * 2
        requests.append(make_request(str(index), prompt, max_tokens=10, seed=index if index % 2 else None))
    texts: list[list[int]] = []
    page_size, num_pages = _pages(loaded, _PAGE_SIZE, 128)

    def run(proposer: Proposer | None) -> tuple[float, float]:
        engine = build_engine(
            loaded,
            num_pages=num_pages,
            page_size=page_size,
            max_model_len=48,
            max_num_seqs=4,
            max_step_tokens=_STEP_TOKENS,
            drafting=proposer and Drafting(proposer, AlwaysDraft(_MAX_DRAFT), max_step_tokens=_STEP_TOKENS),
        )
        for request, output in zip(requests, run_requests(engine, requests), strict=True):
            what = f"drafts of {proposer.name!r}" if proposer else "no drafts"
            judge(what, loaded, request, output, tolerance=tolerance)
            texts.append([*request.prompt_token_ids, *output.outputs[0].token_ids])
        return engine.metrics.accepted_tokens.total, engine.metrics.draft_tokens.total

    run(None)
    accepted, drafted = run(HalfKnowing(list(texts), vocab_size=loaded.shape.vocab_size))
    if not 0 < accepted < drafted:
        raise ParityError(f"{accepted:g} of {drafted:g} drafts were accepted, so nothing is proved")
    run(NgramProposer(min_ngram=1))


def check_embed(loaded: LoadedModel, *, tolerance: float = 1e-4, rounds: int = 2) -> None:
    """Embeddings equal the pooled hidden states of each prompt alone, in chunks, beside others and continuations.

    Means and last positions of prompts that share random prefixes, in a cache too small for all of them: a prefix that
    is found there saves the last position its way, and takes nothing from a mean.

    Raises:
        ParityError: They do not, or no prefix was found.
    """
    draw = random.Random(5)  # noqa: S311 - test data, not a secret
    engine, longest = _sharing_engine(loaded, max_num_seqs=4)
    shared = random_tokens(loaded, longest, seed=0)
    for number in range(rounds):
        requests = []
        for index in range(8):
            own = random_tokens(loaded, draw.randint(1, 9), seed=draw.getrandbits(32))
            prompt = [*shared[: draw.randint(0, longest)], *own]
            name = f"{number}.{index}"
            if index % 4 == 3:
                requests.append(make_request(name, prompt, max_tokens=6))
            else:
                params = PoolingParams(pooling="mean" if index % 2 else "last", normalize=bool(draw.getrandbits(1)))
                requests.append(make_embedding_request(name, prompt, params))
        for request, output in zip(requests, run_requests(engine, requests, seed=number), strict=True):
            if isinstance(request.params, PoolingParams):
                _judge_embedding(loaded, request.params, output, tolerance=tolerance)
            else:
                judge("beside embeddings", loaded, request, output, tolerance=tolerance)
    if engine.cache.stats.hits == 0:
        raise ParityError(f"nothing was shared, so nothing is proved: {engine.cache.stats}")


def _judge_embedding(loaded: LoadedModel, params: PoolingParams, output: RequestOutput, *, tolerance: float) -> None:
    place = f"{params.pooling} of {len(output.prompt_token_ids)} hidden states, {output.request_id!r}"
    if output.embedding is None:
        raise ParityError(f"{place}: {output.error}")
    rows = hidden_whole(loaded, output.prompt_token_ids).cpu().double()
    expected = rows.mean(dim=0) if params.pooling == "mean" else rows[-1]
    if params.normalize:
        expected /= expected.norm()
    compare(place, torch.from_numpy(output.embedding)[None], expected[None], tolerance=tolerance)


def _sharing_engine(loaded: LoadedModel, *, max_num_seqs: int) -> tuple[Engine, int]:
    """An engine that keeps prefixes in a cache too small for many, and the length of the longest to share.

    A sequence may be twice as long.
    """
    page_size, num_pages = _pages(loaded, _PAGE_SIZE, 128)
    longest = min(max(24, 3 * page_size), loaded.shape.max_position // 2)
    engine = build_engine(
        loaded,
        num_pages=num_pages,
        page_size=page_size,
        max_model_len=2 * longest,
        max_num_seqs=max_num_seqs,
        max_step_tokens=_STEP_TOKENS,
        prefix_caching=True,
    )
    return engine, longest


def _pages(loaded: LoadedModel, page_size: int, num_tokens: int) -> tuple[int, int]:
    """A page size that the model's executor takes, ``page_size`` or more, and how many hold ``num_tokens`` tokens."""
    page_size = -(-page_size // loaded.page_multiple) * loaded.page_multiple
    return page_size, -(-num_tokens // page_size)
