"""What is written into the rows of the table of labels, and what the rows say: pure functions of cells.

A row has one label that counts, in `response`, with `annotator` and `labelled_at`. Where somebody else has labelled the
same example, that label is in columns of its own, `response (NAME)` and `labelled_at (NAME)`, and changes nothing.
Where somebody decides between them, or corrects what another has written, all labels stand in such columns, and
`decided_by` names who has decided.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from itertools import combinations, pairwise
from statistics import median
from typing import NamedTuple

from star_jax.annotators.csv_file import WHEN, WHO
from star_jax.annotators.label_table import Cell
from star_jax.config import SKIP
from star_jax.data.skips import is_skip

REASON = "skip_reason"
"""Column that says why an example was skipped."""

DECIDED = "decided_by"
"""Column that says who has decided between the labels of several people."""

LONGEST_PAUSE = 300.0
"""Seconds between two labels of one person from which on something else was done in between."""

_SECOND = re.compile(r"response \((.*)\)")

Cells = Mapping[str, Cell]


class Given(NamedTuple):
    """An answer that a person gives.

    Attributes:
      text: the label, or what stands for an example that cannot be labelled.
      who: the person's name; empty where nobody says.
      when: ISO 8601.
      reason: why the example is skipped; empty for a label.
    """

    text: str
    who: str
    when: str
    reason: str = ""


class Progress(NamedTuple):
    """How far a round is, in examples.

    Attributes:
      done: labelled or skipped.
      skipped: those of them that were skipped.
      total: asked for.
    """

    done: int
    skipped: int
    total: int


class Agreement(NamedTuple):
    """How often people say the same.

    Attributes:
      pairs: of labels that two people gave to one example.
      same: pairs that agree, whatever their capitals and blanks.
      kappa: Cohen's, which is 1 for agreement throughout and 0 for that of chance; None where there are other than
        two people, or where chance alone would agree throughout.
      differing: ids of the examples on which some disagree and nobody has decided, in the table's order.
    """

    pairs: int
    same: int
    kappa: float | None
    differing: tuple[str, ...]


def answered(cell: Cell, given: Given) -> Cell:
    """The cell with an answer: the one that counts, or beside it where another person's counts."""
    if is_second(cell, given.who):
        return _beside(cell, given)
    more = {**cell.more, WHO: given.who, WHEN: given.when}
    if given.reason or REASON in more:
        more[REASON] = given.reason
    return cell._replace(text=given.text, more=more)


def is_second(cell: Cell, who: str) -> bool:
    """Whether a label of `who` would stand beside that of another person."""
    before = cell.more.get(WHO, "")
    return bool(cell.text and before and who and before != who)


def _beside(cell: Cell, given: Given) -> Cell:
    columns = {f"response ({given.who})": given.text, f"labelled_at ({given.who})": given.when}
    reason = f"{REASON} ({given.who})"
    if given.reason or reason in cell.more:
        columns[reason] = given.reason
    return cell._replace(more={**cell.more, **columns})


def decided(cell: Cell, given: Given) -> Cell:
    """The cell with an answer that counts from now on; what each person has said stays beside it."""
    if cell.text and not cell.more.get(DECIDED):
        before = (cell.more.get(name, "") for name in (WHO, WHEN, REASON))
        cell = _beside(cell, Given(cell.text, *before))
    more = {**cell.more, WHO: given.who, WHEN: given.when, DECIDED: given.who or "somebody"}
    if given.reason or REASON in more:
        more[REASON] = given.reason
    return cell._replace(text=given.text, more=more)


def taken_back(cell: Cell, who: str) -> Cell:
    """The cell without the answer of a person."""
    second = is_second(cell, who)
    gone = tuple(f"{name} ({who})" for name in ("response", WHEN, REASON)) if second else (WHO, WHEN, REASON)
    more = {name: "" if name in gone else text for name, text in cell.more.items()}
    return cell._replace(text=cell.text if second else "", more=more)


def opinions(cell: Cell) -> dict[str, str]:
    """Name -> label, of everybody who has given one; the empty name is that of whoever has not said."""
    found = {} if not cell.text or cell.more.get(DECIDED) else {cell.more.get(WHO, ""): cell.text}
    for column, text in cell.more.items():
        match = _SECOND.fullmatch(column)
        if match and text.strip():
            found.setdefault(match.group(1), text.strip())
    return found


def next_open(cells: Cells, held: Collection[str] = ()) -> str | None:
    """The first example without a label that nobody else is at; of what others are at, the first where all is."""
    found = [name for name, cell in cells.items() if not cell.text]
    return next((name for name in found if name not in held), found[0] if found else None)


def next_unseen(cells: Cells, who: str, used: Collection[str] = ()) -> str | None:
    """The first example that others have labelled and `who` has not; what is trained on already comes last."""
    found = [name for name, cell in cells.items() if cell.text and cell.more.get(WHO) and who not in opinions(cell)]
    return min(found, key=lambda name: name in used, default=None)  # `min` keeps the first of equals


def latest(cells: Cells, who: str) -> list[str]:
    """Ids of what a person has labelled, the last one first; by the clock, so that it survives everything."""
    times = {name: _time(cell, who) for name, cell in cells.items()}
    return sorted((name for name, when in times.items() if when), key=lambda name: times[name], reverse=True)


def _time(cell: Cell, who: str) -> str:
    if cell.text and cell.more.get(WHO, "") == who:
        return cell.more.get(WHEN, "")
    return cell.more.get(f"labelled_at ({who})", "")


def progress(cells: Cells, used: Collection[str] = (), skip: str = SKIP) -> Progress:
    """Of the round that is being labelled: what no training has used yet."""
    texts = [cell.text for name, cell in cells.items() if name not in used]
    return Progress(sum(map(bool, texts)), sum(is_skip(text, skip) for text in texts), len(texts))


def answers_given(cells: Cells, used: Collection[str] | None = None) -> int:
    """Labels, skips and second labels: what has to be paid for. Without those of `used` where it is given."""
    return sum(len(opinions(cell)) for name, cell in cells.items() if used is None or name not in used)


def agreement(cells: Cells) -> Agreement:
    """Over all pairs of people, and all examples that both have labelled."""
    differing, pairs = [], []
    for name, cell in cells.items():
        given = {who: " ".join(text.split()).casefold() for who, text in sorted(opinions(cell).items())}
        found = [((one, given[one]), (other, given[other])) for one, other in combinations(given, 2)]
        pairs += found
        if any(one[1] != other[1] for one, other in found) and not cell.more.get(DECIDED):
            differing.append(name)
    same = sum(one[1] == other[1] for one, other in pairs)
    people = {person for pair in pairs for person, _ in pair}
    labels = [(one[1], other[1]) for one, other in pairs]
    return Agreement(len(pairs), same, _kappa(labels) if len(people) == 2 else None, tuple(differing))


def _kappa(labels: list[tuple[str, str]]) -> float | None:
    """Cohen's kappa of the labels that two people gave to the same examples: (observed - chance) / (1 - chance).

    Cohen, A coefficient of agreement for nominal scales (1960).
    """
    count = len(labels)
    first, second = (list(column) for column in zip(*labels, strict=True))
    observed = sum(one == other for one, other in labels) / count
    chance = sum(first.count(label) * second.count(label) for label in set(first)) / count**2
    return None if chance == 1 else (observed - chance) / (1 - chance)


def pace(cells: Cells, seconds_of: Mapping[str, float]) -> float | None:
    """Median seconds between two labels of one person, pauses left out; None before there are two.

    Args:
      cells: of the table.
      seconds_of: what is written in `labelled_at` -> seconds, for what can be read as a time.
    """
    by_person: dict[str, list[float]] = {}
    for who, when in _given_at(cells):
        if when in seconds_of:
            by_person.setdefault(who, []).append(seconds_of[when])
    gaps = [b - a for times in map(sorted, by_person.values()) for a, b in pairwise(times)]
    gaps = [gap for gap in gaps if 0 < gap < LONGEST_PAUSE]
    return median(gaps) if gaps else None


def _given_at(cells: Cells) -> Iterator[tuple[str, str]]:
    for cell in cells.values():
        if cell.text:
            yield cell.more.get(WHO, ""), cell.more.get(WHEN, "")
