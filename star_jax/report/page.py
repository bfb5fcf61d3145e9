"""The report's numbers and words, and the page they are put on.

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

from star_jax.evaluation.curves import ripl
from star_jax.report import figures
from star_jax.report.read import (
    BASELINE,
    FIRST,
    Comparison,
    Run,
    by_strategy,
    compare,
    config_differences,
    read_runs,
    settled,
)
from star_jax.runs.files import write_bytes_atomic, write_text_atomic
from star_jax.tracking.bars import duration
from star_jax.tracking.console import mean_sd
from star_jax.tracking.timing import PHASES

MISSING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
PERCENT = "\N{NO-BREAK SPACE}%"

METRICS = ("ece", "brier", "nll", "auroc")
"""Metrics of the last round that the headline table shows after accuracy and the areas."""


@dataclass(frozen=True)
class HeadlineRow:
    """One strategy in the headline table; all texts are ready to show."""

    strategy: str
    colour: str
    seeds: str
    labels: str
    cells: list[str]
    finished: bool


@dataclass(frozen=True)
class Figure:
    """One figure of the page: how to read it in a sentence, and the PNG as data URI."""

    title: str
    reading: str
    source: str
    half: bool = False


def build_report(directory: str | Path) -> Path:
    """Writes learning_curve.png and report.html into an output folder and returns the page's path.

    Args:
      directory: OUTPUT_DIR, the folder that holds STRATEGY/seed-N. Unfinished runs are shown and marked.

    Raises:
      ConfigError: there is no run with a finished round.
      DataError: a file of a run is damaged.
    """
    directory = Path(directory)
    runs = read_runs(directory)
    curve = figures.learning_curve(runs)
    write_bytes_atomic(directory / "learning_curve.png", curve)
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    # The file is named .html.jinja, so escaping is asked for rather than left to the extension.
    templates = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = templates.get_template("report.html.jinja").render(
        subtitle=_subtitle(runs),
        lead=lead(runs),
        notes=notes(runs),
        headline=headline(runs),
        paired=[_paired_row(comparison) for comparison in compare(runs)],
        baseline=BASELINE,
        learning_curve=_data_uri(curve),
        figures=_figures(runs),
        details=_details(runs),
    )
    path = directory / "report.html"
    write_text_atomic(path, page)
    return path


def headline(runs: Sequence[Run]) -> list[HeadlineRow]:
    """A row a strategy: the last round's metrics, AUBC and RIPL, mean and standard deviation over seeds."""
    groups = by_strategy(runs)
    look = figures.looks(list(groups))
    comparisons = {comparison.strategy: comparison.areas for comparison in compare(runs)}
    rows = []
    for strategy, members in groups.items():
        shown = settled(members)
        labels = sorted({run.last("labelled") for run in shown})
        gains = [ripl(ours, theirs) for ours, theirs in comparisons.get(strategy, [])]
        last = [[run.last(name) for run in shown] for name in METRICS]
        columns = [[run.last("accuracy") for run in shown], [run.area for run in shown], gains, *last]
        rows.append(
            HeadlineRow(
                strategy=strategy,
                colour=look[strategy].colour,
                seeds=_seeds(members),
                labels=MISSING.join(f"{count:,}" for count in dict.fromkeys([*labels[:1], *labels[-1:]])) or MISSING,
                cells=[_signed(mean_sd(values, missing=MISSING)) for values in columns],
                finished=any(run.finished for run in members),
            )
        )
    return rows


def lead(runs: Sequence[Run]) -> str:
    """The result in two sentences, for `star` or else the first strategy that can be compared with random."""
    comparisons = {comparison.strategy: comparison for comparison in compare(runs)}
    if not comparisons:
        if BASELINE not in by_strategy(runs):
            return "Random selection was not run, so there is nothing to compare the strategies below with."
        return (
            "No other strategy has finished the same seed as random selection yet, so there is no comparison to "
            "report; the curves below show how far the runs have come."
        )
    name = FIRST if FIRST in comparisons else next(iter(comparisons))
    chosen = comparisons[name]
    difference = chosen.difference
    first = (
        f"After {max(run.last('labelled') for run in chosen.ours):,} labels, {name} answers {_percent(chosen.ours)} "
        f"of the test set correctly and random selection {_percent(chosen.theirs)}. "
    )
    size = f"{abs(difference.mean):.3f} {'above' if difference.mean >= 0 else 'below'} random's"
    second = "Over the whole budget its learning curve (AUBC) lies"
    if difference.interval is None:
        return f"{first}{second} {size}; that is one seed, which cannot say how much of it is chance."
    low, high = (_signed(f"{bound:+.3f}") for bound in difference.interval)
    verdict = (
        "which leaves open which of the two is better"
        if difference.interval[0] <= 0 <= difference.interval[1]
        else "which does not include zero"
    )
    chance = f"larger on {chosen.wins} paired seeds, 95{PERCENT} interval {low} to {high}, {verdict}"
    return f"{first}{second} on average {size}: {chance}."


def notes(runs: Sequence[Run]) -> list[str]:
    """What a reader must know before believing the figures."""
    found = []
    unfinished = [run for run in runs if not run.finished]
    if unfinished:
        listed = ", ".join(
            f"{run.strategy} seed {run.seed} ({len(run.rows)} of {run.planned_rounds or '?'} rounds)"
            for run in unfinished
        )
        found.append(
            f"Unfinished: {listed}. Averages are over a strategy's finished runs where it has any; "
            "the learning curve shows all."
        )
    for key, values in config_differences(runs).items():
        found.append(f"The runs do not share one configuration: {key} is {' or '.join(map(str, values))}.")
    if any(run.config.get("scoring", {}).get("answers") == "reference" for run in runs):
        found.append(
            "The pool was scored on its gold responses (scoring.answers: reference). "
            "That is an oracle: it cannot be had for data that is not labelled."
        )
    replay = sorted({run.config.get("training", {}).get("replay_rows") or 0 for run in runs} - {0})
    if replay:
        found.append(
            f"Each training step also saw {' or '.join(map(str, replay))} replay rows of what the base model masters. "
            "They are the same for every strategy and are not counted as labels."
        )
    return found


def _percent(runs: Sequence[Run]) -> str:
    values = [run.last("accuracy") for run in runs if run.last("accuracy") is not None]
    return f"{100 * sum(values) / len(values):.1f}{PERCENT}" if values else "an unknown share"


def _signed(text: str) -> str:
    """Typographic minus signs."""
    return text.replace("-", MINUS)


def _seeds(runs: Sequence[Run]) -> str:
    finished = sum(run.finished for run in runs)
    return str(len(runs)) if finished == len(runs) else f"{finished} of {len(runs)}"


def _paired_row(comparison: Comparison) -> list[str]:
    def p_value(value: float | None) -> str:
        return MISSING if value is None else f"{value:.3f}" if value >= 0.001 else "< 0.001"

    difference = comparison.difference
    mean = f"{difference.mean:+.3f}" if difference.sd is None else f"{difference.mean:+.3f} ± {difference.sd:.3f}"
    interval = difference.interval
    return [
        comparison.strategy,
        str(difference.n),
        _signed(mean),
        MISSING if interval is None else _signed(f"{interval[0]:+.3f} to {interval[1]:+.3f}"),
        comparison.wins,
        p_value(difference.t_p_value),
        p_value(difference.wilcoxon_p_value),
    ]


def _subtitle(runs: Sequence[Run]) -> str:
    config, groups = runs[0].config, by_strategy(runs)
    seeds = sorted({run.seed for run in runs})
    task = config.get("data", {}).get("task")
    parts = [f"task {task}"] if task else []
    parts += [", ".join(groups), f"{len(seeds)} seed{'s' if len(seeds) != 1 else ''}"]
    loop = config.get("loop", {})
    if {"initial_labels", "labels_per_round", "rounds"} <= loop.keys():
        later = f"{loop['rounds'] - 1} rounds of {loop['labels_per_round']:,}"
        parts.append(f"{loop['initial_labels']:,} labels at random, then {later}")
    if config.get("model", {}).get("path"):
        parts.append(f"model {config['model']['path']}")
    return " · ".join(parts)


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _figures(runs: Sequence[Run]) -> list[Figure]:
    """All figures below the learning curve for which the runs have data, with how to read them."""
    bins = runs[0].config.get("evaluation", {}).get("bins", 15)
    drawn = [
        (
            "Calibration",
            "Left: on the dashed line the model is right as often as it says, below it is over-confident; "
            "the larger a dot, the more test examples. Right: the mean distance from that line, lower is better.",
            figures.calibration(runs, bins),
            False,
        ),
        (
            "Uncertainty gap",
            "How well each model's uncertainty points at the fine-tuned model's errors: 1 finds all of them first, "
            "0.5 is chance. Where the dashed base line is above the solid one, the base model is the better guide.",
            figures.uncertainty_gap(runs),
            False,
        ),
        (
            "What was picked",
            "Each bar is what was bought in one round, coloured by kind of example: "
            "a colour that takes up much of a bar is a favourite.",
            figures.picked(runs),
            False,
        ),
        (
            "Accuracy by group",
            "A row a kind of example, hardest at the bottom; the further right a strategy's dot, the better it does.",
            figures.group_accuracy(runs),
            False,
        ),
        (
            "Score and length",
            "Near 1, the score mostly picks long answers; near 0, length plays no part.",
            figures.score_length(runs),
            True,
        ),
        (
            "Time",
            "Where the seconds of one whole run went, all rounds together. Compiling counts apart from the phase that "
            "waited for it; what runs share, loading and the base model's scores, with the run it was done for first.",
            figures.seconds(runs),
            True,
        ),
    ]
    return [Figure(title, reading, _data_uri(png), half) for title, reading, png, half in drawn if png]


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
