"""`star-jax label`: a local page on which people label what a run waits for, and which then goes on with the run."""

from __future__ import annotations

import os
import secrets
import socket
import sys
import webbrowser
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from star_jax.annotators.label_table import LabelTable
from star_jax.annotators.web.continuation import Continuation, Phase
from star_jax.annotators.web.desk import Desk, Scope
from star_jax.annotators.web.pages import Pages
from star_jax.annotators.web.view import Look
from star_jax.cli import flags
from star_jax.errors import ConfigError, DataError
from star_jax.runs.waiting_runs import WaitingRuns, find_waiting
from star_jax.tracking.interruption import asked

PROGRAM = "star-jax label"
WHEN_INTERRUPTED = "interrupted; every answer is kept, and the same command goes on"

LOG = "labelling.log"
"""Name of the file in the output folder that has what the run prints."""

TOKEN_BYTES = 24
"""Random bytes in the page's address."""


@dataclass(frozen=True)
class LabelFlags:
    """Opens a local page to label on. Once a round is full, the run goes on by itself and asks for what it needs next.

    Answers are written into labels.csv of the output folder, one by one. The page is for this machine alone
    (127.0.0.1), at an address with a token in it.
    """

    place: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="DIR")]]
    """Output folder of a run that waits for labels, or one of its runs, OUTPUT_DIR/STRATEGY/seed-N."""
    guidelines: str | None = None
    """Markdown file that is shown beside the examples; none for none."""
    annotator: str = ""
    """Your name, for the column annotator; it can be changed on the page."""
    guess: bool = True
    """Whether the model's answer is shown; without it, nobody is led by it."""
    cost_per_label: float | None = None
    """What an answer costs, to show what a round costs; none for not to show it."""
    currency: str = ""
    """That it is in, for example EUR."""
    pause: float = 5.0
    """Seconds between the last label of a round and the start of the run, in which it can be taken back."""
    port: int = 8377
    """Of the page's address; 0 for any that is free."""
    browser: bool = True
    """Whether the page is opened in your browser, where there is a screen."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 1 << 16:
            raise ConfigError(f"--port is {self.port}; it must be from 0 to 65535")
        if not 0 <= self.pause < 1e6:
            raise ConfigError(f"--pause is {self.pause}; it must be a number of seconds, 0 for none")
        if self.cost_per_label is not None and not 0 <= self.cost_per_label < 1e9:
            raise ConfigError(f"--cost-per-label is {self.cost_per_label}; it must be a number, 0 or more")


def main(argv: Sequence[str], program: str = PROGRAM) -> int:
    """Serves the page until it is interrupted; 0 then, for nothing is lost."""
    given = flags.parse(program, LabelFlags, argv)
    try:
        guidelines = _guidelines(given.guidelines)
        runs = find_waiting(given.place)
        from star_jax.annotators.web.server import bind, serve
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the page needs the package {error.name}; install it with pip install 'star_jax[web]'"
        ) from error
    pages = _pages(runs, given, guidelines)
    pages.desk.sheet()  # a table that cannot be read is told of here
    bound = _bound(bind, given.port)
    token = secrets.token_urlsafe(TOKEN_BYTES)
    try:
        _announce(bound, token, pages.desk.missing(), runs, given)
        serve(pages, bound, token, given.annotator, asked)
    except KeyboardInterrupt:
        pass  # how the page is closed
    if pages.continuation.status.phase is Phase.RUNNING:
        print("the run stops after its step; Ctrl-C again does not wait for it", flush=True)
    pages.continuation.stop()
    print(f"closed; every answer is in {runs.table}, and the same command goes on")
    return 0


def _announce(bound: socket.socket, token: str, missing: int, runs: WaitingRuns, given: LabelFlags) -> None:
    """Prints the address, and opens a browser at it."""
    host, port = bound.getsockname()
    address = f"http://{host}:{port}/{token}/"
    print(f"{missing} example{'s need a label' if missing != 1 else ' needs a label'}: {address}")
    print(f"answers go into {runs.table}, what the run prints into {runs.folder / LOG}; Ctrl-C closes the page")
    sys.stdout.flush()
    if given.browser and _has_screen():
        webbrowser.open(address)


def _pages(runs: WaitingRuns, given: LabelFlags, guidelines: str) -> Pages:
    skip = runs.config.labels.skip
    desk = Desk(LabelTable(runs.table), Scope(() if runs.whole else runs.strategies, skip))
    look = Look(runs.folder.resolve().name, skip, given.guess, given.cost_per_label, given.currency, guidelines)
    going = Continuation(runs, desk, runs.folder / LOG, given.pause)
    return Pages(desk, going, runs, look)


def _guidelines(path: str | None) -> str:
    """The guidelines as HTML; what is HTML in them already is shown as it is written."""
    if path is None:
        return ""
    from markdown_it import MarkdownIt

    try:
        text = Path(path).expanduser().read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"--guidelines is {path}, which cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"--guidelines is {path}, which is no text in UTF-8; save it as that") from error
    return MarkdownIt("commonmark", {"html": False}).enable("table").render(text)


def _bound(bind: Callable[[int], socket.socket], port: int) -> socket.socket:
    try:
        return bind(port)
    except OSError as error:
        raise ConfigError(
            f"port {port} of this machine cannot be used ({error.strerror}); close the other page, or choose another "
            "with --port (0 for any that is free)"
        ) from error


def _has_screen() -> bool:
    """Whether a browser would have somewhere to show itself: over SSH, it would take the terminal instead."""
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
