"""What an engine brings, through ``LLM`` on the real default model with its real tokenizer."""

from __future__ import annotations

import asyncio
import json
import re

import jsonschema
import numpy as np
import pytest

from inference_pio.core import LLM, SamplingParams
from inference_pio.interfaces import FinishReason, InvalidRequestError, StructuredOutputs

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "likes": {"type": "array", "items": {"enum": ["tea", "coffee", "water"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}
FORMS = {
    "json": StructuredOutputs(json=SCHEMA),
    "regex": StructuredOutputs(regex=r"[A-Z][a-z]{2,8} is [0-9]{1,3} years old\."),
    "choice": StructuredOutputs(choice=["Paris", "London", "a city of light"]),
    "grammar": StructuredOutputs(grammar='start: "(" item ("," item)* ")"\nitem: /[a-z]{1,4}/ | start\n'),
}
IMPOSSIBLE = StructuredOutputs(json={"type": "string", "minLength": 9, "maxLength": 3})
PROMPT = "Describe a person who lives in Paris:"
TEXT = (
    "The river rises in the hills and runs east through a broad valley, where farmers have grown wheat and barley for "
    "more than a thousand years. In spring the fields are flooded, and the villages stand on their low mounds like "
    "islands. A traveller who came here in the twelfth century wrote that the people spoke three languages, traded in "
    "salt and wool, and paid their taxes in honey. Today the railway crosses the plain in less than an hour, and most "
    "of the young have left for the city. Still, every autumn a market is held in the old square: there is music, "
    "there are apples, cheese and dark bread, and the mayor reads out the names of those who were born that year. "
    "Scientists have taken a new interest in the valley, because its soil keeps a record of the climate. They drill "
    "narrow cores, cut them into slices, and count the grains of pollen under a microscope. What they have found so "
    "far suggests that the summers were warmer then than we had believed, and the winters longer."
)


@pytest.fixture(scope="module")
def real(default_model_path):
    """The default model in float32, loaded once."""
    with LLM(default_model_path, dtype="float32", max_model_len=1024) as llm:
        yield llm


@pytest.fixture(scope="module")
def exact(default_model_path):
    """The same, with a rounding that does not depend on how many rows a step has, as it does with drafts."""
    with LLM(default_model_path, dtype="float32", max_model_len=1024, deterministic=True) as llm:
        yield llm


@pytest.fixture(scope="module")
def drafted(default_model_path):
    """That with n-gram drafts in every step: whether they pay is measured by the clock, and a test has none."""
    options = {"dtype": "float32", "max_model_len": 1024, "deterministic": True}
    with LLM(default_model_path, speculative="ngram", **options) as llm:
        llm._engine._drafting.control.draft_lengths = lambda keys, **_: [4] * len(keys)
        yield llm


def has_form(form, completion):
    """Whether the text has the form, by a judge that we did not write; a text cut by its length begins one."""
    text = completion.text
    if form == "json":
        jsonschema.validate(json.loads(text), SCHEMA)
        return True
    if form == "regex":
        return re.fullmatch(FORMS[form].regex, text) is not None
    if form == "choice":
        return text in FORMS[form].choice
    inner = text
    while inner != (inner := re.sub(r"\([a-z]{1,4}(,[a-z]{1,4})*\)", "x", inner)):
        pass
    return inner == "x" or completion.finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize("form", FORMS)
def test_texts_have_the_form(real, drafted, form):
    """Greedy and sampled, three continuations of a prompt, with speculation and without: each text has the form."""
    greedy = SamplingParams(temperature=0.0, max_tokens=80, structured_outputs=FORMS[form])
    sampled = SamplingParams(temperature=1.0, n=3, seed=7, max_tokens=80, structured_outputs=FORMS[form])
    plain = real.generate([PROMPT, PROMPT], [greedy, sampled])
    for completion in (completion for output in plain for completion in output.outputs):
        if form != "grammar":
            assert completion.finish_reason is FinishReason.STOP
        assert has_form(form, completion), completion.text
    assert [len(output.outputs) for output in plain] == [1, 3]
    speculative = drafted.generate([PROMPT, PROMPT], [greedy, sampled])
    assert [[c.text for c in o.outputs] for o in speculative] == [[c.text for c in o.outputs] for o in plain]
    assert real._engine.cache.usage == drafted._engine.cache.usage == 0


def test_an_impossible_form_is_refused_at_once(real):
    """The call is refused with the reason before anything is generated; the LLM serves the next."""
    steps = real.metrics.step_tokens.count
    params = SamplingParams(temperature=0.0, max_tokens=4)
    bad = SamplingParams(max_tokens=4, structured_outputs=IMPOSSIBLE)
    with pytest.raises(InvalidRequestError, match="JSON schema of structured_outputs cannot be used") as raised:
        real.generate(["One", "Two"], [params, bad])
    assert "\n" not in str(raised.value)
    assert real.metrics.step_tokens.count == steps
    assert not real._engine.has_work
    assert real.generate("One", params)[0].finished


def test_bad_words_never_come(real):
    """Words that the model would say, with a leading space or without, at the beginning or later, are not said."""
    prompts = ["The capital of France is", "Once upon a time, there was a", "List of colours: red, green,"]
    params = SamplingParams(temperature=0.0, max_tokens=24)
    free = [output.outputs[0].text for output in real.generate(prompts, params)]
    words = sorted({word for text in free for word in re.findall(r"[A-Za-z]{3,}", text)})[:40]
    assert words
    for temperature in (0.0, 1.0):
        params = SamplingParams(temperature=temperature, seed=1, max_tokens=24, bad_words=words)
        for output in real.generate(prompts, params):
            tokens = output.outputs[0].token_ids
            for word in words:
                for spelt in (word, " " + word):
                    banned = real.get_tokenizer().encode(spelt, add_special_tokens=False)
                    places = range(len(tokens) - len(banned) + 1)
                    assert not any(tokens[place : place + len(banned)] == banned for place in places), word


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_drafts_change_no_text(exact, drafted, temperature):
    """A text that repeats itself is drafted well, and is the same."""
    prompt = "def add(a, b):\n    return a + b\n\ndef sub(a, b):\n    return a - b\n\ndef mul(a, b):\n"
    params = SamplingParams(temperature=temperature, seed=3, max_tokens=48)
    before = drafted.metrics.accepted_tokens.values.get("", 0)
    assert drafted.generate(prompt, params)[0].outputs == exact.generate(prompt, params)[0].outputs
    if temperature == 0.0:
        assert drafted.metrics.accepted_tokens.values[""] > before


def test_beams_are_at_least_as_likely_as_greedy(real):
    """The best of four beams, scored as a text, is no less likely than the greedy one."""
    from inference_pio.interfaces import BeamSearchParams

    prompt = "The capital of France is"
    (beams,) = real.beam_search(prompt, BeamSearchParams(beam_width=4, max_tokens=8, ignore_eos=True))
    params = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True, logprobs=0)
    (greedy,) = real.generate(prompt, params)
    assert beams.outputs[0].cumulative_logprob >= greedy.outputs[0].cumulative_logprob - 1e-4
    assert all(completion.text for completion in beams.outputs)


def test_int8_cache_stays_close(real, default_model_path):
    """Over some hundred tokens, the mean divergence of the next token's distribution from that of float32 is small.

    The bound is on the divergence restricted to the 20 likeliest tokens of float32 (and the rest as one), a lower
    bound of the whole that misses little: they hold most of the probability.
    """
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=20)
    with LLM(default_model_path, dtype="float32", max_model_len=1024, kv_cache_dtype="int8") as llm:
        exact = divergences(real, real, params)
        assert np.abs(exact).max() < 1e-4
        found = divergences(real, llm, params)
    assert found.size > 200
    assert found.mean() < 0.01
    assert found.max() < 0.2


def divergences(llm, other, params):
    """Per position of the text, sum of p log(p / q) over the candidates of ``llm`` that ``other`` has too."""
    (wanted,), (found,) = llm.generate(TEXT, params), other.generate(TEXT, params)
    rows = []
    for one, two in zip(wanted.prompt_logprobs[1:], found.prompt_logprobs[1:], strict=True):
        shared = sorted(one.keys() & two.keys())
        p = np.exp([one[token].logprob for token in shared])
        q = np.exp([two[token].logprob for token in shared])
        rest = max(1 - p.sum(), 1e-9), max(1 - q.sum(), 1e-9)
        rows.append((p * np.log(p / q)).sum() + rest[0] * np.log(rest[0] / rest[1]))
    return np.array(rows)


def test_a_conversation_is_read_once(real):
    """The second turn finds the first in the cache."""
    params = SamplingParams(temperature=0.0, max_tokens=24)
    messages = [{"role": "user", "content": TEXT[:400] + " Where does the river rise?"}]
    (first,) = real.chat(messages, params)
    messages += [{"role": "assistant", "content": first.outputs[0].text}, {"role": "user", "content": "And then?"}]
    (second,) = real.chat(messages, params)
    assert second.metrics.cached_tokens >= len(first.prompt_token_ids) - 16


def test_a_forced_call_is_read_back(real):
    """The model that would rather chat calls the tool that was named, with arguments of its schema."""
    function = {"name": "note", "parameters": SCHEMA, "strict": True}
    tools = [{"type": "function", "function": function}, {"type": "function", "function": {"name": "other"}}]
    form = real.tool_call_grammar(tools, tool_choice={"type": "function", "function": {"name": "note"}})
    params = SamplingParams(temperature=0, max_tokens=200, structured_outputs=form)
    [output] = real.chat([{"role": "user", "content": "Note that Ann, 31, likes tea."}], params)
    parser = real.tool_call_parser()
    deltas = parser.push(output.outputs[0].text) + parser.finish()
    assert {delta.name for delta in deltas} == {"note", None}
    jsonschema.validate(json.loads("".join(delta.arguments for delta in deltas)), SCHEMA)


def test_requests_carry_what_their_template_was_given(real):
    """The id, the rendered text, and the tokens of exactly that text."""
    conversation = [{"role": "user", "content": "Hi"}]
    request = real.make_request(conversation, request_id="chat-1", add_generation_prompt=False)
    longer = real.make_request(conversation, request_id="chat-2", chat_template_kwargs={"unused": True}, tools=[])
    tokenizer = real.get_tokenizer()
    assert (request.request_id, longer.request_id) == ("chat-1", "chat-2")
    assert longer.prompt.startswith(request.prompt)
    assert longer.prompt != request.prompt
    assert list(longer.prompt_token_ids) == tokenizer.encode(longer.prompt, add_special_tokens=False)


def test_asynchronous_requests_do_not_disturb_each_other(default_model_path):
    """An impossible form fails alone and at once; conversations, texts and tokens beside it get their answers."""
    params = SamplingParams(temperature=0.0, max_tokens=12)
    messages = [{"role": "user", "content": "Name the capital of France."}]

    async def main(llm):
        async with llm.start_async() as engine:

            async def submit(prompt, params=params):
                return await (await engine.submit(llm.make_request(prompt, params))).result()

            bad = SamplingParams(max_tokens=4, structured_outputs=IMPOSSIBLE)
            answers = await asyncio.gather(
                submit(messages),
                submit("x", bad),
                submit("The capital of France is"),
                submit(llm.get_tokenizer().encode("The capital of France is")),
                submit("Name:", SamplingParams(temperature=0.0, max_tokens=60, structured_outputs=FORMS["json"])),
                return_exceptions=True,
            )
        assert answers[0].outputs[0].text == "The capital of France is Paris."
        assert isinstance(answers[1], InvalidRequestError)
        assert "JSON schema" in str(answers[1])
        assert answers[2].outputs[0].text == answers[3].outputs[0].text
        assert "Paris" in answers[2].outputs[0].text
        assert has_form("json", answers[4].outputs[0])

    with LLM(default_model_path, dtype="float32", max_model_len=512) as llm:
        asyncio.run(asyncio.wait_for(main(llm), timeout=120))
        assert llm._engine.cache.usage == 0
