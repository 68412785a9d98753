"""What an engine does with a model, over random mixes of requests, leaves no trace in what comes out.

Each check runs requests through the real engine and holds every continuation to plain decoding of that sequence alone,
token by token: see :mod:`inference_pio.testing._plain_decoding`. It also makes sure that what it is about happened.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from inference_pio.core import Drafting, NgramProposer
from inference_pio.testing._compare import ParityError
from inference_pio.testing._drafts import AlwaysDraft, HalfKnowing
from inference_pio.testing._engine_run import build_engine, make_request, run_requests
from inference_pio.testing._plain_decoding import judge
from inference_pio.testing._run import random_tokens

if TYPE_CHECKING:
    from inference_pio.core import Proposer
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
    page_size, num_pages = _pages(loaded, _PAGE_SIZE, 128)
    longest = min(max(24, 3 * page_size), loaded.shape.max_position // 2)
    prefixes = [random_tokens(loaded, longest, seed=seed) for seed in range(2)]
    engine = build_engine(
        loaded,
        num_pages=num_pages,
        page_size=page_size,
        max_model_len=2 * longest,
        max_num_seqs=6,
        max_step_tokens=_STEP_TOKENS,
        prefix_caching=True,
    )
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


def _pages(loaded: LoadedModel, page_size: int, num_tokens: int) -> tuple[int, int]:
    """A page size that the model's executor takes, ``page_size`` or more, and how many hold ``num_tokens`` tokens."""
    page_size = -(-page_size // loaded.page_multiple) * loaded.page_multiple
    return page_size, -(-num_tokens // page_size)
