"""The offline API: load a model, generate, chat, stream. Names and results follow vLLM's ``LLM``."""

from __future__ import annotations

import itertools
import secrets
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakValueDictionary

from inference_pio.config import Settings
from inference_pio.config import cache_dir as default_cache_dir
from inference_pio.core._checkpoint import open_checkpoint
from inference_pio.core._engine import Engine
from inference_pio.core._locate import locate_model
from inference_pio.core._prompts import (
    TokenizedPrompt,
    as_conversations,
    as_prompt_list,
    pair_with_params,
    tokenize_prompt,
)
from inference_pio.core._registry import Registry
from inference_pio.core._stream import TokenStream
from inference_pio.core._threads import limit_spinning
from inference_pio.interfaces import InvalidRequestError, Request, SamplingParams, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

    from inference_pio.core._prompts import Conversation, Prompt
    from inference_pio.core._registry import InstalledPlugin
    from inference_pio.interfaces import ModelShape, RequestOutput
    from inference_pio.processing import Tokenizer

_GENERATION_FIELDS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_CHOICES = {
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "kv_cache": ("auto", "paged", "contiguous"),
}


class LLM:
    """A loaded model that continues prompts.

    Args:
        model: A registered name, a folder, a ``.gguf`` or ``.safetensors`` file, or a hub id, which is fetched if it is
            not here yet.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"auto"`` for what the checkpoint and device favour.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ..., or ``"auto"`` for CUDA where there is one.
        threads: Threads of CPU operators, for the whole process; None leaves the library's choice.
        max_model_len: Tokens of prompt and continuation together; None for the model's context, or what fits.
        max_num_seqs: Continuations that run at once.
        attention: Name of an attention backend, or ``"auto"``.
        kv_cache: ``"paged"``, ``"contiguous"`` or ``"auto"``.
        seed: Seed for requests that bring none; None draws one for each.
        cache_dir: Where fetched models lie; None for the default place.
        ignore_unknown_keys: Accept unknown keys in the model's config.
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
        dtype: str = "auto",
        device: str = "auto",
        threads: int | None = None,
        max_model_len: int | None = None,
        max_num_seqs: int = 8,
        attention: str = "auto",
        kv_cache: str = "auto",
        seed: int | None = None,
        cache_dir: str | Path | None = None,
        ignore_unknown_keys: bool = False,
        hub_endpoint: str | None = None,
        progress: Callable[[int, int], None] | None = None,
        download_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        started = time.perf_counter()
        _check_options(dtype=dtype, kv_cache=kv_cache, threads=threads, max_num_seqs=max_num_seqs)
        registry = Registry.discover()
        located = locate_model(
            model,
            registry,
            cache_dir=default_cache_dir(Settings()) if cache_dir is None else Path(cache_dir),
            endpoint=hub_endpoint,
            progress=download_progress,
        )
        checkpoint = open_checkpoint(located, registry, ignore_unknown_keys=ignore_unknown_keys)
        capabilities = checkpoint.installed.manifest.capabilities
        _check_capabilities(checkpoint.installed, kv_cache)
        self.name = checkpoint.name
        self.shape: ModelShape = checkpoint.shape
        self._generation = checkpoint.generation
        self._seeds = itertools.count() if seed is None else itertools.count(seed)
        self._draw_seeds = seed is None
        self.tokenizer: Tokenizer | None = checkpoint.tokenizer()
        # Imported here, so that importing the API, or failing above, does not wait for torch.
        limit_spinning()
        from inference_pio.core.torch_executor import build_torch_executor

        self._executor = build_torch_executor(
            checkpoint,
            dtype=dtype,
            device=device,
            threads=threads,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            attention=attention,
            kv_cache="contiguous" if kv_cache == "auto" and "paged-kv" not in capabilities else kv_cache,
            progress=progress,
        )
        self._engine = Engine(
            self._executor,
            self.tokenizer,
            vocab_size=self.shape.vocab_size,
            eos_token_ids=(*checkpoint.eos_token_ids, *(self.tokenizer.end_token_ids if self.tokenizer else ())),
            max_model_len=self._executor.max_model_len,
            max_num_seqs=max_num_seqs,
            chunked_prefill="chunked-prefill" in capabilities,
            logprobs="logprobs" in capabilities,
        )
        # Weak: a stream that nobody holds any more is cancelled, see TokenStream.__del__.
        self._streams: WeakValueDictionary[str, TokenStream] = WeakValueDictionary()
        self._ids = itertools.count()
        self.load_s = time.perf_counter() - started

    @property
    def dtype(self) -> str:
        """Dtype of weights and cache."""
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
    def max_model_len(self) -> int:
        """Tokens of prompt and continuation together."""
        return self._engine.max_model_len

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
        progress: Callable[[int, int], None] | None = None,
    ) -> list[RequestOutput]:
        """Continue each prompt.

        Args:
            prompts: Text, token ids, or a list of either (also ``{"prompt": ...}``, ``{"prompt_token_ids": ...}``).
            sampling_params: One for all or one for each; None for the model's recommendation.
            progress: Called with prompts done and prompts in all.

        Returns:
            One output per prompt, in their order.

        Raises:
            InvalidRequestError: A prompt or a parameter that can never be served; nothing is generated then.
        """
        tokenized = [tokenize_prompt(prompt, self.tokenizer) for prompt in as_prompt_list(prompts)]
        params = pair_with_params(len(tokenized), sampling_params, self.get_default_sampling_params())
        return self._run(tokenized, params, progress)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or several.

        Args:
            messages: A list of ``{"role": ..., "content": ...}``, or a list of such lists.
            sampling_params: One for all or one for each; None for the model's recommendation.
            add_generation_prompt: End with the header of the assistant's turn.
            tools: Descriptions of tools, for templates that take them.
            chat_template: A template to use instead of the model's own.
            chat_template_kwargs: More variables for the template.
            progress: Called with conversations done and conversations in all.

        Raises:
            TemplateError: There is no chat template, or it refuses the messages.
            InvalidRequestError: As :meth:`generate`.
        """
        tokenized = [
            self._render(conversation, add_generation_prompt, tools, chat_template, chat_template_kwargs)
            for conversation in as_conversations(messages)
        ]
        params = pair_with_params(len(tokenized), sampling_params, self.get_default_sampling_params())
        return self._run(tokenized, params, progress)

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

    def close(self) -> None:
        """Free weights and cache. Harmless when called twice."""
        self._executor.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _render(
        self,
        conversation: Conversation,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, object]] | None,
        template: str | None,
        variables: Mapping[str, Any] | None,
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
        self,
        prompts: list[TokenizedPrompt],
        params: list[SamplingParams],
        progress: Callable[[int, int], None] | None,
    ) -> list[RequestOutput]:
        streams: list[TokenStream] = []
        try:
            for prompt, one in zip(prompts, params, strict=True):
                streams.append(self._stream(prompt, one))
            for done, stream in enumerate(streams, start=1):
                for _ in stream:
                    pass  # a step serves all streams; their events wait until it is their turn
                if progress is not None:
                    progress(done, len(streams))
        finally:
            for stream in streams:  # after Ctrl-C, a refused prompt or a failed step, no request stays behind
                stream.close()
        return [stream.output for stream in streams]

    def _stream(self, prompt: TokenizedPrompt, params: SamplingParams | None) -> TokenStream:
        params = params or self.get_default_sampling_params()
        if params.seed is None:
            params = replace(params, seed=secrets.randbits(64) if self._draw_seeds else next(self._seeds))
        request_id = f"request-{next(self._ids)}"
        self._engine.add(
            Request(request_id=request_id, prompt_token_ids=prompt.token_ids, prompt=prompt.text, params=params)
        )
        stream = TokenStream(self._engine, request_id, self._step)
        self._streams[request_id] = stream
        return stream

    def _step(self) -> None:
        for event in self._engine.step():
            self._streams[event.request_id].deliver(event)


def _check_capabilities(installed: InstalledPlugin, kv_cache: str) -> None:
    """What the conformance kit has not passed for a model is not done with it."""
    needed = ["generate", "paged-kv"] if kv_cache == "paged" else ["generate"]
    for capability in needed:
        if capability not in installed.manifest.capabilities:
            raise UnsupportedError(
                f"{installed.manifest.distribution} {installed.version} does not declare the capability {capability!r}",
                hint="upgrade it, or choose kv_cache='contiguous'" if capability == "paged-kv" else "upgrade it",
            )


def _check_options(*, dtype: str, kv_cache: str, threads: int | None, max_num_seqs: int) -> None:
    for name, value in (("dtype", dtype), ("kv_cache", kv_cache)):
        if value not in _CHOICES[name]:
            raise InvalidRequestError(f"unknown {name} {value!r}", hint=f"give {', '.join(_CHOICES[name])}")
    if threads is not None and threads < 1:
        raise InvalidRequestError(f"threads must be at least 1, got {threads}")
    if max_num_seqs < 1:
        raise InvalidRequestError(f"max_num_seqs must be at least 1, got {max_num_seqs}")
