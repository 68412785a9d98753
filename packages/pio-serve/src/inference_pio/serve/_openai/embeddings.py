"""``POST /v1/embeddings``."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from typing import TYPE_CHECKING

from inference_pio.interfaces import EngineError, FinishReason, PoolingParams
from inference_pio.serve._errors import invalid, unavailable
from inference_pio.serve._json import json_response
from inference_pio.serve._openai.conversation import INLINE_CHARS
from inference_pio.serve._openai.embedding_types import Embedding, EmbeddingList, EmbeddingRequest, EmbeddingUsage

if TYPE_CHECKING:
    from starlette.responses import Response

    from inference_pio.interfaces import RequestOutput
    from inference_pio.serve._call import Call
    from inference_pio.serve._models.served import ServedModel

MAX_INPUTS = 2048
"""Of one request; OpenAI's bound."""
MAX_TOKENS = 300_000
"""Of all inputs of one request; OpenAI's bound."""
AT_ONCE = 32
"""Inputs of one request that the engine has at once, so that a long list leaves places in the queue to others."""


async def embeddings(call: Call) -> Response:
    """A vector for each input.

    Raises:
        ApiError: The request cannot be served.
        PioError: The same, in the core's words.
    """
    request = call.read(EmbeddingRequest)
    texts = _inputs(request)
    model = await call.model(request.model)
    _check_dimensions(request, model)
    prompts = await _tokenize(texts, model, special=request.add_special_tokens is not False)
    _check_lengths(prompts, model)
    params = PoolingParams(pooling=request.pooling or "mean", normalize=request.normalize is not False)
    outputs = await _embed(call, model, prompts, params)
    count = sum(map(len, prompts))
    as_bytes = request.encoding_format == "base64"
    return json_response(
        EmbeddingList(
            data=[
                Embedding(index=index, embedding=_vector(output, call, as_bytes=as_bytes))
                for index, output in enumerate(outputs)
            ],
            model=model.name,
            usage=EmbeddingUsage(prompt_tokens=count, total_tokens=count),
        )
    )


def _inputs(request: EmbeddingRequest) -> list[str | list[int]]:
    """The inputs, always as a list.

    Raises:
        ApiError: None, too many, or a list of several kinds.
    """
    given = request.input
    if isinstance(given, str):
        return [given]
    numbers = [item for item in given if isinstance(item, int)]
    if numbers and len(numbers) < len(given):
        raise invalid("input must be text, token ids, or a list of either", "input")
    inputs: list[str | list[int]] = [numbers] if numbers else [item for item in given if not isinstance(item, int)]
    if not 1 <= len(inputs) <= MAX_INPUTS:
        raise invalid(f"input must hold 1 to {MAX_INPUTS} texts, got {len(inputs)}", "input")
    return inputs


def _check_dimensions(request: EmbeddingRequest, model: ServedModel) -> None:
    """Refuse to cut vectors: the first numbers mean something by themselves only where a model was trained for it."""
    size = model.llm.shape.hidden_size
    if request.dimensions not in {None, size}:
        raise invalid(
            f"dimensions must be {size}, the size of this model's vectors, got {request.dimensions}: it was not "
            "trained to have them cut",
            "dimensions",
            code="unsupported",
        )


async def _tokenize(inputs: list[str | list[int]], model: ServedModel, *, special: bool) -> list[list[int]]:
    """The inputs as tokens; in a thread where there is much to do."""
    lists = [item for item in inputs if isinstance(item, list)]
    if len(lists) == len(inputs):
        return lists
    tokenizer = model.llm.get_tokenizer()

    def tokenize() -> list[list[int]]:
        return [
            tokenizer.encode(item, add_special_tokens=special) if isinstance(item, str) else item for item in inputs
        ]

    chars = sum(len(item) for item in inputs if isinstance(item, str))
    return tokenize() if chars <= INLINE_CHARS else await asyncio.to_thread(tokenize)


def _check_lengths(prompts: list[list[int]], model: ServedModel) -> None:
    """Refuse all inputs if one cannot be served, before any is computed.

    Raises:
        ApiError: One is empty or longer than the context, or there are too many tokens in all.
    """
    longest = model.llm.max_model_len
    for place, prompt in enumerate(prompts):
        if not prompt:
            raise invalid(f"input[{place}] has no tokens", "input")
        if len(prompt) > longest:
            raise invalid(
                f"input[{place}] has {len(prompt)} tokens, and the context holds {longest}",
                "input",
                code="context_length_exceeded",
            )
    count = sum(map(len, prompts))
    if count > MAX_TOKENS:
        raise invalid(f"input has {count} tokens in all; the limit is {MAX_TOKENS}", "input")


async def _embed(
    call: Call, model: ServedModel, prompts: list[list[int]], params: PoolingParams
) -> list[RequestOutput]:
    """What becomes of each prompt, :data:`AT_ONCE` at a time. Whatever ends it ends all.

    Raises:
        PioError: One of them can never be served, or failed, or the queue is full.
        ApiError: The engine has stopped.
    """
    places = asyncio.Semaphore(AT_ONCE)

    async def embed(place: int, prompt: list[int]) -> RequestOutput:
        async with places:
            request = model.llm.make_request(
                {"prompt_token_ids": prompt}, params, timeout_s=call.time_left_s, cache_salt=call.key_id
            )
            try:
                # A full queue refuses the request as a whole, or lets it in as a whole.
                stream = await model.engine.submit(request, wait=place > 0)
            except EngineError as error:
                raise unavailable("the engine does not take requests any more", "engine_stopped") from error
            call.open.prompt_tokens += len(prompt)
            call.server.spend(call.key_id, len(prompt))
            return await stream.result()

    tasks = [asyncio.ensure_future(embed(place, prompt)) for place, prompt in enumerate(prompts)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
        outputs = [task.result() for task in tasks]
        if call.trace is not None:
            call.trace.computed(model.name, params, outputs)
        return outputs
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _vector(output: RequestOutput, call: Call, *, as_bytes: bool) -> list[float] | str:
    """The vector of an input, as it is sent.

    Raises:
        ApiError: The request was interrupted.
    """
    if output.embedding is None:
        call.open.check()
        if output.outputs[0].finish_reason is FinishReason.TIMEOUT:
            seconds = call.server.settings.bounds.request_s
            raise unavailable(f"the vectors were not made within {seconds:g} s", "timeout")
        raise unavailable("the server stopped before the vectors were made", "stopping")
    if as_bytes:
        return b64encode(output.embedding.astype("<f4").tobytes()).decode("ascii")
    numbers: list[float] = output.embedding.tolist()
    return numbers
