"""What the report says in words: what a reader needs first, what follows, what to know, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from star_jax.annotators.csv_file import LABELS_FILE
from star_jax.data.readers import read_rows
from star_jax.errors import DataError
from star_jax.evaluation.intervals import wilson
from star_jax.report.findings import (
    PERCENT,
    mean_of,
    percent,
    said_before,
    said_result,
    said_saving,
    said_trend,
    signed,
)
from star_jax.report.outlook import said_outlook
from star_jax.report.read import BASELINE, FIRST, Run, by_strategy, compare, config_differences, settled
from star_jax.report.rules import rule_of

SHOWN_UNFINISHED = 6
"""Unfinished runs that the page names; of the others it says how many there are."""

FEW_TESTS = 100
"""Test examples below which the page says how much a single one counts."""


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
        f"After {max(run.last('labelled') for run in chosen.ours):,} labels, {name} answers {_share(chosen.ours)} "
        f"of the test set correctly and random selection {_share(chosen.theirs)}. "
    )
    size = f"{abs(difference.mean):.3f} {'above' if difference.mean >= 0 else 'below'} random's"
    second = "Over the whole budget its learning curve (AUBC) lies"
    if difference.interval is None:
        said.append(f"{first}{second} {size}; that is one seed, which cannot say how much of it is chance.")
        return " ".join(said)
    low, high = (signed(f"{bound:+.3f}") for bound in difference.interval)
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


def facts(runs: Sequence[Run], target: float | None = None) -> list[tuple[str, str]]:
    """What follows from the figures, each with what it is about: before training, labels saved, going on, the rule.

    Args:
      runs: of the report.
      target: an accuracy whose number of labels is asked for, or None.
    """
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
            found.append(("Forecast", said_outlook(settled(members), target)))
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
    stopped = [run for run in runs if run.stopped]
    found += [f"{run.strategy} seed {run.seed} stopped early by loop.stop_when: {run.stopped}." for run in stopped]
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
    skipped = _total(runs, "skipped")
    if skipped:
        found.append(f"{skipped:,} examples that were picked were skipped by whoever labels: they were not trained on.")
    found += _about_labels(runs)
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


def _about_labels(runs: Sequence[Run]) -> list[str]:
    """What labels cost, and how often people who audited a machine's labels gave the same."""
    found = []
    for strategy, members in by_strategy(runs).items():
        for name, said in (("label_cost", "in the unit of the annotator"), ("label_tokens", "in tokens")):
            priced = [run for run in members if any(row.get(name) is not None for row in run.rows)]
            if priced:
                cost = _total(priced, name) / len(priced)
                each = " (the mean of its runs)" if len(priced) > 1 else ""
                found.append(f"The labels of {strategy} cost {cost:,.5g} so far, {said}{each}.")
    audited, agreed = int(_total(runs, "audited")), int(_total(runs, "audit_agreed"))
    if audited:
        share, low, high = wilson([True] * agreed + [False] * (audited - agreed))
        found.append(
            f"People audited {audited:,} of the machine's labels and gave the same {agreed:,} times: it agrees with "
            f"them on {percent(share)} (95{PERCENT} interval {percent(low)} to {percent(high)}). Theirs count where "
            "they differ; an example that several runs have asked for counts in each."
        )
    return found


def _total(runs: Sequence[Run], name: str) -> float:
    return sum(row.get(name) or 0 for run in runs for row in run.rows)


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


def _share(runs: Sequence[Run]) -> str:
    accuracy = mean_of(runs, "accuracy")
    return "an unknown share" if accuracy is None else percent(accuracy)
