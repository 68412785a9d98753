"""A conversation: messages, the parameters of its answers, and the commands that change them."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

from inference_pio.cli._answer import as_object, collect, stream_text, tell_stats
from inference_pio.cli._output import note, write_json
from inference_pio.cli._settings import SAMPLING_KEYS, parse_value
from inference_pio.interfaces import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    from inference_pio.cli._answer import Answer
    from inference_pio.cli._chat_model import ChatModel
    from inference_pio.cli._settings import RunSettings

HELP = '''\
/help             this list
/clear            forget the conversation
/set              show the parameters of answers
/set KEY VALUE    change one, such as /set temperature 0.7 or /set system "Answer briefly."
/exit             leave; so does Ctrl-D
"""               begins and ends a message of several lines
Ctrl-C stops an answer; once more, and it leaves'''

COMMANDS = ("/help", "/clear", "/set", "/exit")


_COMMAND = re.compile(r"/[a-z]*( .*)?", re.DOTALL)


def is_command(message: str) -> bool:
    """Whether ``message`` is meant for the program: a path is not."""
    return _COMMAND.fullmatch(message) is not None


class Conversation:
    """Messages so far, and how the next answer is sampled.

    Args:
        model: What answers.
        run: Settings to start from.
        stats: Show statistics after each answer.
        as_json: Write each answer as one JSON document.
    """

    def __init__(self, model: ChatModel, run: RunSettings, *, stats: bool = False, as_json: bool = False) -> None:
        self.messages: list[dict[str, str]] = []
        self._model = model
        self._settings = run.settings
        self._system = run.settings.system
        self._said = dict(run.sampling)
        self._stats = stats
        self._as_json = as_json
        self.params()

    @property
    def stops_at_once(self) -> bool:
        """Whether Ctrl-C need not wait for the next token."""
        return self._model.stops_at_once

    def params(self) -> dict[str, object]:
        """How the next answer is sampled.

        Raises:
            InvalidRequestError: A value of the wrong type or out of bounds.
        """
        return self._model.parameters(self._settings, self._said)

    def ask(self, text: str, stop: Callable[[], bool]) -> Answer:
        """Answer ``text`` and remember both; a message that cannot be answered is forgotten.

        Raises:
            PioError: It cannot.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        system = [{"role": "system", "content": self._system}] if self._system else []
        stream = self._model.answer([*system, *messages], self._settings, self._said)
        if self._as_json:
            answer = collect(stream, stop=stop)
            write_json(as_object(self._model.described, answer))
        else:
            answer = stream_text(stream, stop=stop)
        self.messages = [*messages, {"role": "assistant", "content": answer.text}]
        if self._stats:
            tell_stats(self._model.described, answer)
        return answer

    def command(self, line: str) -> bool:
        """Do what ``line``, which begins with a slash, says.

        Returns:
            Whether to leave.

        Raises:
            InvalidRequestError: There is no such command or parameter, or the value is out of bounds.
        """
        word, _, rest = line.partition(" ")
        match word:
            case "/exit":
                return True
            case "/help":
                note(HELP)
            case "/clear":
                self.messages = []
                note("the conversation is forgotten")
            case "/set":
                self._set(*rest.strip().partition(" ")[::2])
            case _:
                nearest = difflib.get_close_matches(word, COMMANDS, n=1)
                hint = f"did you mean {nearest[0]}?" if nearest else f"commands are {', '.join(COMMANDS)}"
                raise InvalidRequestError(f"no command {word!r}", hint=hint)
        return False

    def _set(self, key: str, value: str) -> None:
        if not key:
            self._show()
        elif key == "system":
            self._system = str(_value(value)) if value.strip() else None
            note("the system prompt holds from the next answer on")
        elif key in SAMPLING_KEYS:
            before = dict(self._said)
            self._said[key] = _value(value)
            try:
                self.params()
            except InvalidRequestError:
                self._said = before
                raise
            note(f"{key} = {self._said[key]}")
        else:
            known = sorted({*SAMPLING_KEYS, "system"})
            nearest = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"parameters are {', '.join(known)}"
            raise InvalidRequestError(f"no parameter {key!r} that can change in a conversation", hint=hint)

    def _show(self) -> None:
        for key, value in self.params().items():
            note(f"{key} = {value}")
        note(f"system = {self._system}")


def _value(text: str) -> object:
    """As JSON where it is some, else as it stands; ``none`` for nothing."""
    return None if text.strip().lower() == "none" else parse_value(text.strip())
