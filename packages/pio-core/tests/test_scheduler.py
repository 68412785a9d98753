"""Order, fairness and preemption, seen through the engine."""

import random

import pytest

from inference_pio.interfaces import DoesNotFitError, FinishReason, QueueFullError


def first_tokens(engine):
    """Ids of requests in the order of their first tokens."""
    order = []
    while engine.has_work:
        order += [event.request_id for event in engine.step() if event.request_id not in order]
    return order


def test_first_come_first_served(make_engine, request_of):
    """Priorities do not count under this policy."""
    engine = make_engine(max_num_seqs=1)
    for index in range(5):
        engine.add(request_of(str(index), [index], max_tokens=2, priority=-index))
    assert first_tokens(engine) == ["0", "1", "2", "3", "4"]


def test_by_priority_then_arrival(make_engine, request_of):
    """The lowest number first."""
    engine = make_engine(max_num_seqs=1, policy="priority")
    for index, priority in enumerate([2, 0, 1, 0, 2]):
        engine.add(request_of(str(index), [index], max_tokens=2, priority=priority))
    assert first_tokens(engine) == ["1", "3", "2", "0", "4"]


def test_a_more_important_request_takes_a_seat(make_engine, request_of, expected, finish):
    """It preempts the least important one that runs, which goes on later as if nothing had happened."""
    engine = make_engine(max_num_seqs=2, policy="priority")
    for name in ("a", "b"):
        engine.add(request_of(name, [ord(name) % 90], max_tokens=10, priority=5))
    engine.step()
    engine.add(request_of("urgent", [1], max_tokens=3, priority=0))
    assert {event.request_id for event in engine.step()} == {"a", "urgent"}
    finish(engine)
    assert engine.output("b").metrics.num_preemptions == 1
    for name in ("a", "b"):
        assert engine.forget(name).outputs[0].token_ids == expected([ord(name) % 90], 10)


@pytest.mark.parametrize("max_overtakes", [0, 3, 20])
def test_nobody_starves(make_engine, request_of, max_overtakes):
    """However many more important requests keep coming, at most ``max_overtakes`` later ones go before."""
    engine = make_engine(max_num_seqs=1, policy="priority", max_overtakes=max_overtakes)
    engine.add(request_of("running", [1], max_tokens=2))
    engine.step()
    engine.add(request_of("humble", [2], max_tokens=2, priority=9))
    order, count = [], 0
    while "humble" not in order:
        for _ in range(2):
            engine.add(request_of(f"important-{count}", [3], max_tokens=1, priority=0))
            count += 1
        order += [event.request_id for event in engine.step() if event.request_id not in order]
    before = order.index("humble")
    assert before <= max_overtakes + 1  # and the one that ran when it came
    if max_overtakes:
        assert before > 1


def test_what_waited_longest_is_not_preempted_for_a_priority(make_engine, request_of):
    """Or it would be next for ever and never done."""
    engine = make_engine(max_num_seqs=1, policy="priority", max_overtakes=2)
    engine.add(request_of("humble", [2], max_tokens=6, priority=9))
    for index in range(3):
        engine.add(request_of(str(index), [3], max_tokens=1, priority=0))
    finished = []
    for index in range(3, 30):
        engine.add(request_of(str(index), [3], max_tokens=1, priority=0))
        finished += [event.request_id for event in engine.step() if event.finish_reason]
    assert finished.index("humble") == 2
    assert engine.output("humble").metrics.num_preemptions == 0


def test_reordering_for_the_cache_has_a_bound(make_engine, request_of, finish):
    """Prompts that are in the cache pass one that is not, but not for ever."""
    engine = make_engine(page_size=4, max_num_seqs=1, max_overtakes=5)
    warm = list(range(20))
    engine.add(request_of("warm", warm, max_tokens=1))
    finish(engine)
    engine.add(request_of("first", [1], max_tokens=1))
    engine.add(request_of("cold", [2], max_tokens=1))
    order, count = [], 0
    while "cold" not in order:
        for _ in range(3):
            engine.add(request_of(f"hit-{count}", warm, max_tokens=1))
            count += 1
        order += [event.request_id for event in engine.step()]
    assert order.index("cold") <= 5 + 1


@pytest.mark.parametrize("host_pages", [0, 64])
@pytest.mark.parametrize("prefix_caching", [False, True])
def test_preempted_requests_go_on_undisturbed(make_engine, request_of, expected, finish, host_pages, prefix_caching):
    """Recomputed or swapped: the same tokens; the oldest is never the one that gives way."""
    engine = make_engine(
        num_pages=12, page_size=2, host_pages=host_pages, prefix_caching=prefix_caching, max_model_len=20
    )
    for name in "abcd":
        engine.add(request_of(name, [ord(name) % 90, 1], max_tokens=12))
    finish(engine)
    outputs = {name: engine.forget(name) for name in "abcd"}
    for name, output in outputs.items():
        assert output.outputs[0].token_ids == expected([ord(name) % 90, 1], 12)
    assert outputs["a"].metrics.num_preemptions == 0
    assert sum(output.metrics.num_preemptions for output in outputs.values()) == engine.scheduler.num_preemptions > 0
    read_again = sum(engine.executor.step_tokens) - 4 * 13
    assert (read_again == 0) == (host_pages > 0)


def test_the_queue_has_a_bound(make_engine, request_of, finish):
    """A request beyond it is refused at once, with the way out; what waits is not disturbed."""
    engine = make_engine(max_num_seqs=1, max_waiting=2)
    engine.add(request_of("runs", [1], max_tokens=2))
    engine.step()
    for name in "ab":
        engine.add(request_of(name, [1], max_tokens=2))
    with pytest.raises(QueueFullError, match=r"2 requests wait already, and the queue holds 2 \(try again later"):
        engine.add(request_of("c", [1]))
    finish(engine)
    engine.add(request_of("c", [1], max_tokens=1))
    finish(engine)
    assert engine.forget("c").finished


def test_a_request_that_can_never_finish_is_refused(make_engine, request_of):
    """A prompt longer than the pool, or a prompt and answer that are."""
    engine = make_engine(num_pages=4, page_size=4, max_model_len=100)
    for prompt, tokens in (([1] * 30, 1), ([1] * 10, 7)):
        with pytest.raises(DoesNotFitError, match=r"needs \d+ tokens of cache, and the cache holds 16"):
            engine.add(request_of("a", prompt, max_tokens=tokens))
    assert not engine.has_work


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_two_thousand_requests(make_engine, request_of, expected, policy):  # noqa: PLR0912 - a client's whole life
    """Random lengths, cancels, bad parameters, deadlines, a full queue, a small cache: each ends, nothing is lost."""
    draw = random.Random(7)  # noqa: S311 - a load, not a secret
    engine = make_engine(
        num_pages=60, page_size=4, max_model_len=120, max_num_seqs=12, max_step_tokens=64, policy=policy,
        max_waiting=200, host_pages=10,
    )  # fmt: skip
    bases = [[draw.randrange(97) for _ in range(24)] for _ in range(6)]
    wanted, cancelled, refused, late = {}, set(), 0, set()
    for index in range(2000):
        name = str(index)
        prompt = draw.choice(bases)[: draw.randint(0, 24)] + [draw.randrange(97) for _ in range(draw.randint(1, 9))]
        count = draw.choice([1, 2, 5, 30])
        kind = draw.random()
        if kind < 0.05:
            with pytest.raises((DoesNotFitError, ValueError)):
                engine.add(request_of(name, draw.choice([[], [97], [1] * 130]), max_tokens=count))
            continue
        timeout = 1e-9 if kind < 0.1 else None
        try:
            engine.add(request_of(name, prompt, max_tokens=count, priority=draw.randrange(3), timeout_s=timeout))
        except QueueFullError:
            refused += 1
            for _ in range(20):
                engine.step()
            engine.add(request_of(name, prompt, max_tokens=count, timeout_s=timeout))
        wanted[name] = (prompt, count)
        if timeout is not None:
            late.add(name)
        for _ in range(draw.choice([0, 0, 1, 2])):
            if engine.has_work:
                engine.step()
        if draw.random() < 0.1:
            victim = draw.choice(sorted(wanted))
            if not engine.output(victim).finished:
                engine.abort(victim)
                cancelled.add(victim)
    while engine.has_work:
        engine.step()
        engine.cache.check()
    for name, (prompt, count) in wanted.items():
        output = engine.forget(name).outputs[0]
        if name in cancelled:
            assert output.finish_reason in {FinishReason.ABORT, FinishReason.TIMEOUT}
        elif name in late:
            assert output.finish_reason is FinishReason.TIMEOUT
        else:
            assert output.finish_reason is FinishReason.LENGTH
            assert output.token_ids == expected(prompt, count)
    assert engine.cache.usage == 0
    assert len(wanted) > 1800
    assert engine.scheduler.num_preemptions > 0
    assert min(refused, len(late), len(cancelled)) > 10
