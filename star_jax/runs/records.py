"""What a round leaves behind, as rows of its files: arrays and indices turned into names and numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from star_jax.active.state import Problem, RoundInfo
from star_jax.annotators.annotator import Answer
from star_jax.data.tasks.task import Task
from star_jax.evaluation.curves import aubc_of_rounds
from star_jax.tracking.timing import total_seconds

TOTALS = ("skipped", "corrected", "label_cost", "label_tokens", "audited", "audit_agreed")
"""Figures of rounds whose sum a summary has, where there is one."""

SHOWN, SHOWN_CHARACTERS = 3, 120
"""Predictions that a warning shows, and characters of each text in it."""


def queried_rows(task: Task, problem: Problem, info: RoundInfo, labels: Mapping[int, str]) -> list[dict[str, Any]]:
    """Rows of queried.jsonl, one a pick, the first pick first.

    Fields of a row; a figure is None where the strategy did not compute it, as all of them are in round 0:

      `id`, `group`       of the example
      `prompt`            what the model is asked, template applied
      `prediction`        what the model answered before it was given the label, without blanks around it; None where no
                          answer was at hand: what is drawn at random, and what replaces a skip, was not asked for one
      `uncertainty`       what it was picked by: the full model's measure, or the base model's where that alone is read
      `base_uncertainty`, `full_uncertainty`   the first measure of each model that the strategy reads
      `score`, `rank`     the strategy's score, and its place among the picks, from 0
      `response`          the label, as it is trained on; None where the example was skipped
      `skipped`, `annotator`, `labelled_at`, `cost`    where that was said
      `audited`           the label of a machine, where `response` is that of a person who has not seen it

    Files of former versions have neither `prompt`, `prediction` nor `uncertainty`.
    """

    def at(values: np.ndarray | None, index: int) -> float | None:
        return None if values is None or np.isnan(values[index]) else float(values[index])

    def row(rank: int, index: int, answer: Answer) -> dict[str, Any]:
        prompt = problem.prompts[index]
        return {
            "id": prompt.id,
            "prompt": prompt.readable,
            "prediction": None if info.guesses is None else info.guesses[rank],
            "score": at(info.scores, index),
            "uncertainty": at(info.base if info.full is None else info.full, index),
            "base_uncertainty": at(info.base, index),
            "full_uncertainty": at(info.full, index),
            "rank": rank,
            "group": task.group(prompt),
            "response": labels.get(index),
            **given_by(answer),
        }

    picks = zip(info.picked.tolist(), info.answers, strict=True)
    return [row(rank, index, answer) for rank, (index, answer) in enumerate(picks)]


def given_by(answer: Answer) -> dict[str, Any]:
    """Whether an example was skipped, who labelled it, when and at what cost, as far as that was said."""
    said = {
        "skipped": answer.skipped or None,
        "annotator": answer.annotator,
        "labelled_at": answer.labelled_at,
        "cost": answer.cost,
        "audited": answer.other,
    }
    return {name: value for name, value in said.items() if value is not None}


def label_figures(task: Task, answers: Sequence[Answer]) -> dict[str, float]:
    """What the answers of a round cost, how many were audited, and how many of those agreed; what nobody knows is left
    out."""
    costs = [answer.cost for answer in answers if answer.cost is not None]
    audits = [answer for answer in answers if answer.other is not None]
    agreed = sum(one.response is not None and task.is_correct(one.response, one.other or "") for one in audits)
    figures: dict[str, float] = {"label_cost": sum(costs)} if costs else {}
    return figures | ({"audited": len(audits), "audit_agreed": agreed} if audits else {})


def group_counts(groups: Sequence[str]) -> dict[str, int]:
    """How often each group occurs, by name."""
    return {group: groups.count(group) for group in sorted(set(groups))}


def nothing_right(predictions: Sequence[Mapping[str, Any]]) -> str:
    """A warning for a round in which no test answer was right, with what was answered: a format mostly shows at once.

    Args:
      predictions: rows of predictions.jsonl.
    """
    shown = "; ".join(
        f"{row['id']}: {_short(row['prediction'])}, expected {_short(row['reference'])}" for row in predictions[:SHOWN]
    )
    return (
        f"none of the {len(predictions):,} test answers is right. The first: {shown}. Where these are right in another "
        "form, look at the format (format.match, the template of the response); where they break off, raise "
        "data.max_response_tokens; else the model may need more labels"
    )


def _short(text: str) -> str:
    """A text in quotes on one line, its middle left out where it is long."""
    half = SHOWN_CHARACTERS // 2
    return repr(text if len(text) <= SHOWN_CHARACTERS else f"{text[:half]} … {text[-half:]}")


def length_correlation(info: RoundInfo, candidates: np.ndarray) -> float | None:
    """Pearson correlation of the full model's measure and response length over what was scored.

    It asks whether uncertainty is more than length; None where either is constant or was not computed.

    Args:
      info: of the round.
      candidates: `N` bool, True where an example could be picked.
    """
    if info.full is None or info.response_tokens is None:
        return None
    scored = candidates & np.isfinite(info.full)
    measure, tokens = info.full[scored], info.response_tokens[scored]
    if not scored.any() or np.ptp(measure) == 0 or np.ptp(tokens) == 0:
        return None
    return float(np.corrcoef(measure, tokens)[0, 1])


def summary_row(
    strategy: str, seed: int, rows: Sequence[dict[str, Any]], data: Mapping[str, int], after: Mapping[str, float]
) -> dict[str, Any]:
    """summary.json of a finished run.

    Args:
      strategy: registry name.
      seed: of the run.
      rows: of metrics.jsonl; their seconds are those of the sessions that finished the rounds.
      data: counts of its data.
      after: seconds by phase that were spent after the last row was written.
    """
    last = rows[-1]
    before = {"base_accuracy": last["base_accuracy"]} if last.get("base_accuracy") is not None else {}
    return {
        "strategy": strategy,
        "seed": seed,
        "rounds": len(rows),
        "labelled": last["labelled"],
        "accuracy": last["accuracy"],
        **before,
        "ece": last["ece"],
        "aubc": aubc_of_rounds(rows),
        "seconds": total_seconds(rows, after),
        "data": dict(data),
    } | {name: total for name in TOTALS if (total := sum(row.get(name) or 0 for row in rows))}
