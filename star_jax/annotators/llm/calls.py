"""The calls to an endpoint: made with retries, written down one by one, and paid for.

Every call is a line of a file before anything is made of it, so that nothing that was paid for is paid for again.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from star_jax.annotators.llm.messages import Message, most_tokens
from star_jax.config import LlmConfig
from star_jax.errors import ConfigError

CALLS_FILE = "llm_calls.jsonl"
"""Name of the file beside the run folders; all runs of an experiment share it."""


@dataclass(frozen=True)
class Call:
    """One call that was answered.

    Attributes:
      id: of the example.
      question: hash of what determines what it is asked, but for the examples.
      said: what the model wrote; None where it wrote nothing.
      input_tokens, output_tokens: as the endpoint counts them.
      cost: at the prices of then; the most that it may be where the endpoint does not count.
      model: that answered, as the endpoint says.
      called_at: ISO 8601.
    """

    id: str
    question: str
    said: str | None
    input_tokens: int
    output_tokens: int
    cost: float
    model: str
    called_at: str


class Stopped(Exception):
    """No call can be made now; the message says why, and what to do."""


class CallLog:
    """The file of calls. Several processes may add to it."""

    def __init__(self, path: Path) -> None:
        """A log.

        Args:
          path: of the file; made with the first call.
        """
        self.path = path

    def add(self, call: Call) -> None:
        """Writes a call, whole or not at all as far as a reader sees."""
        with self._locked() as file:
            file.seek(0, os.SEEK_END)
            if file.tell():
                file.seek(-1, os.SEEK_END)
                # A process that was killed may have left half a line.
                file.write(b"" if file.read(1) == b"\n" else b"\n")
            file.write(json.dumps(vars(call), ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def calls(self) -> list[Call]:
        """All calls so far; a line that a killed process has left half written is passed over."""
        if not self.path.exists():
            return []
        found = []
        for line in self.path.read_bytes().split(b"\n"):
            try:
                found.append(Call(**json.loads(line.decode("utf-8", "surrogatepass"))))
            except (ValueError, TypeError):
                continue
        return found

    def spent(self) -> float:
        """What all calls have cost."""
        return sum(call.cost for call in self.calls())

    @contextmanager
    def _locked(self) -> Iterator[Any]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file


class Endpoint:
    """Asks the model, never beyond the limit.

    A call is made where what was spent, what calls under way may cost, and the most that it may cost itself are within
    the limit; so the limit holds whatever is answered, for one process. It knows of the calls that were answered here:
    one whose answer never came, because it took too long or the process was killed, may be on the bill all the same.
    """

    def __init__(self, settings: LlmConfig, log: CallLog) -> None:
        """An endpoint; nothing is sent yet.

        Args:
          settings: which, and how.
          log: of all calls.

        Raises:
          ConfigError: the extra is not installed, no model is named, or the key is missing.
        """
        try:
            import openai
        except ImportError:
            raise ConfigError(
                "the annotator llm needs the package openai; install it with pip install 'star_jax[llm]'"
            ) from None
        if not settings.model.strip():
            raise ConfigError("llm.model is empty; name the model as the endpoint calls it")
        address = settings.base_url or os.environ.get("OPENAI_BASE_URL")
        key = os.environ.get(settings.key_variable, "").strip()
        if not key and not address:
            raise ConfigError(
                f"the environment variable {settings.key_variable} is not set; put the key of the endpoint into it, or "
                "name a server of yours in llm.base_url"
            )
        self._openai, self._settings, self._log, self._key = openai, settings, log, key
        self._client = openai.OpenAI(
            api_key=key or "none", base_url=address, timeout=settings.timeout, max_retries=settings.retries
        )
        self._change = threading.Condition()
        # Not a sum that is added to and taken from: after the last call it would mostly not be 0 but for rounding.
        self._spent, self._under_way = log.spent(), list[float]()

    def ask(self, name: str, question: str, messages: Sequence[Message], format: dict[str, Any] | None) -> Call:
        """One answered call, written down.

        Args:
          name: id of the example.
          question: as in `Call`.
          messages: of the conversation.
          format: `response_format`; None for none.

        Raises:
          Stopped: the limit would not allow it, or the endpoint does not answer.
          ConfigError: the endpoint refuses the key, the model or the call.
        """
        settings = self._settings
        most = self._cost(most_tokens(messages), settings.max_tokens)
        self._reserve(most)
        try:
            options: dict[str, Any] = {settings.max_tokens_field: settings.max_tokens}
            options |= {} if settings.temperature is None else {"temperature": settings.temperature}
            options |= {} if format is None else {"response_format": format}
            reply = self._reply(list(messages), options)
            used = reply.usage
            tokens = (used.prompt_tokens, used.completion_tokens) if used is not None else (0, 0)
            said = reply.choices[0].message.content if reply.choices else None
            now = datetime.now(UTC).isoformat(timespec="seconds")
            cost = self._cost(*tokens) if used is not None else most
            call = Call(name, question, self._without_key(said), tokens[0], tokens[1], cost, reply.model or "", now)
            with self._change:
                self._spent += call.cost
            self._log.add(call)
            return call
        finally:
            with self._change:
                self._under_way.remove(most)
                self._change.notify_all()

    def _reply(self, messages: Any, options: dict[str, Any]) -> Any:
        openai, settings = self._openai, self._settings
        try:
            return self._client.chat.completions.create(model=settings.model, messages=messages, **options)
        except (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError) as error:
            tries = settings.retries + 1
            raise Stopped(
                f"{self._place()} did not answer in {tries} tries ({self._reason(error)}); what it has labelled is "
                "kept, run the same command again when it does"
            ) from None
        except openai.APIStatusError as error:
            raise ConfigError(f"{self._place()} refuses the call ({self._reason(error)})") from None
        except openai.OpenAIError as error:
            raise ConfigError(f"{self._place()} cannot be used ({self._reason(error)})") from None

    def _reserve(self, most: float) -> None:
        limit = self._settings.spending_limit
        with self._change:
            # Calls under way mostly cost less than they may.
            while limit is not None and self._under_way and self._spent + sum(self._under_way) + most > limit:
                self._change.wait()
            if limit is not None and self._spent + most > limit:
                raise Stopped(
                    f"the spending limit llm.spending_limit {limit:g} is reached: {self._spent:.6g} is spent, and the "
                    f"next call may cost up to {most:.6g}; what is labelled is kept, raise the limit and run the same "
                    "command again"
                )
            self._under_way.append(most)

    def _cost(self, read: int, written: int) -> float:
        return (read * self._settings.input_price + written * self._settings.output_price) / 1e6

    def _place(self) -> str:
        # Without a user or a query, which OPENAI_BASE_URL may have.
        address = self._client.base_url
        return f"the endpoint {address.scheme}://{address.netloc.decode()}{address.path}"

    def _reason(self, error: Exception) -> str:
        # The key goes first: of one that is cut off, a part would be left.
        said = self._without_key(" ".join(str(error).split()))
        return said[:300] or type(error).__name__

    def _without_key(self, text: Any) -> Any:
        """A text without the key, which some endpoints repeat."""
        return text.replace(self._key, "[key]") if self._key and isinstance(text, str) else text
