"""The page: numbers, words, tables and figures put into one file.

Everything is computed from run folders alone; the figures are embedded, so report.html can be sent as one file.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml

from star_jax.report import figures
from star_jax.report.drawing import PHASE_COLOURS, SIGNS
from star_jax.report.examples import example_tables
from star_jax.report.places import CURVE, PAGE, check_places
from star_jax.report.read import BASELINE, Run, by_strategy, compare, first_labels, read_runs
from star_jax.report.tables import group_rows, headline, paired_row, time_rows
from star_jax.report.words import facts, lead, next_steps, notes
from star_jax.runs.files import write_bytes_atomic, write_text_atomic
from star_jax.tracking.bars import duration
from star_jax.tracking.timing import PHASES

SHOWN_GROUPS = 30
"""Groups that the page shows at once; the others are behind a click."""


@dataclass(frozen=True)
class Picture:
    """One picture of a figure: its caption, and the PNG as data URI."""

    caption: str
    source: str


@dataclass(frozen=True)
class Figure:
    """One figure of the page: how to read it in a sentence, its pictures, and a legend of names and colours."""

    title: str
    reading: str
    pictures: list[Picture]
    legend: list[tuple[str, str, str]]


def build_report(directory: str | Path, target: float | None = None) -> Path:
    """Writes learning_curve.png and report.html into an output folder and returns the page's path.

    Args:
      directory: OUTPUT_DIR, the folder that holds STRATEGY/seed-N. Unfinished runs are shown and marked.
      target: an accuracy whose number of labels is forecast; None for the accuracy with twice the labels.

    Raises:
      ConfigError: there is no run with a finished round, or the page or the figure there is somebody else's.
      DataError: a file of a run is damaged.
    """
    directory = Path(directory)
    runs = read_runs(directory)
    check_places(directory)
    curve = figures.learning_curve(runs) if any(run.rows for run in runs) else b""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    # The file is named .html.jinja, so escaping is asked for rather than left to the extension.
    templates = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = templates.get_template("report.html.jinja").render(
        subtitle=_subtitle(runs),
        lead=lead(runs),
        facts=facts(runs, target),
        notes=notes(runs),
        headline=headline(runs) if any(run.rows for run in runs) else [],
        several_seeds=max(len(members) for members in by_strategy(runs).values()) > 1,
        paired=[paired_row(comparison) for comparison in compare(runs)],
        baseline=BASELINE,
        learning_curve=_data_uri(curve) if curve else "",
        legend=_legend(runs),
        differences=_data_uri(figures.differences(compare(runs), figures.shown_looks(runs))),
        figures=_figures(runs),
        group_rows=group_rows(runs),
        shown_groups=SHOWN_GROUPS,
        times=time_rows(runs),
        phases=PHASE_COLOURS,
        examples=example_tables(runs),
        details=_details(runs),
        next_steps=next_steps(directory, runs),
    )
    path = directory / PAGE
    write_text_atomic(path, page)
    # After the page, by which the next report knows it for one of its own.
    if curve:
        write_bytes_atomic(directory / CURVE, curve)
    return path


def _subtitle(runs: Sequence[Run]) -> str:
    config, groups = runs[0].config, by_strategy(runs)
    seeds = sorted({run.seed for run in runs})
    task = config.get("data", {}).get("task")
    parts = [f"task {task}"] if task else []
    parts += [", ".join(groups), f"{len(seeds)} seed{'s' if len(seeds) != 1 else ''}"]
    loop = config.get("loop", {})
    if {"initial_labels", "labels_per_round", "rounds"} <= loop.keys():
        later = loop["rounds"] - 1
        then = f", then {later} round{'s' if later != 1 else ''} of {loop['labels_per_round']:,}" if later else ""
        parts.append(f"{loop['initial_labels']:,} labels {first_labels(config)}{then}")
    if config.get("model", {}).get("path"):
        parts.append(f"model {config['model']['path']}")
    return " · ".join(parts)


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii") if png else ""


def _legend(runs: Sequence[Run]) -> list[tuple[str, str, str]]:
    """Name, colour and sign of each strategy that has something to show."""
    look = figures.shown_looks(runs)
    names = [name for name, members in by_strategy(runs).items() if any(run.rows for run in members)]
    return [(name, look[name].colour, SIGNS[look[name].marker]) for name in names]


def _figures(runs: Sequence[Run]) -> list[Figure]:
    """All figures below the learning curve for which the runs have data, with how to read them."""
    if not any(run.rows for run in runs):
        return []
    bins = runs[0].config.get("evaluation", {}).get("bins", 15)
    legend, (bars, groups) = _legend(runs), figures.picked(runs)
    drawn: list[tuple[str, str, list[figures.Panel], list[tuple[str, str, str]]]] = [
        (
            "What was picked",
            "Each bar is what was bought in one round, coloured by kind of example: "
            "a colour that takes up much of a bar is a favourite.",
            bars,
            [(name, colour, "■") for name, colour in groups],
        ),
        (
            "Calibration",
            "Reliability: on the dashed line the model is right as often as it says, below it is over-confident; "
            "the larger a dot, the more test examples. Error: the mean distance from that line, lower is better.",
            figures.calibration(runs, bins),
            legend,
        ),
        (
            "Uncertainty gap",
            "How well each model's uncertainty points at the fine-tuned model's errors: 1 finds all of them first, "
            "0.5 is chance. Where the dashed base line is above the solid one, the base model is the better guide.",
            figures.uncertainty_gap(runs),
            [],
        ),
        (
            "Score and length",
            "Near 1, the score mostly picks long answers; near 0, length plays no part.",
            [figures.Panel("", figures.score_length(runs))],
            legend,
        ),
    ]
    return [
        Figure(title, reading, [Picture(panel.caption, _data_uri(panel.png)) for panel in panels if panel.png], names)
        for title, reading, panels, names in drawn
        if any(panel.png for panel in panels)
    ]


def _details(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Configuration and environment of each run that says something new, the runs it stands for first."""
    groups: dict[str, tuple[list[str], str]] = {}
    for run in runs:
        shared = {key: value for key, value in run.config.items() if key not in ("strategies", "seeds")}
        constant = {key: value for key, value in run.environment.items() if key not in ("started", "command")}
        text = yaml.safe_dump(
            {"configuration": shared, "environment": constant}, sort_keys=False, allow_unicode=True, width=100
        )
        groups.setdefault(text, ([], text))[0].append(f"{run.strategy} seed {run.seed}")
    shared_details = [{"runs": ", ".join(names), "text": text} for names, text in groups.values()]
    rounds = "".join(
        f"{run.strategy} seed {run.seed}: started {run.environment.get('started', 'unknown')}, "
        f"{len(run.rows)} rounds, {_time(run)}\n  {run.environment.get('command', '')}\n"
        for run in runs
    )
    return [{"runs": "All runs", "text": rounds}, *shared_details]


def _time(run: Run) -> str:
    parts = ", ".join(f"{name} {run.seconds[name]:,.1f}" for name in PHASES if run.seconds[name])
    return f"{duration(run.seconds['total'])} (seconds: {parts or 'none'})"
