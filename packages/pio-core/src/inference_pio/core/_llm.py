"""The offline API: load a model, generate, chat, stream. Names and results follow vLLM's ``LLM``."""

from __future__ import annotations

import itertools
import secrets
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, cast
from weakref import WeakValueDictionary

from inference_pio.config import Settings
from inference_pio.config import cache_dir as default_cache_dir
from inference_pio.core._assembly import EngineOptions, assemble_engine, check_choices, check_positive
from inference_pio.core._locate import locate_model
from inference_pio.core._progress import ProgressBar
from inference_pio.core._prompts import (
    TokenizedPrompt,
    as_conversations,
    as_prompt_list,
    is_conversation,
    pair_with_params,
    pair_with_priorities,
    tokenize_prompt,
)
from inference_pio.core._stream import TokenStream
from inference_pio.core.packed import packed_folder
from inference_pio.interfaces import (
    BeamSearchParams,
    EmbeddingOutput,
    EngineError,
    InvalidRequestError,
    PoolingParams,
    Request,
    SamplingParams,
)
from inference_pio.processing import after_reasoning, reasoning_parser, tool_call_grammar, tool_call_parser

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from inference_pio.core._async_engine import AsyncEngine
    from inference_pio.core._metrics import EngineMetrics
    from inference_pio.core._prompts import Conversation, Prompt
    from inference_pio.core._scheduler import Policy
    from inference_pio.interfaces import CacheGroup, ModelShape, RequestOutput, StructuredOutputs, TokenEvent
    from inference_pio.processing import ReasoningParser, Tokenizer, ToolCallParser

_GENERATION_FIELDS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class LLM:
    """A loaded model that continues prompts.

    Args:
        model: A registered name, a folder, a ``.gguf`` or ``.safetensors`` file, or a hub id, which is fetched if it is
            not here yet.
        executor: ``"native"`` for the fused CPU programs of pio-kernels, ``"torch"`` for PyTorch modules on any device,
            or ``"auto"`` for the native one on a CPU where it can run the model and the options allow it.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"auto"`` for what the checkpoint and device favour;
            any but ``"auto"`` needs the torch executor, except ``"int8"``, which needs the native one: it quantises
            matrices in floating point while they are loaded, in blocks of 32, and leaves those that are quantised.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ..., or ``"auto"`` for CUDA where there is one.
        threads: Threads that compute on the CPU; None for one per physical core that this process may use. The torch
            executor sets them for the whole process, and None leaves torch's choice.
        max_model_len: Tokens of prompt and continuation together; None for the model's context, or what fits.
        max_num_seqs: Continuations that run at once.
        max_num_batched_tokens: Tokens that one step reads at most: long prompts are cut, so that others wait no longer
            than one such step for their next token. None for 512, or ``max_num_seqs`` where that is more.
        attention: Name of an attention backend, or ``"auto"``.
        kv_cache: ``"paged"``, ``"contiguous"`` or ``"auto"``.
        kv_cache_dtype: Of keys and values: ``"float32"``, ``"bfloat16"``, ``"float16"``, ``"int8"``, or ``"auto"`` for
            float16 on the native executor, and the dtype of the weights on the other.
        kv_cache_bytes: Memory of the cache; None for what ``max_num_seqs`` sequences need, at most half of what is free
            and 4 GiB on a CPU, nine tenths of what is free elsewhere.
        swap_bytes: Host memory for sequences that have to make room on an accelerator; without it they are computed
            again.
        enable_prefix_caching: Whether prompts that begin alike are computed once; None for where the model allows it.
        scheduling_policy: ``"fcfs"``, or ``"priority"`` by ``Request.priority``.
        speculative: ``"ngram"`` to draft from the text itself, the name or path of a smaller model of the same
            vocabulary, or None. The output is the same, token for token.
        num_speculative_tokens: Tokens drafted at most; how many is found while it runs, 0 where drafting does not pay.
        deterministic: Make tokens and log-probabilities of a request independent of what else runs, of chunks and of
            what the cache holds, bit for bit, at the cost that the README states.
        seed: Seed for requests that bring none; None draws one for each.
        cache_dir: Where fetched models lie; None for the default place.
        ignore_unknown_keys: Accept unknown keys in the model's config.
        packed_cache_bytes: Disk that weights packed for the native executor may take in ``cache_dir``, so that the next
            start need not pack them; the least recently used give way. None for 32 GiB, 0 keeps none.
        hub_endpoint: Address of the model hub; None for the default one.
        progress: Called with bytes loaded and bytes in all.
        download_progress: Called with bytes fetched and bytes in all.

    Attributes:
        name: What the model is called.
        load_s: Seconds from the call to a model that is ready.
        tokenizer: The tokenizer that came with the weights, or None.
        shape: Sizes of the model.

    Raises:
        ModelNotFoundError: Nothing matches ``model``.
        PioError: The files are not sound, no plugin serves them, or they do not fit.
    """

    def __init__(
        self,
        model: str | Path = "smollm2-135m-instruct",
        *,
        executor: str = "auto",
        dtype: str = "auto",
        device: str = "auto",
        threads: int | None = None,
        max_model_len: int | None = None,
        max_num_seqs: int = 64,
        max_num_batched_tokens: int | None = None,
        attention: str = "auto",
        kv_cache: str = "auto",
        kv_cache_dtype: str = "auto",
        kv_cache_bytes: int | None = None,
        swap_bytes: int = 0,
        enable_prefix_caching: bool | None = None,
        scheduling_policy: Policy = "fcfs",
        speculative: str | Path | None = None,
        num_speculative_tokens: int = 5,
        deterministic: bool = False,
        seed: int | None = None,
        cache_dir: str | Path | None = None,
        ignore_unknown_keys: bool = False,
        packed_cache_bytes: int | None = None,
        hub_endpoint: str | None = None,
        progress: Callable[[int, int], None] | None = None,
        download_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        started = time.perf_counter()
        files = default_cache_dir(Settings()) if cache_dir is None else Path(cache_dir)
        options = EngineOptions(
            executor=executor,
            dtype=dtype,
            device=device,
            threads=threads,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            attention=attention,
            kv_cache=kv_cache,
            kv_cache_dtype=kv_cache_dtype,
            kv_cache_bytes=kv_cache_bytes,
            swap_bytes=swap_bytes,
            enable_prefix_caching=enable_prefix_caching,
            scheduling_policy=scheduling_policy,
            speculative=speculative,
            num_speculative_tokens=num_speculative_tokens,
            deterministic=deterministic,
            ignore_unknown_keys=ignore_unknown_keys,
            packed_cache=packed_folder(files),
            packed_cache_bytes=packed_cache_bytes,
        )
        locate = partial(locate_model, cache_dir=files, endpoint=hub_endpoint, progress=download_progress)
        assembled = assemble_engine(model, options, locate=locate, progress=progress)
        checkpoint = assembled.checkpoint
        self.name = checkpoint.name
        self.shape: ModelShape = checkpoint.shape
        self.tokenizer: Tokenizer | None = assembled.tokenizer
        self._manifest = checkpoint.installed.manifest
        self._generation = checkpoint.generation
        self._executor = assembled.executor
        self._reason = assembled.reason
        self._draft = assembled.draft
        self._engine = assembled.engine
        self._seeds = itertools.count() if seed is None else itertools.count(seed)
        self._draw_seeds = seed is None
        # Weak: a stream that nobody holds any more is cancelled, see TokenStream.__del__.
        self._streams: WeakValueDictionary[str, TokenStream] = WeakValueDictionary()
        self._ids = itertools.count()
        self._async: AsyncEngine | None = None
        self.load_s = time.perf_counter() - started

    @property
    def dtype(self) -> str:
        """Dtype of the weights; on the native executor the formats of their tiles."""
        return str(self._executor.dtype).removeprefix("torch.")

    @property
    def device(self) -> str:
        """Where the model is."""
        return str(self._executor.device)

    @property
    def executor(self) -> str:
        """Which executor computes the model."""
        return self._executor.name

    @property
    def executor_summary(self) -> str:
        """What computes the model, and how; where it is not the native executor but might have been, also why."""
        summary = self._executor.summary
        return summary if self._reason is None else f"{summary} (not native: {self._reason})"

    @property
    def weight_bytes(self) -> int:
        """Size of the weights as they are kept."""
        return self._executor.weight_bytes

    @property
    def kv_cache_bytes(self) -> int:
        """Size of the cache."""
        return self._executor.kv_cache_bytes

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and continuation together."""
        return self._engine.limits.max_model_len

    @property
    def page_size(self) -> int:
        """Tokens per page of the cache."""
        return self._executor.page_size

    @property
    def cache_groups(self) -> tuple[CacheGroup, ...]:
        """The pages of the cache, by group of layers."""
        return self._executor.cache_groups

    @property
    def can_embed(self) -> bool:
        """Whether there are embeddings of this model: its plugin and its executor have what they are made from."""
        return self._engine.limits.hidden_size is not None

    @property
    def metrics(self) -> EngineMetrics:
        """What the engine has counted since the start."""
        return self._engine.metrics

    def get_tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            InvalidRequestError: None came with the weights.
        """
        if self.tokenizer is None:
            raise InvalidRequestError(f"{self.name!r} has no tokenizer files", hint="give token ids instead of text")
        return self.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """What the model's ``generation_config.json`` recommends; ``SamplingParams()`` where it says nothing."""
        known = {name: self._generation[name] for name in _GENERATION_FIELDS if self._generation.get(name) is not None}
        if self._generation.get("do_sample") is False:
            known["temperature"] = 0.0
        max_tokens = self._generation.get("max_new_tokens")
        if max_tokens is not None:
            known["max_tokens"] = max_tokens
        return SamplingParams(**known)  # type: ignore[arg-type]  # checked there, value by value

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: int | Sequence[int] = 0,
        timeout_s: float | None = None,
        cache_salt: str = "",
        progress: bool | Callable[[int, int], None] | None = None,
        raise_errors: bool = True,
    ) -> list[RequestOutput]:
        """Continue each prompt; thousands at once are what it is made for.

        Args:
            prompts: Text, token ids, or a list of either (also ``{"prompt": ...}``, ``{"prompt_token_ids": ...}``).
            sampling_params: One for all or one for each; None for the model's recommendation.
            priority: Who goes first under ``scheduling_policy="priority"``: the lowest. One for all or one for each.
            timeout_s: Seconds after which a prompt ends with what it has.
            cache_salt: Cached prefixes are shared only between prompts of one salt.
            progress: Whether to show a bar on stderr, None for where that is a terminal; or a function that is called
                with prompts done and prompts in all.
            raise_errors: Raise when a prompt fails while it is computed; otherwise its output says why
                (``output.error``), and the others are not disturbed.

        Returns:
            One output per prompt, in their order.

        Raises:
            InvalidRequestError: A prompt or a parameter that can never be served; nothing is generated then.
        """
        tokenized = [tokenize_prompt(prompt, self.tokenizer) for prompt in as_prompt_list(prompts)]
        params = pair_with_params(len(tokenized), sampling_params, self.get_default_sampling_params())
        priorities = pair_with_priorities(len(tokenized), priority)
        requests = [
            self._request(prompt, one, priority=place, timeout_s=timeout_s, cache_salt=cache_salt)
            for prompt, one, place in zip(tokenized, params, priorities, strict=True)
        ]
        return self._run(requests, progress, raise_errors=raise_errors)

    def beam_search(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: BeamSearchParams,
        *,
        progress: bool | Callable[[int, int], None] | None = None,
    ) -> list[RequestOutput]:
        """The most likely continuations of each prompt, best first, by beam search.

        Args:
            prompts: As :meth:`generate`.
            params: Width, length and length penalty.
            progress: As :meth:`generate`.

        Raises:
            InvalidRequestError: As :meth:`generate`.
        """
        tokenized = [tokenize_prompt(prompt, self.tokenizer) for prompt in as_prompt_list(prompts)]
        return self._run([self._request(prompt, params) for prompt in tokenized], progress, raise_errors=True)

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        *,
        pooling: Literal["mean", "last"] = "mean",
        normalize: bool = True,
        cache_salt: str = "",
        progress: bool | Callable[[int, int], None] | None = None,
    ) -> list[EmbeddingOutput]:
        """A vector for each prompt: its hidden states after the final norm, pooled.

        How near such vectors are says how alike the texts are as far as the model was made to show it: models trained
        for it do best, plain language models do so roughly.

        Args:
            prompts: As :meth:`generate`; a prompt may be as long as the context.
            pooling: The ``"mean"`` over all tokens, or that of the ``"last"`` one. The mean needs every token's, so
                cached prefixes are computed again for it; ``"last"`` takes them from the cache.
            normalize: Divide by the Euclidean norm, so that dot products are cosines.
            cache_salt: As :meth:`generate`.
            progress: As :meth:`generate`.

        Returns:
            One output per prompt, in their order.

        Raises:
            UnsupportedError: There are no embeddings of this model; see :attr:`can_embed`.
            InvalidRequestError: As :meth:`generate`.
        """
        params = PoolingParams(pooling=pooling, normalize=normalize)
        tokenized = [tokenize_prompt(prompt, self.tokenizer) for prompt in as_prompt_list(prompts)]
        requests = [self._request(prompt, params, cache_salt=cache_salt) for prompt in tokenized]
        return [_embedding(output) for output in self._run(requests, progress, raise_errors=True)]

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        progress: bool | Callable[[int, int], None] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or several.

        Args:
            messages: A list of ``{"role": ..., "content": ...}``, or a list of such lists.
            sampling_params: One for all or one for each; None for the model's recommendation.
            add_generation_prompt: End with the header of the assistant's turn.
            tools: Descriptions of tools, for templates that take them.
            chat_template: A template to use instead of the model's own.
            chat_template_kwargs: More variables for the template.
            progress: As :meth:`generate`.

        Raises:
            TemplateError: There is no chat template, or it refuses the messages.
            InvalidRequestError: As :meth:`generate`.
        """
        tokenized = [
            self._render(conversation, add_generation_prompt, tools, chat_template, chat_template_kwargs)
            for conversation in as_conversations(messages)
        ]
        params = pair_with_params(len(tokenized), sampling_params, self.get_default_sampling_params())
        requests = [self._request(prompt, one) for prompt, one in zip(tokenized, params, strict=True)]
        return self._run(requests, progress, raise_errors=True)

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> TokenStream:
        """Continue one prompt, token by token. Closing the stream cancels the request; its ``output`` is the whole.

        Raises:
            InvalidRequestError: As :meth:`generate`, at the call, not at the first token.
        """
        return self._stream(tokenize_prompt(prompt, self.tokenizer), sampling_params)

    def chat_stream(
        self,
        messages: Conversation,
        sampling_params: SamplingParams | None = None,
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> TokenStream:
        """Answer one conversation, token by token; arguments as :meth:`chat`, behaviour as :meth:`stream`."""
        (conversation,) = as_conversations(messages)
        tokenized = self._render(conversation, add_generation_prompt, tools, chat_template, chat_template_kwargs)
        return self._stream(tokenized, sampling_params)

    def make_request(
        self,
        prompt: Prompt | Conversation,
        sampling_params: SamplingParams | BeamSearchParams | PoolingParams | None = None,
        *,
        request_id: str | None = None,
        tools: Sequence[Mapping[str, object]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        priority: int = 0,
        timeout_s: float | None = None,
        cache_salt: str = "",
    ) -> Request:
        """A request for :meth:`AsyncEngine.submit`, with an id and a seed of its own. Safe to call from any thread.

        Args:
            prompt: Text, token ids, ``{"prompt": ...}``, ``{"prompt_token_ids": ...}``, or a conversation.
            sampling_params: How to continue it, or how to pool it; None for the model's recommendation.
            request_id: Its id, unique among running requests; None makes one.
            tools: Of a conversation: as in :meth:`chat`.
            chat_template_kwargs: Of a conversation: as in :meth:`chat`.
            add_generation_prompt: Of a conversation: as in :meth:`chat`.
            priority: As in :meth:`generate`.
            timeout_s: As in :meth:`generate`.
            cache_salt: As in :meth:`generate`.

        Raises:
            TemplateError: There is no chat template, or it refuses the conversation.
            InvalidRequestError: The prompt has another shape. What else is wrong with it, ``submit`` says.
        """
        if is_conversation(prompt):
            tokenized = self._render(prompt, add_generation_prompt, tools, None, chat_template_kwargs)
        else:
            tokenized = tokenize_prompt(cast("Prompt", prompt), self.tokenizer)
        (place,) = pair_with_priorities(1, priority)
        request = self._request(tokenized, sampling_params, priority=place, timeout_s=timeout_s, cache_salt=cache_salt)
        return request if request_id is None else replace(request, request_id=request_id)

    def start_async(
        self, *, max_waiting: int | None = None, on_failure: Literal["continue", "stop"] = "continue"
    ) -> AsyncEngine:
        """Hand the engine over to a thread of its own, for ``asyncio``; requests come from :meth:`make_request`.

        From here on :meth:`generate` and the like are refused; :meth:`close` ends the thread too.

        Args:
            max_waiting: Requests that may wait to be run; None for no bound.
            on_failure: As in :class:`AsyncEngine`.

        Raises:
            EngineError: It was handed over before, or a stream is unfinished.
            InvalidRequestError: An argument is out of bounds.
        """
        from inference_pio.core._async_engine import AsyncEngine  # asyncio takes a tenth of a short run's start

        self._check_synchronous()
        check_choices(on_failure=on_failure)
        check_positive(max_waiting=max_waiting)
        if self._engine.has_work:
            raise EngineError("the engine still has unfinished streams", hint="read them to the end, or close them")
        self._engine.scheduler.max_waiting = max_waiting
        self._async = AsyncEngine(self._engine, on_failure=on_failure)
        return self._async

    def reasoning_parser(self, prompt_text: str = "") -> ReasoningParser | None:
        """A parser that splits one answer into reasoning and content; None if the model shows no reasoning.

        Args:
            prompt_text: The rendered prompt: some templates end with the tag that opens the reasoning.
        """
        name = self._manifest.reasoning_parser
        return None if name is None else reasoning_parser(name, prompt=prompt_text)

    def tool_call_parser(self) -> ToolCallParser | None:
        """A parser that finds the tool calls in one answer; None if the model makes none."""
        name = self._manifest.tool_call_parser
        return None if name is None else tool_call_parser(name)

    def tool_call_grammar(
        self,
        tools: Sequence[Mapping[str, object]],
        *,
        tool_choice: str | Mapping[str, object] = "required",
        parallel_tool_calls: bool = True,
        prompt_text: str = "",
    ) -> StructuredOutputs | None:
        """The form of an answer that calls tools, for ``SamplingParams.structured_outputs``.

        What has it, :meth:`tool_call_parser` reads back, after :meth:`reasoning_parser` where the model reasons first.

        Args:
            tools: Definitions in OpenAI's shape.
            tool_choice: ``"required"``, ``"auto"``, ``"none"``, or a named function in OpenAI's shape.
            parallel_tool_calls: Whether there may be several calls.
            prompt_text: The rendered prompt: some templates end with the tag that opens the reasoning.

        Returns:
            The form; None where there is nothing to enforce: ``"none"``, and ``"auto"`` without a strict tool and with
            parallel calls.

        Raises:
            InvalidRequestError: The model makes no calls, or the tools or the choice are malformed.
        """
        name = self._manifest.tool_call_parser
        if name is None:
            raise InvalidRequestError(f"{self.name!r} makes no tool calls", hint="ask a model that was trained to")
        return tool_call_grammar(
            name,
            tools,
            tool_choice=tool_choice,
            parallel_tool_calls=parallel_tool_calls,
            reasoning_parser=self._manifest.reasoning_parser,
            prompt=prompt_text,
        )

    def after_reasoning(self, form: StructuredOutputs, prompt_text: str = "") -> StructuredOutputs:
        """The form for this model: where it shows its reasoning, that comes first and needs no form.

        Args:
            form: What the answer proper must be.
            prompt_text: As in :meth:`reasoning_parser`.

        Raises:
            InvalidRequestError: A JSON schema is not JSON.
        """
        name = self._manifest.reasoning_parser
        return form if name is None else after_reasoning(form, name, prompt=prompt_text)

    def close(self) -> None:
        """Free weights and cache, and end the thread of :meth:`start_async`. Harmless when called twice."""
        if self._async is not None:
            self._async.shutdown()
        self._engine.close()
        self._executor.close()
        if self._draft is not None:
            self._draft.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _render(
        self,
        conversation: Conversation,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> TokenizedPrompt:
        tokenizer = self.get_tokenizer()
        text = tokenizer.apply_chat_template(
            conversation,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            tokenize=False,
            chat_template=template,
            **(variables or {}),
        )
        # A template writes the special tokens itself, so none are added.
        return TokenizedPrompt(tuple(tokenizer.encode(text, add_special_tokens=False)), text)

    def _run(
        self, requests: list[Request], progress: bool | Callable[[int, int], None] | None, *, raise_errors: bool
    ) -> list[RequestOutput]:
        self._check_synchronous()
        engine = self._engine
        added: list[str] = []
        unfinished: set[str] = set()
        shown, callback = (progress, None) if isinstance(progress, bool | None) else (False, progress)
        try:
            for request in requests:
                engine.add(request)
                added.append(request.request_id)
            unfinished.update(added)
            with ProgressBar(len(requests), shown=shown, callback=callback) as bar:
                while unfinished:
                    for event in self._step_for(raise_errors=raise_errors):
                        if event.request_id not in unfinished:
                            continue
                        bar.add_tokens(event.token_id is not None)
                        if event.error is not None and raise_errors:
                            raise event.error
                        if event.finish_reason is not None and engine.output(event.request_id).finished:
                            unfinished.remove(event.request_id)
                            bar.finish_one()
            return [engine.output(request_id) for request_id in added]
        finally:
            for request_id in added:  # after Ctrl-C, a refused prompt or a failed step, no request stays behind
                engine.abort(request_id)
                engine.forget(request_id)

    def _request(
        self,
        prompt: TokenizedPrompt,
        params: SamplingParams | BeamSearchParams | PoolingParams | None,
        *,
        priority: int = 0,
        timeout_s: float | None = None,
        cache_salt: str = "",
    ) -> Request:
        params = params or self.get_default_sampling_params()
        if isinstance(params, SamplingParams) and params.seed is None:
            params = replace(params, seed=secrets.randbits(64) if self._draw_seeds else next(self._seeds))
        return Request(
            request_id=f"request-{next(self._ids)}",
            prompt_token_ids=prompt.token_ids,
            prompt=prompt.text,
            params=params,
            priority=priority,
            timeout_s=timeout_s,
            cache_salt=cache_salt,
        )

    def _stream(self, prompt: TokenizedPrompt, params: SamplingParams | None) -> TokenStream:
        self._check_synchronous()
        request = self._request(prompt, params)
        self._engine.add(request)
        stream = TokenStream(self._engine, request.request_id, self._step)
        self._streams[request.request_id] = stream
        return stream

    def _check_synchronous(self) -> None:
        if self._async is not None:
            raise EngineError(
                "this LLM runs asynchronously since start_async()", hint="submit requests to the AsyncEngine it gave"
            )

    def _step_for(self, *, raise_errors: bool) -> list[TokenEvent]:
        """A step; one that fails raises, or ends its requests with the reason, which the next step's events bring."""
        try:
            return self._step()
        except Exception:  # swallows nothing: it goes on up, or is the error in the events of the requests it ended
            if raise_errors or not self._engine.has_events:
                raise
            return []

    def _step(self) -> list[TokenEvent]:
        """One step of everything that runs; streams get their events, callers get all of them."""
        events = self._engine.step()
        for event in events:
            stream = self._streams.get(event.request_id)
            if stream is not None:
                stream.deliver(event)
        return events


def _embedding(output: RequestOutput) -> EmbeddingOutput:
    assert output.embedding is not None, "no request without a deadline ends otherwise, unless it fails"
    assert output.metrics is not None
    return EmbeddingOutput(
        prompt=output.prompt,
        prompt_token_ids=output.prompt_token_ids,
        embedding=output.embedding,
        metrics=output.metrics,
    )
