"""Tables of single examples: what was picked and why, what is hard, and what is still answered wrongly.

A column is there where a row has something in it, so that folders of earlier versions, which have no prompts, are shown
as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from star_jax.report.read import Run, by_strategy, first_labels, settled

HARDEST = 10
MOST_ERRORS, MOST_PICKED = 200, 1000
"""Rows of the tables; the files of the run have the rest."""

MOST_CHARACTERS = 600
"""Of a text in a cell; what is left out is in the middle."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class ExampleTable:
    """A table of the page.

    Attributes:
      name: its id.
      title: heading.
      reading: what it shows, in a sentence or two.
      columns: heading of each column, and whether it holds text rather than a figure.
      rows: texts of the cells, ready to show.
      searched: whether it has a field to search in.
    """

    name: str
    title: str
    reading: str
    columns: list[tuple[str, bool]]
    rows: list[list[str]]
    searched: bool = False


@dataclass(frozen=True)
class _Column:
    """A column: its heading, what it shows of a row (None for nothing), and whether that is text."""

    title: str
    value: Callable[[Row], str | None]
    text: bool = False


def example_tables(runs: Sequence[Run]) -> list[ExampleTable]:
    """The tables for which the runs have data, from the first run of the first strategy unless they say otherwise."""
    groups = {name: [run for run in members if run.rows] for name, members in by_strategy(runs).items()}
    members = next((members for members in groups.values() if members), None)
    if members is None:
        return []
    shown = settled(members)
    return [table for table in (_hardest(shown), _errors(shown[0]), _picked(shown[0])) if table is not None]


def _hardest(runs: Sequence[Run]) -> ExampleTable | None:
    """The test examples that most runs answer wrongly; among equals, those on which the model is least sure."""
    found: dict[str, list[Row]] = {}
    for run in runs:
        for row in run.predictions:
            if row.get("correct") is not None:
                found.setdefault(str(row["id"]), []).append(row)

    def hardness(rows: list[Row]) -> tuple[float, float]:
        wrong = sum(not row["correct"] for row in rows) / len(rows)
        return -wrong, -_mean(rows, "uncertainty", 0.0)

    hard = sorted((rows for rows in found.values() if not all(row["correct"] for row in rows)), key=hardness)
    rows = [
        {**rows[0], "wrong": sum(not row["correct"] for row in rows), "of": len(rows)}
        | ({"uncertainty": _mean(rows, "uncertainty", 0.0)} if rows[0].get("uncertainty") is not None else {})
        for rows in hard[:HARDEST]
    ]
    several = len(runs) > 1
    columns = [
        _text("prompt"),
        _text("reference", "expected"),
        _text("prediction", "answered"),
        *([_Column("wrong in", lambda row: f"{row['wrong']} of {row['of']} runs")] if several else []),
        _figure("uncertainty", "uncertainty"),
        _text("group"),
        _text("id"),
    ]
    who = (
        f"The test examples that most of the {len(runs)} runs of {runs[0].strategy}"
        if several
        else (f"The test examples that {_name(runs[0])}")
    )
    reading = (
        f"{who} {'answer' if several else 'answers'} wrongly after the last round, those on which the model is least "
        f"sure first. The answer shown is that of {_name(runs[0])}."
    )
    return _table("hardest", f"The {len(rows)} hardest" if len(rows) > 1 else "The hardest", reading, columns, rows)


def _errors(run: Run) -> ExampleTable | None:
    wrong = [row for row in run.predictions if row.get("correct") is False]
    wrong.sort(key=lambda row: (-(row.get("confidence") or 0.0), str(row.get("id"))))
    columns = [
        _text("prompt"),
        _text("reference", "expected"),
        _text("prediction", "answered"),
        _figure("confidence", "confidence"),
        _text("group"),
        _text("id"),
    ]
    first = f"the first {MOST_ERRORS} of " if len(wrong) > MOST_ERRORS else ""
    reading = (
        f"Test examples that {_name(run)} answers wrongly after the last round ({first}{len(wrong):,}), the most "
        "confident first: an error that the model is sure of may be a label that is wrong."
    )
    return _table("errors", "The errors that remain", reading, columns, wrong[:MOST_ERRORS], searched=True)


def _picked(run: Run) -> ExampleTable | None:
    rows = run.queried
    columns = [
        _figure("round", "round", "{:.0f}"),
        _text("prompt"),
        _Column("label", _label, text=True),
        _text("prediction", "the model's guess"),
        _figure("score", "score"),
        _Column("uncertainty", lambda row: _number(row.get("uncertainty", row.get("full_uncertainty")))),
        _figure("base_uncertainty", "base model's"),
        _text("group"),
        _text("id"),
    ]
    first = f"the first {MOST_PICKED:,} of " if len(rows) > MOST_PICKED else ""
    reading = (
        f"What {_name(run)} had labelled ({first}{len(rows):,}), in the order in which it was picked. Round 0 is "
        f"picked {first_labels(run.config)}; later ones have the score they were picked by, and the uncertainty of the "
        "model of the round before and of the base model, nats. Rows of every run are in its rounds/NNN/queried.jsonl."
    )
    return _table("picked", "What was picked, one by one", reading, columns, rows[:MOST_PICKED], searched=True)


def _table(
    name: str, title: str, reading: str, columns: Sequence[_Column], rows: Sequence[Row], searched: bool = False
) -> ExampleTable | None:
    """The table of the columns in which a row has something; None where there is no row."""
    if not rows:
        return None
    cells = {column: [column.value(row) for row in rows] for column in columns}
    used = {column: values for column, values in cells.items() if any(value is not None for value in values)}
    used = {column: values for column, values in used.items() if column.title != "group" or len(set(values)) > 1}
    shown = [[value or "" for value in row] for row in zip(*used.values(), strict=True)]
    return ExampleTable(name, title, reading, [(column.title, column.text) for column in used], shown, searched)


def _name(run: Run) -> str:
    return f"{run.strategy} seed {run.seed}"


def _text(field: str, title: str | None = None) -> _Column:
    return _Column(title or field, lambda row: None if row.get(field) is None else shortened(str(row[field])), True)


def _figure(field: str, title: str, form: str = "{:.3f}") -> _Column:
    return _Column(title, lambda row: _number(row.get(field), form))


def _number(value: Any, form: str = "{:.3f}") -> str | None:
    return form.format(value) if isinstance(value, int | float) else None


def _label(row: Row) -> str | None:
    if row.get("skipped"):
        return "skipped"
    return None if row.get("response") is None else shortened(str(row["response"]))


def _mean(rows: Sequence[Row], field: str, missing: float) -> float:
    values = [row[field] for row in rows if isinstance(row.get(field), int | float)]
    return sum(values) / len(values) if values else missing


def shortened(text: str) -> str:
    """A text without blanks around it, its middle left out where it is long."""
    text, half = text.strip(), MOST_CHARACTERS // 2
    return text if len(text) <= MOST_CHARACTERS else f"{text[:half]} … {text[-half:]}"
