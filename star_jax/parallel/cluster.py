"""One of several processes: what it says to the others through the coordination service of `jax.distributed`."""

from __future__ import annotations

import json
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any, TypeVar

import jax

from star_jax.errors import ConfigError

T = TypeVar("T")

SAID_AFTER = 10.0
"""Seconds of waiting for another process after which a line says so."""

LINGER_SECONDS = 10.0
"""How long the leader, with whom the service ends, waits until the others have heard why it ends."""

PARTING_SECONDS = 1.0
"""How long it takes a process that has heard to be gone."""

_PIECE = 1 << 24
"""Bytes of a message."""

_KEPT = 1 << 16
"""Bytes of a result up to which it stays with the service; what is larger is deleted once all have read it."""


class Cluster:
    """The processes of one program.

    Args:
      client: of the coordination service.
      index, size: number of this process, and how many there are.
      patience: seconds that it waits for the others where they should have come.
    """

    def __init__(self, client: Any, index: int, size: int, patience: float) -> None:
        self.index, self.size = index, size
        self._client, self._patience = client, patience
        self._calls = count()
        self._alone = False  # whether the leader is inside of what it does alone
        self._ending = threading.Lock()
        threading.Thread(target=self._watch, name="star_jax-hosts", daemon=True).start()

    def shared(self, function: Callable[[], T]) -> T:
        """See the function of that name."""
        if self._alone:
            return function()
        name = f"star_jax/shared/{next(self._calls)}"
        self._meet(f"{name}/begin")
        if self.index:
            result, error = pickle.loads(self._received(name))
        else:
            result, error = None, None
            self._alone = True
            try:
                result = function()
            except Exception as raised:
                error = raised
            finally:
                self._alone = False
            self._send(name, _pickled(result, error))
        if error is not None:
            raise error
        return result

    def facts_of_all(self, facts: Mapping[str, str]) -> list[dict[str, str]]:
        """What each process has said of itself, for the leader; nothing for the others."""
        name = f"star_jax/facts/{next(self._calls)}"
        self._client.key_value_set(f"{name}/{self.index}", json.dumps(facts))
        self._meet(f"{name}/all")
        if self.index:
            return []
        return [json.loads(self._wait(f"{name}/{index}")) for index in range(self.size)]

    def begin_end(self) -> None:
        """Has the calling thread end this process; where another one does already, it never returns."""
        if not self._ending.acquire(blocking=False):
            threading.Event().wait()

    def tell_end(self, code: int, line: str | None) -> None:
        """Tells the others how this process ends, if none has told before, and waits as `_linger`.

        Args:
          code: of its exit.
          line: that all are to say; None where they know already, and end by themselves.
        """
        if line is not None:
            with suppress(jax.errors.JaxRuntimeError):  # another one was first, or the service has ended
                self._client.key_value_set("star_jax/end", json.dumps([code, line]))
        self._linger()

    def leave(self) -> None:
        """Ends the program in good order, once all processes are here."""
        self._meet("star_jax/leave")
        self.begin_end()
        jax.distributed.shutdown()

    def _linger(self) -> None:
        """Says that this process knows how it ends; the leader, with whom the service ends, waits until all do."""
        with suppress(jax.errors.JaxRuntimeError):
            self._client.key_value_set(f"star_jax/ended/{self.index}", "")
        if self.index:
            return
        end = time.monotonic() + LINGER_SECONDS
        for index in range(self.size):
            with suppress(jax.errors.JaxRuntimeError):
                left = max(end - time.monotonic(), 0.001)
                self._client.blocking_key_value_get(f"star_jax/ended/{index}", int(1000 * left))
        time.sleep(PARTING_SECONDS)

    def _watch(self) -> None:
        """Ends this process as soon as another one tells that it has ended with an error."""
        while not self._ending.locked():
            try:
                code, line = json.loads(self._client.blocking_key_value_get("star_jax/end", 2000))
            except jax.errors.JaxRuntimeError:
                time.sleep(0.05)  # where the service is gone, JAX ends the process
                continue
            self.begin_end()
            _write(line)
            self._linger()
            # The main thread may be in the midst of a collective operation, which nobody can call it out of.
            os._exit(code)

    def _meet(self, name: str) -> None:
        """Waits until all processes are here.

        Raises:
          ConfigError: they were not within the patience.
        """
        with self._said(lambda: "for the others"):
            try:
                self._client.wait_at_barrier(name, int(1000 * self._patience))
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise
                raise ConfigError(
                    f"process {self.index} has waited {self._patience:,.0f} seconds for the other {self.size - 1}, "
                    "which are alive and do something else; see what they say, and raise --hosts.wait-seconds where "
                    "they only take longer"
                ) from None

    def _send(self, name: str, content: bytes) -> None:
        pieces = [content[start : start + _PIECE] for start in range(0, len(content), _PIECE)]
        self._client.key_value_set_bytes(f"{name}/pieces", str(len(pieces)).encode())
        for number, piece in enumerate(pieces):
            self._client.key_value_set_bytes(f"{name}/{number}", piece)
        if len(pieces) > 1 or len(content) > _KEPT:
            self._meet(f"{name}/read")
            self._client.key_value_delete(name)

    def _received(self, name: str) -> bytes:
        with self._said(lambda: "for process 0, which works alone"):
            pieces = int(self._wait(f"{name}/pieces"))
        content = b"".join(self._wait(f"{name}/{number}") for number in range(pieces))
        if pieces > 1 or len(content) > _KEPT:
            self._meet(f"{name}/read")
        return content

    def _wait(self, name: str) -> bytes:
        """What another process has said, or says once it gets there; where it dies, JAX ends this one."""
        while True:
            try:
                return self._client.blocking_key_value_get_bytes(name, 60_000)
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise

    @contextmanager
    def _said(self, what: Callable[[], str]) -> Iterator[None]:
        with after(SAID_AFTER, lambda: say(f"process {self.index} of {self.size} waits {what()}")):
            yield


@contextmanager
def after(seconds: float, act: Callable[[], None]) -> Iterator[None]:
    """Does something, in another thread, if what is inside takes longer than that."""
    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _pickled(result: Any, error: Exception | None) -> bytes:
    if error is None:
        return pickle.dumps((result, None))
    try:
        content = pickle.dumps((None, error))
        pickle.loads(content)  # not every exception that can be written can be read
        return content
    except Exception:
        return pickle.dumps((None, RuntimeError(str(error))))


def say(text: str) -> None:
    """Prints a line to stderr."""
    _write(f"star_jax: {text}")


def _write(line: str) -> None:
    # Straight to stderr: the main thread may be in the middle of writing to it.
    os.write(2, f"{line}\n".encode() if line else b"")


def give_up(line: str) -> None:
    """Prints a line to stderr and ends the process, with the code of what a user can put right."""
    _write(line)
    os._exit(2)
