"""What the page answers to each request: the shell between a browser's forms and the table of labels.

Knows nothing of sockets: `server` serves it. Whatever a form says is on disk before the answer to it is made.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import jinja2

from star_jax.annotators.csv_file import WHO
from star_jax.annotators.web import opinions, view
from star_jax.annotators.web.continuation import Continuation, Phase, Status, said
from star_jax.annotators.web.desk import Desk, Sheet, clean_name
from star_jax.annotators.web.view import Look
from star_jax.errors import ConfigError, DataError

HELD = 120.0
"""Seconds for which an example that one person is shown is not shown to others, as long as there are more."""

Form = Mapping[str, str]


class Record(Protocol):
    """What the runs have done so far: see `runs.waiting_runs.WaitingRuns`."""

    def used(self) -> frozenset[str]:
        """Ids of what trainings have used."""
        ...

    def rounds(self) -> tuple[int, int]:
        """Finished rounds, and all."""
        ...

    def accuracy(self) -> float | None:
        """After the last finished round."""
        ...


@dataclass(frozen=True)
class Chosen:
    """What a person's address asks for.

    Attributes:
      who: the person's name; empty where nobody says.
      name: id of an example; what comes next when None.
      second: whether examples are shown that others have labelled.
      message: what to say on top.
    """

    who: str = ""
    name: str | None = None
    second: bool = False
    message: str = ""


@dataclass
class Pages:
    """The page of one table.

    Attributes:
      desk: the table.
      continuation: goes on with the run.
      record: what the runs have done.
      look: what is shown.
    """

    desk: Desk
    continuation: Continuation
    record: Record
    look: Look
    _held: dict[str, tuple[str, float]] = field(default_factory=dict)

    def show(self, chosen: Chosen, base: str) -> str:
        """The page as HTML.

        Args:
          chosen: what is to be seen.
          base: path that every address of the page begins with.
        """
        status = self.continuation.look()
        values = {"base": base, "look": self.look, "who": chosen.who, "second": chosen.second}
        values |= {"message": chosen.message, "problem": "", "status": self._said(status)}
        values |= {"version": self.version(status), "experiment": self._experiment()}
        try:
            values |= self._state(chosen, status)
        except (ConfigError, DataError, OSError) as error:
            values |= {"problem": said(error), "rounds": 0, "accuracy": None, "summary": None, "item": None}
        return _TEMPLATE.render(values)

    def _state(self, chosen: Chosen, status: Status) -> dict[str, Any]:
        """What the table and the runs say; errors as those of `Desk.sheet`."""
        sheet, used = self.desk.sheet(), self.record.used()
        done, rounds = self.record.rounds()
        values: dict[str, Any] = {"round": done, "rounds": rounds, "accuracy": self.record.accuracy()}
        values |= {"summary": view.summary(sheet, self.look, used, chosen.who), "item": None, "again": False}
        values |= {"decide": False, "author": ""}
        name = self._next(sheet, chosen, used)
        if name is not None:
            blind = chosen.second and chosen.who not in opinions.opinions(sheet.cells[name])
            values["item"] = view.item(sheet, name, self.look, used, blind)
            values["again"] = again = bool(sheet.cells[name].text) and not chosen.second
            others = again and opinions.is_second(sheet.cells[name], chosen.who)
            values["decide"] = others or (again and bool(values["item"]["opinions"]))
            values["author"] = sheet.cells[name].more.get(WHO, "") if others else ""
        return values | {"fix": view.named_in(status.line, sheet.cells) if status.phase is Phase.FAILED else None}

    def version(self, status: Status | None = None) -> str:
        """Another text whenever the page would look different."""
        status = status or self.continuation.look()
        seen = (status.phase, status.line, math.ceil(status.seconds), self.desk.version())
        return hashlib.sha256(repr(seen).encode()).hexdigest()[:16]

    def _experiment(self) -> str:
        """Tells what a browser keeps for this table from what it keeps for others, whatever address they are at."""
        return hashlib.sha256(str(self.desk.table.path.parent.resolve()).encode()).hexdigest()[:16]

    def _said(self, status: Status) -> dict[str, Any]:
        line = view.readable(status.line)
        return {"phase": status.phase.value, "line": line, "seconds": math.ceil(status.seconds)}

    def _next(self, sheet: Sheet, chosen: Chosen, used: frozenset[str]) -> str | None:
        if chosen.name in sheet.cells:
            return chosen.name
        if chosen.second:
            return opinions.next_unseen(sheet.cells, chosen.who, used)
        now = time.monotonic()
        held = self._held.items() if chosen.who else ()  # who has no name cannot be told from others
        others = {name for who, (name, since) in held if who != chosen.who and now - since < HELD}
        name = opinions.next_open(sheet.cells, others)
        if name is not None:
            self._held[chosen.who] = (name, now)
        return name

    def post(self, action: str, form: Form, who: str) -> Chosen | None:
        """Does what a form says.

        Args:
          action: `answer`, `skip`, `undo` or `go-on`.
          form: its fields.
          who: the person's name.

        Returns:
          What to show then; None where there is no such action.
        """
        name, second, decide = form.get("id", ""), form.get("second") == "1", form.get("decide") == "1"
        try:
            if action == "answer":
                self.desk.answer(name, form.get("response", ""), who, form.get("seen"), decide)
            elif action == "skip":
                self.desk.skip(name, form.get("reason", ""), who, form.get("seen"), decide)
            elif action == "undo":
                return self._undo(who)
            elif action == "go-on":
                self.continuation.go_on()
            else:
                return None
        except (ConfigError, DataError) as error:
            return Chosen(who, name, second, str(error))
        except OSError as error:
            return Chosen(who, name, second, f"not saved: {error.strerror or error}; try again")
        self.continuation.look()
        return Chosen(who, None, second)

    def _undo(self, who: str) -> Chosen:
        """The last answer is taken back; where a training may have it already, it is shown to be corrected instead."""
        with self.continuation.held():  # no run begins between the question and the answer
            return self._taken_back(who)

    def _is_taken(self, name: str) -> bool:
        """Whether a run has read an answer, or is about to."""
        return self.continuation.busy() or name in self.record.used()

    def _taken_back(self, who: str) -> Chosen:
        sheet, used = self.desk.sheet(), self.record.used()
        name = next(iter(opinions.latest(sheet.cells, who)), None)
        if name is None:
            return Chosen(who, message="there is nothing to undo")
        cell = sheet.cells[name]
        second = opinions.is_second(cell, who)
        if second or not (name in used or cell.more.get(opinions.DECIDED) or not self.continuation.may_take_back()):
            # A run that somebody starts by hand does not wait for this page.
            try:
                self.desk.take_back(name, who, cell.text, lambda: not second and self._is_taken(name))
            except DataError as error:
                return Chosen(who, name, second, str(error))
            return Chosen(who, name, second)
        return Chosen(who, name)


def person(name: str) -> str:
    """A person's name as it is written into the table."""
    return clean_name(name)


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    return environment.get_template("page.html.jinja")


_TEMPLATE = _template()
