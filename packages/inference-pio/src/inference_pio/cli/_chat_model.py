"""What answers a conversation: a model in this process, or, behind the same seam, one on a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from inference_pio.cli._answer import EngineStream
from inference_pio.cli._settings import SAMPLING_KEYS, sampling_params

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from inference_pio.cli._answer import Described, Stream
    from inference_pio.config import Settings
    from inference_pio.core import LLM


class ChatModel(Protocol):
    """Continues conversations. ``said`` are sampling parameters that are no settings; they win over ``settings``."""

    @property
    def described(self) -> Described:
        """What reports say of it."""

    @property
    def stops_at_once(self) -> bool:
        """Whether an answer can be broken off wherever it is, and not only between two tokens."""

    def parameters(self, settings: Settings, said: Mapping[str, object]) -> dict[str, object]:
        """How the next answer is sampled: every key of ``SAMPLING_KEYS``, for people to read.

        Raises:
            InvalidRequestError: A value of the wrong type or out of bounds.
        """

    def answer(self, messages: Sequence[Mapping[str, str]], settings: Settings, said: Mapping[str, object]) -> Stream:
        """The next turn of ``messages``.

        Raises:
            PioError: It cannot be answered.
        """


class LocalModel:
    """A loaded model.

    Args:
        llm: The model.
    """

    stops_at_once = False  # a step of the engine that is torn apart leaves it in no known state

    def __init__(self, llm: LLM) -> None:
        self._llm = llm

    @property
    def described(self) -> Described:
        """The model itself."""
        return self._llm

    def parameters(self, settings: Settings, said: Mapping[str, object]) -> dict[str, object]:
        """As :class:`ChatModel` says."""
        params = sampling_params(settings, said, self._llm.get_default_sampling_params())
        return {key: getattr(params, key) for key in sorted(SAMPLING_KEYS)}

    def answer(self, messages: Sequence[Mapping[str, str]], settings: Settings, said: Mapping[str, object]) -> Stream:
        """As :class:`ChatModel` says."""
        params = sampling_params(settings, said, self._llm.get_default_sampling_params())
        return EngineStream(self._llm.chat_stream(messages, params))
