"""The engine in this process as the target of a load: what a server could reach at best."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from inference_pio.benchmarks._serve_prompts import as_messages
from inference_pio.config import load_settings, model_arguments
from inference_pio.interfaces import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from inference_pio.benchmarks._serve_client import Endpoint
    from inference_pio.benchmarks._serve_prompts import Prompt
    from inference_pio.benchmarks._serve_timeline import Timeline
    from inference_pio.core import LLM


def load_model(model: str | None, progress: Callable[[int, int], None] | None = None) -> LLM:
    """The model, under the settings that a server started here would have: environment, project and user files.

    Args:
        model: Name, folder, file or hub id; None for the one in the settings.
        progress: Called with bytes loaded and bytes in all.

    Raises:
        PioError: It cannot be found, read or held.
    """
    from inference_pio.core import LLM

    arguments = model_arguments(load_settings().settings)
    if model is not None:
        arguments["model"] = model
    return LLM(**arguments, progress=progress, download_progress=progress)


class EngineTarget:
    """Hands prompts to the engine's own thread and reads tokens from it, as a server does, without HTTP.

    Prompts become tokens before the clock starts: that is work of a server, and belongs to its overhead.

    Args:
        llm: The model; closed with the target.
        endpoint: Whether text is a prompt as it stands, or what a user says in a chat.
        ignore_eos: Go on to the length asked for.
        temperature: Of the sampling; None for the model's recommendation.
    """

    def __init__(self, llm: LLM, *, endpoint: Endpoint, ignore_eos: bool, temperature: float | None) -> None:
        self._llm = llm
        self._engine = llm.start_async()
        self._endpoint = endpoint
        self._ignore_eos = ignore_eos
        self._temperature = temperature

    @property
    def model(self) -> str:
        """Name of the model."""
        return self._llm.name

    async def send(self, prompt: Prompt, timeline: Timeline) -> None:
        """Stream an answer and note its times.

        Raises:
            PioError: It can never be served, or failed.
        """
        params = self._params(prompt.output_len)
        if self._endpoint == "chat":
            request = self._llm.make_request(as_messages(prompt.content), params)
        else:
            assert isinstance(prompt.content, str)  # held to it when the dataset was read
            request = self._llm.make_request(prompt.content, params)
        timeline.prompt_tokens, timeline.output_tokens = len(request.prompt_token_ids), 0
        timeline.start = time.perf_counter()
        async with await self._engine.submit(request) as stream:
            async for event in stream:
                timeline.note_chunk(time.perf_counter(), text=bool(event.text))
                timeline.output_tokens += event.token_id is not None

    async def close(self) -> None:
        """End the engine's thread and free the model."""
        await self._engine.close()
        self._llm.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _params(self, output_len: int) -> SamplingParams:
        if self._temperature is None:
            recommended = self._llm.get_default_sampling_params()
            return replace(recommended, max_tokens=output_len, ignore_eos=self._ignore_eos)
        return SamplingParams(temperature=self._temperature, max_tokens=output_len, ignore_eos=self._ignore_eos)
