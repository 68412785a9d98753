"""What one request computed serves the next: the same tokens, less work."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SHARED = list(range(40))


def computed(engine):
    """Tokens that the model has read so far."""
    return sum(engine.executor.step_tokens)


def test_a_prompt_that_was_read_is_not_read_again(make_engine, request_of, expected, finish):
    """Only what follows the last whole page that is known; the tokens are the same."""
    engine = make_engine(page_size=4)
    for name, tail in (("first", [1, 2]), ("second", [3])):
        before = computed(engine)
        engine.add(request_of(name, SHARED + tail, max_tokens=3))
        finish(engine)
        assert engine.output(name).outputs[0].token_ids == expected(SHARED + tail, 3)
        work = computed(engine) - before
    assert work == 1 + 2
    assert engine.forget("second").metrics.cached_tokens == 40


def test_the_answer_is_part_of_the_next_prompt(make_engine, request_of, expected, finish):
    """A conversation goes on where it ended."""
    engine = make_engine(page_size=4)
    engine.add(request_of("first", SHARED, max_tokens=9))
    finish(engine)
    conversation = SHARED + engine.forget("first").outputs[0].token_ids + [5, 6]
    engine.add(request_of("second", conversation, max_tokens=2))
    finish(engine)
    output = engine.forget("second")
    assert output.metrics.cached_tokens == 48
    assert output.outputs[0].token_ids == expected(conversation, 2)


@pytest.mark.parametrize("lookahead", [1, 64])
def test_requests_that_come_together_compute_a_shared_prefix_once(make_engine, request_of, expected, finish, lookahead):
    """The others wait until the first has read it, although there is room to read it many times at once."""
    engine = make_engine(num_pages=256, page_size=4, max_num_seqs=16)
    engine.scheduler.lookahead = lookahead
    for index in range(16):
        engine.add(request_of(str(index), [*SHARED, index], max_tokens=4))
    finish(engine)
    assert computed(engine) == 40 + 16 + 16 * 3
    for index in range(16):
        assert engine.forget(str(index)).outputs[0].token_ids == expected([*SHARED, index], 4)


def test_tenants_do_not_share(make_engine, request_of, finish):
    """Not even a hint of what another salt has cached."""
    engine = make_engine(page_size=4)
    for salt in ("a", "b", ""):
        engine.add(request_of(salt, SHARED, max_tokens=1, salt=salt))
        finish(engine)
        assert engine.forget(salt).metrics.cached_tokens == 0


def test_prompts_in_the_cache_go_first(make_engine, request_of, finish):
    """Of those that wait, the one that needs the least work; the order is kept where there is nothing to gain."""
    engine = make_engine(page_size=4, max_num_seqs=1)
    engine.add(request_of("warm", SHARED, max_tokens=1))
    finish(engine)
    for name, prompt in (("b", [9]), ("c", [8]), ("hit", SHARED), ("d", [7])):
        engine.add(request_of(name, prompt, max_tokens=1))
    order = []
    while engine.has_work:
        order += [event.request_id for event in engine.step()]
    assert order == ["hit", "b", "c", "d"]


def test_prompt_logprobs_are_computed_whatever_is_cached(make_engine, request_of, finish):
    """They need the logits of every position, so a hit would leave gaps."""
    engine = make_engine(page_size=4)
    outputs = []
    for name in "ab":
        engine.add(request_of(name, SHARED, max_tokens=1, prompt_logprobs=1))
        finish(engine)
        outputs.append(engine.forget(name))
    assert outputs[0].prompt_logprobs == outputs[1].prompt_logprobs
    assert len(outputs[0].prompt_logprobs) == 40


def test_it_can_be_switched_off(make_engine, request_of, finish):
    """Then every prompt is read."""
    engine = make_engine(page_size=4, prefix_caching=False)
    for name in "ab":
        engine.add(request_of(name, SHARED, max_tokens=1))
        finish(engine)
        assert engine.forget(name).metrics.cached_tokens == 0


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_history_of_the_cache_gives_the_same_tokens(make_engine, request_of, expected, finish, data):
    """Windows and recurrent states included, under pressure, in any company."""
    engine = make_engine(
        num_pages=data.draw(st.integers(14, 40), "pages"),
        page_size=data.draw(st.sampled_from([2, 4]), "page size"),
        window=data.draw(st.sampled_from([None, 3, 9]), "window"),
        states=data.draw(st.sampled_from([0, 9]), "states"),
        host_pages=data.draw(st.sampled_from([0, 12]), "host pages"),
        max_model_len=28,
        max_num_seqs=data.draw(st.integers(1, 4), "sequences"),
        max_step_tokens=data.draw(st.integers(4, 30), "tokens"),
    )
    bases = data.draw(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=16), min_size=1, max_size=3), "bases")
    prompts = {}
    for round_ in range(3):
        for index in range(data.draw(st.integers(0, 4), "requests")):
            tail = data.draw(st.lists(st.integers(0, 96), min_size=1, max_size=5), "tail")
            prompt = data.draw(st.sampled_from(bases), "base") + tail
            prompts[f"{round_}-{index}"] = prompt
            engine.add(request_of(f"{round_}-{index}", prompt, max_tokens=6))
        for _ in range(data.draw(st.integers(0, 6), "steps")):
            if engine.has_work:
                engine.step()
                engine.cache.check()
    finish(engine)
    for name, prompt in prompts.items():
        assert engine.forget(name).outputs[0].token_ids == expected(prompt, 6)
    assert engine.cache.usage == 0
