"""Ctrl-C, and SIGTERM, as a request that is kept until a step heeds it.

Python raises `KeyboardInterrupt` wherever the program happens to be, and where that is a callback of the garbage
collector or of a compiled library, the exception is dropped there and the program goes on as if nothing had been said.
So the request is written down as well, and every step of a run asks for it.

SIGTERM is how a machine that is taken away, or a scheduler, asks a program to end soon. It interrupts nothing: the step
under way is done, and what is being written is written.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_request = threading.Event()
_termination = threading.Event()


class Terminated(KeyboardInterrupt):
    """A step has heeded SIGTERM."""


def asked() -> bool:
    """Whether somebody has pressed Ctrl-C since `heeded` was entered."""
    return _request.is_set()


def stop_if_asked() -> None:
    """Between two steps: raises `KeyboardInterrupt` where Ctrl-C was pressed, whoever has dropped the first one.

    After SIGTERM it raises `Terminated`.
    """
    if _request.is_set():
        raise KeyboardInterrupt
    if _termination.is_set():
        raise Terminated


@contextmanager
def termination_heeded() -> Iterator[None]:
    """Inside, the first SIGTERM is remembered until a step asks for it; the second ends the process at once.

    Where it is ignored or already somebody else's, and outside of the main thread, nothing changes.
    """
    _termination.clear()
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return
    signal.signal(signal.SIGTERM, _note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _note(number: int, frame: Any) -> None:
    _termination.set()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.write(2, b"star_jax: asked to end; stops after this step\n")


@contextmanager
def heeded() -> Iterator[None]:
    """Inside, the first Ctrl-C raises `KeyboardInterrupt` and is remembered; the second ends the process at once.

    Where interrupts are ignored, as in a job that a shell has put into the background, or are already somebody else's,
    and outside of the main thread, which alone may say so, nothing changes.
    """
    _request.clear()
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    dropped = sys.unraisablehook
    signal.signal(signal.SIGINT, _ask)
    sys.unraisablehook = lambda found: _tell(found) or dropped(found)
    try:
        yield
    finally:
        sys.unraisablehook = dropped
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _ask(number: int, frame: Any) -> None:
    _request.set()
    # The system's own way to end, for a handler in Python waits for compiled code to return.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt


def _tell(found: Any) -> bool:
    """Instead of the traceback of an interrupt that was dropped, says what happens now; whether it was one."""
    if not issubclass(found.exc_type, KeyboardInterrupt):
        return False
    # Straight to the terminal: what was interrupted may be in the middle of writing to the same stream.
    os.write(2, b"star_jax: stops after this step; Ctrl-C again stops at once\n")
    return True
