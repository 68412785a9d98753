"""What an engine brings beside plain decoding, through ``LLM`` on tiny random checkpoints, held to transformers."""

from __future__ import annotations

import asyncio
import os
import pty
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
import torch
import transformers

from inference_pio.core import LLM, SamplingParams
from inference_pio.interfaces import (
    BeamSearchParams,
    DoesNotFitError,
    EngineError,
    FinishReason,
    InvalidRequestError,
    ModelNotFoundError,
    PromptTooLongError,
    StructuredOutputs,
    UnsupportedError,
)

GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
SAMPLED = SamplingParams(temperature=0.8, top_p=0.9, seed=5, max_tokens=24, ignore_eos=True)
SHARED = [(7 * i) % 120 + 3 for i in range(70)]
POOL = 10 * 16 * 768  # bytes of ten pages of the tiny Llama in float32
PROMPTS = [[5, 17, 99, 3], [7], list(range(3, 60)), SHARED, [*SHARED, 9, 9], [100, 100, 100]]


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def tiny(request, tiny_checkpoint):
    """A tiny checkpoint, and transformers' model of it."""
    folder = tiny_checkpoint(request.param)
    return folder, reference(folder)


def reference(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


@pytest.fixture
def llama(tiny_checkpoint):
    return tiny_checkpoint("llama")


def tokens_of(outputs):
    return [completion.token_ids for output in outputs for completion in output.outputs]


def bits_of(outputs):
    """Tokens and log-probabilities, exactly."""
    return [
        (completion.token_ids, [[(t, c.logprob, c.rank) for t, c in entry.items()] for entry in completion.logprobs])
        for output in outputs
        for completion in output.outputs
    ]


def oracle_greedy(model, prompt, count):
    model.generation_config.eos_token_id = None
    ids = torch.tensor([prompt])
    options = {"max_new_tokens": count, "do_sample": False, "pad_token_id": 0}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :].tolist()


def run(coroutine):
    """With a bound, so that a test that hangs fails."""

    async def bounded():
        async with asyncio.timeout(60):
            return await coroutine

    return asyncio.run(bounded())


# Beam search


@pytest.mark.parametrize(("width", "penalty"), [(1, 1.0), (3, 0.5), (5, 2.0)])
@pytest.mark.parametrize("eos", [2, None])
def test_beam_search_equals_transformers(tiny, width, penalty, eos):
    """The same continuations in the same order, with the same scores; several prompts at once."""
    folder, model = tiny
    llm = LLM(folder, dtype="float32")
    params = BeamSearchParams(beam_width=width, max_tokens=10, length_penalty=penalty, ignore_eos=eos is None)
    model.generation_config.eos_token_id = eos
    for prompt, output in zip(PROMPTS[:3], llm.beam_search(PROMPTS[:3], params), strict=True):
        ids = torch.tensor([prompt])
        wanted = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            num_beams=width,
            num_return_sequences=width,
            max_new_tokens=10,
            length_penalty=penalty,
            early_stopping=False,
            do_sample=False,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
        )
        rows = [row[len(prompt) :].tolist() for row in wanted.sequences]
        # The reference fills up after an end token; ours end with it.
        rows = [row[: row.index(2) + 1] if eos is not None and 2 in row else row for row in rows]
        assert [completion.token_ids for completion in output.outputs] == rows
        if width > 1:  # with one beam the reference decodes greedily, without scores of sequences
            scores = [one.cumulative_logprob / len(one.token_ids) ** penalty for one in output.outputs]
            assert scores == pytest.approx(wanted.sequences_scores.tolist(), abs=1e-4)
    assert llm._engine.cache.usage == 0


# Log-probabilities


@pytest.mark.parametrize("options", [{}, {"max_num_batched_tokens": 9, "max_num_seqs": 8}])
def test_log_probabilities_under_chunks_and_prefix_hits(tiny, options):
    """Text and prompt positions equal transformers' log-softmax, whatever part of the prompt was in the cache."""
    folder, model = tiny
    llm = LLM(folder, dtype="float32", **options)
    llm.generate([SHARED], GREEDY)
    for prompt_logprobs in (None, 2):
        params = SamplingParams(temperature=0.0, max_tokens=5, logprobs=3, prompt_logprobs=prompt_logprobs)
        for output in llm.generate(PROMPTS[2:5], params):
            completion = output.outputs[0]
            tokens = output.prompt_token_ids + completion.token_ids
            with torch.no_grad():
                wanted = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
            entries = (output.prompt_logprobs[1:] if prompt_logprobs else []) + completion.logprobs
            first = len(tokens) - 1 - len(entries)
            assert first == (0 if prompt_logprobs else len(output.prompt_token_ids) - 1)
            for position, entry in enumerate(entries, start=first):
                assert tokens[position + 1] in entry
                for token_id, candidate in entry.items():
                    assert candidate.logprob == pytest.approx(float(wanted[position, token_id]), abs=1e-4)
            if prompt_logprobs is None and output.prompt_token_ids[:70] == SHARED:
                assert output.metrics.cached_tokens >= 64


def test_best_of_returns_the_likeliest(llama):
    """The ``n`` that come back are those of all ``best_of`` with the highest log-probability, best first."""
    llm = LLM(llama, dtype="float32")
    options = {"temperature": 1.0, "seed": 3, "max_tokens": 8, "ignore_eos": True}
    (everything,) = llm.generate([PROMPTS[0]], SamplingParams(n=6, logprobs=0, **options))
    (best,) = llm.generate([PROMPTS[0]], SamplingParams(n=2, best_of=6, **options))
    ranked = sorted(everything.outputs, key=lambda one: -one.cumulative_logprob)
    assert [one.token_ids for one in best.outputs] == [one.token_ids for one in ranked[:2]]
    assert [one.index for one in best.outputs] == [0, 1]


@pytest.mark.parametrize("filtered", [{"min_p": 0.2}, {"typical_p": 0.3}, {"min_p": 1.0}, {"typical_p": 1e-6}])
def test_filters_keep_what_they_say(llama, filtered):
    """Every token that min-p and typical sampling choose is in the set that the log-probabilities define."""
    llm = LLM(llama, dtype="float32")
    params = SamplingParams(temperature=1.0, seed=1, max_tokens=20, ignore_eos=True, logprobs=20, **filtered)
    model = reference(llama)
    for output in llm.generate(PROMPTS[:3], params):
        tokens = output.prompt_token_ids + output.outputs[0].token_ids
        with torch.no_grad():
            logprobs = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
        for position in range(len(output.prompt_token_ids) - 1, len(tokens) - 1):
            row, chosen = logprobs[position], tokens[position + 1]
            if "min_p" in filtered:
                assert row[chosen].exp() >= filtered["min_p"] * row.max().exp() - 1e-5
            else:
                surprise = (-row - (-(row.exp() * row).sum())).abs()
                before = row.exp()[surprise < surprise[chosen] - 1e-4].sum()
                assert before < filtered["typical_p"] + 1e-5


# Speculation


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("draft", ["ngram", "itself", "other"])
def test_speculation_changes_nothing(tiny, tiny_checkpoint, draft, params):
    """The same tokens with and without, for an n-gram, for the model itself and for a model that guesses badly."""
    folder, _ = tiny
    small = tiny_checkpoint("llama", seed=9, num_hidden_layers=1)
    plain = LLM(folder, dtype="float32").generate(PROMPTS, params)
    speculative = {"ngram": "ngram", "itself": folder, "other": small}[draft]
    llm = LLM(folder, dtype="float32", speculative=speculative, num_speculative_tokens=3)
    force_drafts(llm)
    assert tokens_of(llm.generate(PROMPTS, params)) == tokens_of(plain)
    if draft != "ngram":
        assert llm.metrics.draft_tokens.values[""] > 0
    if draft == "itself":
        assert llm.metrics.accepted_tokens.values[""] == llm.metrics.draft_tokens.values[""]
    assert llm._engine.cache.usage == 0


def force_drafts(llm, count=3):
    """Draft always: whether it pays is measured by the clock, and a test has none."""
    llm._engine._drafting.control.draft_lengths = lambda keys, **_: [count] * len(keys)


def test_a_draft_model_that_fails_ends_its_requests_only(llama):
    """The error comes up, nothing stays behind, and the next call works."""
    llm = LLM(llama, dtype="float32", speculative=llama)
    force_drafts(llm)
    step, calls = llm._draft.step, []

    def fails_once(batch):
        calls.append(batch)
        if len(calls) == 2:
            raise RuntimeError("planted failure")
        return step(batch)

    llm._draft.step = fails_once
    with pytest.raises(RuntimeError, match="planted failure"):
        llm.generate(PROMPTS, GREEDY)
    assert not llm._engine.has_work
    assert llm._engine.cache.usage == 0
    assert tokens_of(llm.generate(PROMPTS, GREEDY)) == tokens_of(LLM(llama, dtype="float32").generate(PROMPTS, GREEDY))


# Determinism, caches, windows


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_deterministic_gives_the_same_bits(tiny, dtype, params):
    """Alone, in company, in other chunks, after a prefix hit: tokens and log-probabilities are the same bits."""
    folder, _ = tiny
    params = SamplingParams(**{**vars(params), "logprobs": 5})
    wanted = []
    for prompt in PROMPTS:
        wanted += bits_of(
            LLM(folder, dtype=dtype, deterministic=True, enable_prefix_caching=False).generate([prompt], params)
        )
    llm = LLM(folder, dtype=dtype, deterministic=True)
    assert bits_of(llm.generate(PROMPTS, params)) == wanted
    again = llm.generate(PROMPTS, params)
    assert bits_of(again) == wanted
    assert again[4].metrics.cached_tokens >= 64
    small = LLM(folder, dtype=dtype, deterministic=True, max_num_batched_tokens=7, max_num_seqs=3)
    assert bits_of(small.generate(PROMPTS, params)) == wanted


def test_without_prefix_caching_nothing_is_found(llama):
    """And the tokens are the same."""
    with_cache, without = LLM(llama, dtype="float32"), LLM(llama, dtype="float32", enable_prefix_caching=False)
    wanted = tokens_of(with_cache.generate(PROMPTS, GREEDY))
    for _ in range(2):
        outputs = without.generate(PROMPTS, GREEDY)
        assert tokens_of(outputs) == wanted
        assert all(output.metrics.cached_tokens == 0 for output in outputs)
    assert with_cache.generate([SHARED], GREEDY)[0].metrics.cached_tokens == 64


def test_a_salt_keeps_prefixes_apart(llama):
    """Tenants do not see what others have cached, not even by the clock."""
    llm = LLM(llama)
    llm.generate([SHARED], GREEDY, cache_salt="a")
    assert llm.generate([SHARED], GREEDY, cache_salt="b")[0].metrics.cached_tokens == 0
    assert llm.generate([SHARED], GREEDY, cache_salt="a")[0].metrics.cached_tokens == 64


@pytest.mark.parametrize("layers", [[0, 1, 2], [1, 2], [2]])
def test_windows_equal_transformers_and_give_pages_back(tiny_checkpoint, layers):
    """Sliding layers beside full ones: transformers' tokens, and fewer pages than positions."""
    kinds = ["sliding_attention" if index in layers else "full_attention" for index in range(3)]
    folder = tiny_checkpoint("qwen3", use_sliding_window=True, sliding_window=20, layer_types=kinds)
    llm = LLM(folder, dtype="float32", max_num_seqs=4, max_num_batched_tokens=32)
    prompts = [SHARED * 2, list(range(3, 60)), [5]]
    params = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)
    most = {}
    for _ in range(2):
        step = llm._executor.step

        def watching(batch, step=step):
            for index in range(len(llm._executor.cache_groups)):
                tables = batch if index == 0 else batch.others[index - 1]
                most[index] = max(most.get(index, 0), int((tables.block_tables >= 0).sum(axis=1).max()))
            return step(batch)

        llm._executor.step = watching
        outputs = llm.generate(prompts, params)
        model = reference(folder)
        assert tokens_of(outputs) == [oracle_greedy(model, prompt, 40) for prompt in prompts]
    groups = {group.kind: index for index, group in enumerate(llm._executor.cache_groups)}
    assert most[groups["window"]] <= 5  # of 16 tokens: the window, and the chunk of 32 that is read
    if "full" in groups:
        assert most[groups["full"]] == -(-179 // 16)
    assert llm._engine.cache.usage == 0


def test_int8_cache_runs(tiny):
    """Keys and values in int8: full length, and pages that come back."""
    llm = LLM(tiny[0], dtype="float32", kv_cache_dtype="int8")
    for params in (GREEDY, SAMPLED):
        assert [len(tokens) for tokens in tokens_of(llm.generate(PROMPTS, params))] == [24] * len(PROMPTS)
    assert llm._engine.cache.usage == 0


# Many prompts, priorities, deadlines, interruptions, failures


def test_priority_orders_the_queue(llama):
    """With one seat, the lowest number goes first, whatever its place."""
    llm = LLM(llama, scheduling_policy="priority", max_num_seqs=1)
    outputs = llm.generate([[9], [8], [7], [6]], GREEDY, priority=[3, 1, 2, 0])
    waited = [output.metrics.queue_s for output in outputs]
    assert sorted(range(4), key=waited.__getitem__) == [3, 1, 2, 0]


def test_a_deadline_ends_with_what_there_is(llama):
    """Late prompts end as such, with the tokens they have, and the LLM goes on."""
    llm = LLM(llama, max_num_seqs=2)
    outputs = llm.generate(PROMPTS, SamplingParams(temperature=0.0, max_tokens=180, ignore_eos=True), timeout_s=0.1)
    reasons = {output.outputs[0].finish_reason for output in outputs}
    assert FinishReason.TIMEOUT in reasons
    assert all(output.finished and output.error is None for output in outputs)
    assert llm._engine.cache.usage == 0
    assert len(tokens_of(llm.generate(PROMPTS, GREEDY, timeout_s=1000.0))[0]) == 24


MANY = """
import sys
from inference_pio.core import LLM, SamplingParams
llm = LLM(sys.argv[1], max_num_seqs=128)
prompts = [[3 + i % 120, 3 + i // 120] for i in range(1500)]
outputs = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=1 + 2, ignore_eos=True))
assert [o.prompt_token_ids for o in outputs] == prompts
assert all(len(o.outputs[0].token_ids) == 3 for o in outputs)
print("done", llm._engine.cache.usage)
"""


def test_many_prompts_with_a_bar_on_a_terminal(llama):
    """1,500 prompts in one call, all answered; the bar counts them on a terminal."""
    ours, theirs = pty.openpty()
    shown = bytearray()

    def read():
        while True:
            try:
                data = os.read(ours, 4096)
            except OSError:  # the other end is closed
                return
            if not data:
                return
            shown.extend(data)

    reader = threading.Thread(target=read)
    command = [sys.executable, "-c", MANY, str(llama)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=theirs, env={**os.environ, "COLUMNS": "100"}
    ) as child:
        os.close(theirs)
        reader.start()
        out, _ = child.communicate(timeout=120)
    reader.join(timeout=10)
    os.close(ours)
    assert (child.returncode, out.decode().strip()) == (0, "done 0.0"), shown.decode()
    assert "1500/1500" in shown.decode()
    assert "tokens/s" in shown.decode()


def test_many_prompts_without_a_terminal(llama, capfd):
    """Nothing on either stream; a callback hears of each prompt."""
    llm = LLM(llama, max_num_seqs=64)
    heard = []
    params = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True)
    outputs = llm.generate([[3 + i % 120] for i in range(300)], params, progress=lambda *now: heard.append(now))
    assert len(outputs) == 300
    assert heard == [(done, 300) for done in range(1, 301)]
    llm.generate([[3 + i % 120] for i in range(20)], params)
    assert capfd.readouterr() == ("", "")


def test_failures_are_outputs_where_asked(llama):
    """A step that fails ends its prompts with the reason; those that come later are served, and so are later calls."""
    llm = LLM(llama, dtype="float32", max_num_seqs=2)
    wanted = tokens_of(llm.generate(PROMPTS, GREEDY))
    step, calls = llm._executor.step, []

    def fails_once(batch):
        calls.append(batch)
        if len(calls) == 3:
            raise RuntimeError("planted failure")
        return step(batch)

    llm._executor.step = fails_once
    outputs = llm.generate(PROMPTS, GREEDY, raise_errors=False)
    failed = [output for output in outputs if output.error is not None]
    assert len(failed) == 2
    for output in failed:
        assert "RuntimeError: planted failure" in str(output.error)
        assert output.outputs[0].finish_reason is FinishReason.ERROR
    assert [t for t, o in zip(tokens_of(outputs), outputs, strict=True) if o.error is None] == [
        t for t, o in zip(wanted, outputs, strict=True) if o.error is None
    ]
    calls.clear()
    with pytest.raises(RuntimeError, match="planted failure"):
        llm.generate(PROMPTS, GREEDY)
    assert tokens_of(llm.generate(PROMPTS, GREEDY)) == wanted
    assert llm._engine.cache.usage == 0


# Asynchronous use


def test_an_llm_runs_asynchronously(llama):
    """Requests made by the LLM go through its AsyncEngine; the texts are the synchronous ones."""
    wanted = tokens_of(LLM(llama, dtype="float32").generate(PROMPTS, GREEDY))
    beams = LLM(llama, dtype="float32").beam_search(PROMPTS[0], BeamSearchParams(beam_width=3))
    llm = LLM(llama, dtype="float32", max_num_seqs=3)

    async def main():
        async with llm.start_async(max_waiting=2) as engine:
            requests = [llm.make_request(prompt, GREEDY) for prompt in PROMPTS]
            streams = await asyncio.gather(*(submit(engine, request) for request in requests))
            assert tokens_of(streams) == wanted
            found = await submit(engine, llm.make_request(PROMPTS[0], BeamSearchParams(beam_width=3)))
            assert tokens_of([found]) == tokens_of(beams)
            with pytest.raises(PromptTooLongError, match="256 tokens"):
                await submit(engine, llm.make_request([1] * 256, GREEDY))
            for use in (llm.generate, llm.stream):
                with pytest.raises(EngineError, match="runs asynchronously since start_async"):
                    use([1, 2], GREEDY)
            with pytest.raises(EngineError, match="runs asynchronously"):
                llm.start_async()

    run(main())
    assert llm._engine.cache.usage == 0
    llm.close()


async def submit(engine, request):
    return await (await engine.submit(request)).result()


def test_closing_an_asynchronous_llm_ends_its_thread(llama):
    """Also with requests under way, whose readers hear of it."""
    llm = LLM(llama)

    async def main():
        engine = llm.start_async()
        stream = await engine.submit(llm.make_request([5], SamplingParams(max_tokens=200, ignore_eos=True)))
        await asyncio.to_thread(llm.close)
        async for _ in stream:
            pass
        assert stream.output.outputs[0].finish_reason in {FinishReason.ABORT, FinishReason.LENGTH}
        with pytest.raises(EngineError, match="being closed"):
            await engine.submit(llm.make_request([5]))

    run(main())
    assert not [thread for thread in threading.enumerate() if thread.name == "pio-engine"]


def test_requests_that_are_none_do_not_end_the_thread(llama):
    """Values of the wrong type are refused where they were submitted; the next request is served."""
    llm = LLM(llama)

    async def main():
        async with llm.start_async() as engine:
            for bad in ({"timeout_s": "soon"}, {"timeout_s": float("nan")}, {"cache_salt": 3}):
                with pytest.raises(InvalidRequestError, match=next(iter(bad))):
                    await submit(engine, llm.make_request([1, 2], GREEDY, **bad))
            with pytest.raises(AttributeError, match="has no attribute 'params'"):
                await submit(engine, type("Request", (), {"request_id": "x", "prompt_token_ids": (1,)})())
            assert len((await submit(engine, llm.make_request([1, 2], GREEDY))).outputs[0].token_ids) == 24

    run(main())


def test_cancelling_by_id_while_waiting_for_a_place(llama, slow_down):
    """Whoever waits for the place hears of it."""
    llm = LLM(llama, max_num_seqs=1)
    slow_down(llm._engine.executor)

    async def main():
        async with llm.start_async(max_waiting=1) as engine:
            long = SamplingParams(max_tokens=250, ignore_eos=True)
            first = [await engine.submit(llm.make_request([n], long)) for n in (5, 6)]
            request = llm.make_request([7], long)
            task = asyncio.create_task(engine.submit(request))
            await asyncio.sleep(0.01)
            engine.abort(request.request_id)
            with pytest.raises(EngineError, match="cancelled while it waited for a place"):
                await task
            for stream in first:
                await stream.aclose()

    run(main())


def test_starting_is_checked(llama):
    """Bounds, and streams that are unfinished."""
    llm = LLM(llama)
    with pytest.raises(InvalidRequestError, match="max_waiting must be at least 1, got 0"):
        llm.start_async(max_waiting=0)
    with pytest.raises(InvalidRequestError, match="unknown on_failure 'explode'"):
        llm.start_async(on_failure="explode")
    with llm.stream([5], GREEDY) as stream:
        next(stream)
        with pytest.raises(EngineError, match="unfinished streams"):
            llm.start_async()
    assert len(llm.generate([[5]], GREEDY)) == 1


def test_parsers_are_those_of_the_plugin(tiny_checkpoint):
    """Qwen3 reasons and calls tools its way; a Llama does not reason."""
    qwen = LLM(tiny_checkpoint("qwen3"))
    parser = qwen.reasoning_parser()
    parts = [parser.push("<think>why</think>because"), parser.finish()]
    assert ("".join(p.reasoning for p in parts), "".join(p.content for p in parts)) == ("why", "because")
    opened = qwen.reasoning_parser("question <think>\n")
    assert opened.push("why</think>").reasoning == "why"
    calls = qwen.tool_call_parser().push('<tool_call>{"name": "f", "arguments": {}}</tool_call>')
    assert calls[0].name == "f"
    llama = LLM(tiny_checkpoint("llama"))
    assert llama.reasoning_parser() is None
    assert llama.tool_call_parser() is not None
    assert llama.tool_call_parser() is not llama.tool_call_parser()
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert "<tool_call>" in qwen.tool_call_grammar(tools).grammar
    assert qwen.tool_call_grammar(tools).grammar.startswith("start: (reasoning")
    assert qwen.tool_call_grammar(tools, prompt_text="<think>\n").grammar.startswith("start: reasoning")
    assert "parameters" in llama.tool_call_grammar(tools, tool_choice={"type": "function", "name": "f"}).grammar
    assert llama.tool_call_grammar(tools, tool_choice="auto") is None
    form = StructuredOutputs(regex="a")
    assert llama.after_reasoning(form) is form
    assert "</think>" in qwen.after_reasoning(form, "<think>").grammar
    llama._manifest = replace(llama._manifest, tool_call_parser=None)
    with pytest.raises(InvalidRequestError, match="makes no tool calls"):
        llama.tool_call_grammar(tools)


# Bad input


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n": 0}, "n must be between 1 and 128, got 0"),
        ({"n": 129}, "n must be between 1 and 128, got 129"),
        ({"n": True}, "n must be an integer, got True"),
        ({"n": 3, "best_of": 2}, "best_of must be between 3 and 128, got 2"),
        ({"max_tokens": 0}, "max_tokens must be between 1 and"),
        ({"max_tokens": -1}, "max_tokens must be between 1 and"),
        ({"max_tokens": 2.0}, "max_tokens must be an integer, got 2.0"),
        ({"temperature": float("nan")}, "temperature must be at least 0 and at most 100, got nan"),
        ({"temperature": float("inf")}, "temperature must be .* got inf"),
        ({"top_p": float("nan")}, "top_p must be above 0 and at most 1, got nan"),
        ({"min_p": float("nan")}, "min_p must be .* got nan"),
        ({"typical_p": 0.0}, "typical_p must be above 0"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty must be .* got nan"),
        ({"logit_bias": {5: float("nan")}}, r"logit_bias\[5\] must be .* got nan"),
        ({"logprobs": 21}, "logprobs must be between 0 and 20, got 21"),
        ({"bad_words": [""]}, "bad_words must be a list of non-empty strings"),
        ({"structured_outputs": {"json": {}}}, "structured_outputs must be StructuredOutputs"),
    ],
)
def test_parameters_out_of_bounds(params, message):
    """Each is refused where it is made, with its value and its bounds."""
    with pytest.raises(InvalidRequestError, match=message):
        SamplingParams(**params)


@pytest.mark.parametrize(
    ("prompt", "params", "error", "message"),
    [
        ([], GREEDY, InvalidRequestError, "the prompt has no tokens"),
        ([131], GREEDY, InvalidRequestError, "token id 131 is not in the vocabulary of 131"),
        ([-1], GREEDY, InvalidRequestError, "token id -1 is not in the vocabulary"),
        ([2**70], GREEDY, InvalidRequestError, "is not in the vocabulary"),
        ([1] * 256, GREEDY, PromptTooLongError, "256 tokens, and the context holds 160"),
        ([1] * 160, GREEDY, PromptTooLongError, "160 tokens, and the context holds 160 with the answer.*shorten"),
        ([1], SamplingParams(logit_bias={131: 1.0}), InvalidRequestError, "token id 131 in logit_bias"),
        ([1], SamplingParams(stop="x"), InvalidRequestError, "stop strings need a tokenizer"),
        ([1], SamplingParams(bad_words=["x"]), InvalidRequestError, "bad_words needs a tokenizer"),
        (
            [1],
            SamplingParams(structured_outputs=StructuredOutputs(regex="x")),
            InvalidRequestError,
            "needs a tokenizer",
        ),
    ],
)
def test_impossible_prompts_are_refused_at_once(llama, prompt, params, error, message):
    """One clear line; nothing of the call is generated, and the LLM is as before."""
    llm = LLM(llama, kv_cache_bytes=POOL, kv_cache_dtype="float32")
    assert llm.max_model_len == 160
    with pytest.raises(error, match=message) as raised:
        llm.generate([{"prompt_token_ids": [5]}, {"prompt_token_ids": prompt}], [GREEDY, params])
    assert "\n" not in str(raised.value)
    assert not llm._engine.has_work
    assert len(llm.generate([[5]], GREEDY)) == 1


def test_a_search_wider_than_the_pool_is_refused_at_once(llama):
    """Its beams together need more than there is."""
    llm = LLM(llama, kv_cache_bytes=POOL, kv_cache_dtype="float32")
    with pytest.raises(
        DoesNotFitError, match=r"needs 408 tokens of cache, and the cache holds 1\d\d .*lower max_tokens"
    ):
        llm.beam_search([1, 2], BeamSearchParams(beam_width=4, max_tokens=100))
    with pytest.raises(InvalidRequestError, match=r"beam_width 65 is above the 64 sequences"):
        llm.beam_search([1, 2], BeamSearchParams(beam_width=65, max_tokens=2))
    assert len(llm.generate([[5]], GREEDY)) == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kv_cache_bytes": 10}, DoesNotFitError, "cache"),
        ({"kv_cache_bytes": 2**60}, DoesNotFitError, "are free beside the weights.*lower kv_cache_bytes"),
        ({"kv_cache_bytes": 0}, InvalidRequestError, "kv_cache_bytes must be at least 1"),
        ({"num_speculative_tokens": 0}, InvalidRequestError, "at least 1, got 0 .*leave speculative out"),
        ({"num_speculative_tokens": 65}, InvalidRequestError, "at most 64, got 65"),
        ({"speculative": "smolm2"}, ModelNotFoundError, "speculative='smolm2'.*'ngram' needs no model"),
        ({"speculative": "ngrm"}, ModelNotFoundError, "speculative='ngrm'.*'ngram' needs no model"),
        ({"speculative": "/nowhere/x"}, ModelNotFoundError, "speculative='/nowhere/x'"),
        ({"max_num_batched_tokens": 4, "max_num_seqs": 8}, InvalidRequestError, "4 is below max_num_seqs 8.*raise"),
        ({"max_num_seqs": "8"}, InvalidRequestError, "max_num_seqs must be an integer, got '8'"),
        ({"deterministic": True, "attention": "sdpa"}, UnsupportedError, "'sdpa' gives other bits.*'invariant'"),
        ({"kv_cache_dtype": "int4"}, InvalidRequestError, "unknown kv_cache_dtype 'int4' .*int8"),
        ({"scheduling_policy": "random"}, InvalidRequestError, "unknown scheduling_policy 'random' .*priority"),
        ({"max_model_len": 1}, InvalidRequestError, "max_model_len must be between 2 and"),
    ],
)
def test_bad_options_of_the_engine(llama, options, error, message):
    """One clear line with the way out, before any weights are read where that can be."""
    with pytest.raises(error, match=message) as raised:
        LLM(llama, **options)
    assert "\n" not in str(raised.value)


def test_a_draft_of_another_vocabulary_is_refused(llama, tiny_checkpoint):
    """Both sizes are named."""
    other = tiny_checkpoint("llama", vocab_size=99)
    with pytest.raises(InvalidRequestError, match=r"vocabulary of 99 tokens, the model one of 131.*same family"):
        LLM(llama, speculative=other)


def test_many_seats_read_enough_tokens(llama):
    """The default of tokens per step follows the seats."""
    llm = LLM(llama, max_num_seqs=700)
    assert llm._engine.scheduler.max_step_tokens == 700
