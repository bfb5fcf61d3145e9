"""The report's numbers and words, and the page they are put on.

Everything is computed from run folders alone; the figures are embedded, so report.html can be sent as one file.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml

from star_jax.annotators.csv_file import LABELS_FILE
from star_jax.data.readers import read_rows
from star_jax.errors import DataError
from star_jax.evaluation.curves import ripl
from star_jax.report import figures
from star_jax.report.drawing import PHASE_COLOURS
from star_jax.report.examples import example_tables
from star_jax.report.findings import said_before, said_result, said_saving, said_trend
from star_jax.report.read import (
    BASELINE,
    FIRST,
    Comparison,
    Run,
    by_strategy,
    compare,
    config_differences,
    mean_of_groups,
    read_runs,
    settled,
)
from star_jax.report.rules import rule_of
from star_jax.runs.files import write_bytes_atomic, write_text_atomic
from star_jax.tracking.bars import duration
from star_jax.tracking.console import mean_sd
from star_jax.tracking.timing import PHASES

SHOWN_GROUPS = 30
"""Groups that the page shows at once; the others are behind a click."""

SHOWN_UNFINISHED = 6
"""Unfinished runs that the page names; of the others it says how many there are."""

FEW_TESTS = 100
"""Test examples below which the page says how much a single one counts."""

SIGNS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚"}
"""Marker of the figures -> the sign of their legends."""

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
    sign: str
    seeds: str
    labels: str
    cells: list[str]
    finished: bool


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
    curve = figures.learning_curve(runs) if any(run.rows for run in runs) else b""
    if curve:
        write_bytes_atomic(directory / "learning_curve.png", curve)
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    # The file is named .html.jinja, so escaping is asked for rather than left to the extension.
    templates = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = templates.get_template("report.html.jinja").render(
        subtitle=_subtitle(runs),
        lead=lead(runs),
        facts=facts(runs),
        notes=notes(runs),
        headline=headline(runs) if any(run.rows for run in runs) else [],
        several_seeds=max(len(members) for members in by_strategy(runs).values()) > 1,
        paired=[_paired_row(comparison) for comparison in compare(runs)],
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
    path = directory / "report.html"
    write_text_atomic(path, page)
    return path


def headline(runs: Sequence[Run]) -> list[HeadlineRow]:
    """A row a strategy: the last round's metrics, AUBC and RIPL, mean and standard deviation over seeds."""
    groups = by_strategy(runs)
    look = figures.shown_looks(runs)
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
                sign=SIGNS[look[strategy].marker],
                seeds=_seeds(members),
                labels=MISSING.join(f"{count:,}" for count in dict.fromkeys([*labels[:1], *labels[-1:]])) or MISSING,
                cells=[_signed(mean_sd(values, missing=MISSING)) for values in columns],
                finished=any(run.finished for run in members),
            )
        )
    return rows


def lead(runs: Sequence[Run]) -> str:
    """What the reader needs first: what the runs wait for, that nothing is right, or the result.

    The result is that of `star`, or else of the first strategy that can be compared with random, or else of the first.
    """
    begun = [run for run in runs if run.rows]
    said = [said_waiting(runs)] if any(run.waits for run in runs) else []
    if not begun:
        return " ".join(said)
    if _nothing_right(runs):
        said.append(
            "No answer to a test example was right in any round. That is mostly a matter of form: compare what was "
            "answered with what was expected in the tables of examples below, and both with the rule for what counts "
            "as right."
        )
        return " ".join(said)
    comparisons = {comparison.strategy: comparison for comparison in compare(runs)}
    if not comparisons:
        strategy, members = chosen_runs(runs)
        said.append(said_result(strategy, members))
        groups = by_strategy(runs)
        if BASELINE in groups and len(groups) > 1:
            said.append(
                "No other strategy has finished the same seed as random selection yet, so there is no comparison to "
                "report; the curves below show how far the runs have come."
            )
        elif not all(run.finished for run in members):
            said.append("It has not finished, and there is no comparison to report.")
        return " ".join(said)
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
        said.append(f"{first}{second} {size}; that is one seed, which cannot say how much of it is chance.")
        return " ".join(said)
    low, high = (_signed(f"{bound:+.3f}") for bound in difference.interval)
    verdict = (
        "which leaves open which of the two is better"
        if difference.interval[0] <= 0 <= difference.interval[1]
        else "which does not include zero"
    )
    chance = f"larger on {chosen.wins} paired seeds, 95{PERCENT} interval {low} to {high}, {verdict}"
    said.append(f"{first}{second} on average {size}: {chance}.")
    return " ".join(said)


def _nothing_right(runs: Sequence[Run]) -> bool:
    """Whether rounds have been finished, and none of them got a test example right."""
    found = [value for run in runs for value in run.column("accuracy")]
    return bool(found) and all(value == 0 for value in found)


def chosen_runs(runs: Sequence[Run]) -> tuple[str, list[Run]]:
    """The strategy that the sentences are about, and those of its runs that have finished a round."""
    groups = {name: [run for run in members if run.rows] for name, members in by_strategy(runs).items()}
    comparisons = [comparison.strategy for comparison in compare(runs)]
    names = [name for name in (FIRST, *comparisons, *groups) if groups.get(name)]
    return names[0], groups[names[0]]


def facts(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """What follows from the figures, each with what it is about: before training, labels saved, going on, the rule."""
    found = []
    begun = [run for run in runs if run.rows]
    if begun:
        strategy, members = chosen_runs(runs)
        comparison = next((one for one in compare(runs) if one.strategy == strategy), None)
        before = said_before(members)
        found += [("Before training", before)] if before else []
        if not _nothing_right(runs):
            found += [("Labels saved", said_saving(comparison))] if comparison else []
            found.append((f"Going on with {strategy}", said_trend(settled(members))))
    rule = rule_of(runs[0].config)
    found.append(("What counts as right", f"{rule[0].upper()}{rule[1:]}."))
    return found


def next_steps(directory: Path, runs: Sequence[Run]) -> list[tuple[str, str]]:
    """What to do next, in the order to do it in: a sentence each, and the command."""
    steps = []
    again = next((run.environment.get("command") for run in runs if run.environment.get("command")), None)
    if not all(run.finished for run in runs):
        what = "Write the labels, then go on" if any(run.waits for run in runs) else "Go on where it stopped"
        steps.append((f"{what}, with the command it was started with:", again or "star-jax run --config FILE"))
    done = [run for run in runs if run.rows]
    if done:
        run = chosen_runs(runs)[1][0]
        # A report may be sent to somebody: it names the experiment's folder, not where that is.
        adapter = shlex.quote(f"{directory.resolve().name}/{run.path.relative_to(directory)}")
        steps.append(
            (
                f"Label the rest with the adapter of {run.strategy} seed {run.seed}; answers that it is not sure of "
                "are marked for a person:",
                f"star-jax predict {adapter} --out answers.csv",
            )
        )
        steps.append(("Judge it on other labelled examples:", f"star-jax evaluate {adapter} --data FILE"))
    return steps


def notes(runs: Sequence[Run]) -> list[str]:
    """What a reader must know before believing the figures."""
    found = []
    begun = any(run.rows for run in runs)
    unfinished = [run for run in runs if begun and not run.finished]
    if unfinished:
        listed = ", ".join(
            f"{run.strategy} seed {run.seed} ({len(run.rows)} of {run.planned_rounds or '?'} rounds)"
            for run in unfinished[:SHOWN_UNFINISHED]
        )
        more = len(unfinished) - SHOWN_UNFINISHED
        listed += f" and {more} more runs" if more > 0 else ""
        found.append(
            f"Unfinished: {listed}. Averages are over a strategy's finished runs where it has any; "
            "the learning curve shows all."
        )
    if begun and BASELINE not in by_strategy(runs):
        found.append(
            "Random selection was not run, so there is nothing to compare with: what choosing the examples brought, "
            "beyond having that many labels, is not known."
        )
    found += _about_data(runs)
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


def _about_data(runs: Sequence[Run]) -> list[str]:
    """What pool and test set have in common, and what was left out of them."""
    found = []
    skipped = sum(row.get("skipped") or 0 for run in runs for row in run.rows)
    if skipped:
        found.append(f"{skipped:,} examples that were picked were skipped by whoever labels: they were not trained on.")
    counts = [run.facts for run in runs if run.facts]
    if not counts:
        return found
    overlap, pool = max((one.get("test_overlap") or 0, one.get("pool_examples") or 0) for one in counts)
    if overlap:
        found.append(
            f"{overlap:,} of the {pool:,} prompts of the pool are also in the test set, with the same text. Where they "
            "are labelled, the model has seen the answer, and accuracy on the test set is too high."
        )
    repeated = max(one.get("duplicate_prompts") or 0 for one in counts)
    if repeated:
        found.append(
            f"{repeated:,} of the {pool:,} prompts of the pool have the text of an earlier one; a label may have been "
            "bought twice."
        )
    tests = counts[0].get("test_examples")
    if tests and tests < FEW_TESTS:
        found.append(f"The test set has only {tests:,} examples: one answer is {100 / tests:.1f} points of accuracy.")
    return found


def said_waiting(runs: Sequence[Run]) -> str:
    """What is waited for, and how much of it."""
    table = next(run for run in runs if run.waits).path.parent.parent / LABELS_FILE
    try:
        rows = [row for _, row in read_rows(str(table.absolute()), "train", may_be_empty=True)]
        cells = [row.get("response") for row in rows if not isinstance(row, DataError)]
        empty, of = sum(not str(cell or "").strip() for cell in cells), len(cells)
        count = f"{empty:,} of the {of:,} examples in {LABELS_FILE} have no label yet"
    except DataError:
        count = f"examples in {LABELS_FILE} have no label yet"
    return f"Waiting for labels: {count}; fill in the column response, save, and run the same command again."


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
        later = loop["rounds"] - 1
        then = f", then {later} round{'s' if later != 1 else ''} of {loop['labels_per_round']:,}" if later else ""
        parts.append(f"{loop['initial_labels']:,} labels at random{then}")
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


@dataclass(frozen=True)
class GroupRow:
    """A kind of example: its name, and strategy, colour, sign and accuracy of each dot."""

    name: str
    dots: list[tuple[str, str, str, float]]


def group_rows(runs: Sequence[Run]) -> list[GroupRow]:
    """Accuracy by group after the last round, mean over seeds, hardest first; none where there is one group only."""
    look = figures.shown_looks(runs)
    values = {
        strategy: mean_of_groups([run.last("group_accuracy") for run in settled(members)])
        for strategy, members in by_strategy(runs).items()
    }
    rows = [
        GroupRow(
            name,
            [
                (strategy, look[strategy].colour, SIGNS[look[strategy].marker], item[name])
                for strategy, item in values.items()
                if name in item
            ],
        )
        for name in dict.fromkeys(name for item in values.values() for name in item)
    ]
    rows.sort(key=lambda row: (sum(dot[3] for dot in row.dots) / len(row.dots), row.name))
    return rows if len(rows) > 1 else []


@dataclass(frozen=True)
class TimeRow:
    """Where a strategy's time went, mean over its runs: seconds in words, and phase, colour and share of each part."""

    strategy: str
    total: str
    parts: list[tuple[str, str, float]]


def time_rows(runs: Sequence[Run]) -> list[TimeRow]:
    """A row a strategy; shares are of the strategy that took longest, in percent."""
    spent = {
        strategy: {phase: sum(run.seconds[phase] for run in members) / len(members) for phase in PHASE_COLOURS}
        for strategy, members in ((name, settled(one)) for name, one in by_strategy(runs).items())
        if members
    }
    longest = max((sum(parts.values()) for parts in spent.values()), default=0.0)
    if not longest:
        return []
    return [
        TimeRow(
            strategy,
            duration(sum(parts.values())),
            [(phase, PHASE_COLOURS[phase], 100 * seconds / longest) for phase, seconds in parts.items() if seconds],
        )
        for strategy, parts in spent.items()
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
