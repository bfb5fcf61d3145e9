"""`star-jax predict`: the answers of an adapter to what nobody has labelled, and which of them a person should see."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from star_jax.cli.answer_flags import AnswerFlags, Asked, parse_answer
from star_jax.cli.output_file import check_output, write_rows
from star_jax.errors import ConfigError, DataError
from star_jax.evaluation.recalibration import SOURCES
from star_jax.runs.partial_rows import PartialRows

if TYPE_CHECKING:
    from star_jax.data.examples import Prompt
    from star_jax.data.run_data import RunData
    from star_jax.data.tasks.task import Task
    from star_jax.evaluation.predictions import Answered
    from star_jax.evaluation.recalibration import Recalibration
    from star_jax.experiment.answering import Opened
    from star_jax.tracking.console import Progress

PROGRAM = "star-jax predict"
WHEN_INTERRUPTED = "interrupted; with --out FILE, the same command goes on where it stopped"

BATCHES_KEPT = 32
"""Batches after which answers are on the disk."""


@dataclass(frozen=True)
class PredictFlags(AnswerFlags):
    """Answers every prompt that has no label, and marks the answers that a person should see.

    Of a run, these are the prompts of its pool that it has neither labelled nor skipped; of --data, the rows
    without a response, or all where none is without one.
    """

    out: str = "-"
    """Output file, by its ending .csv or .jsonl; - writes JSON lines to stdout."""
    threshold: float = 0.8
    """Answers with less confidence are marked for a person (needs_person), and so are those that the task cannot
    read."""
    calibrate_on: str = "auto"
    """What tells how often the model is right at which confidence: the labels that a run held out (validation), all of
    its labels, each answered by an adapter trained without it, which takes two trainings (cross-fit), its test set
    (test), nothing (none), or a labelled file that was not trained on. auto is validation where that has enough labels,
    and else cross-fit."""


def main(argv: Sequence[str], program: str = PROGRAM) -> int:
    """Answers what `argv` names; one row a prompt, and a sentence about them all."""
    given, asked = parse_answer(program, PredictFlags, argv)
    _check_values(given)
    out = _checked_output(given, asked)
    # Imported after parsing, for the same reason as in run.py.
    from star_jax.environment import configure_jax, configure_logging
    from star_jax.tracking.console import Progress

    configure_logging()
    configure_jax()
    progress = Progress()
    rows, summary, kept = answer_rest(given, asked, out, progress)
    write_rows(out, rows)
    kept.remove()
    if out is None:
        print(summary, file=sys.stderr)
    else:
        print(f"{summary} {out}")
    return 0


def _check_values(given: PredictFlags) -> None:
    if not 0 <= given.threshold <= 1:
        raise ConfigError(f"--threshold is {given.threshold}; it must be a confidence from 0 to 1")
    if given.calibrate_on not in SOURCES and not Path(given.calibrate_on).expanduser().is_file():
        raise ConfigError(
            f"--calibrate-on is {given.calibrate_on}; it must be one of {', '.join(SOURCES)}, or a labelled file, and "
            "there is no such file"
        )


def _checked_output(given: PredictFlags, asked: Asked) -> Path | None:
    if asked.run is None and given.data is None:
        raise ConfigError(
            f"{given.place} is no run's adapter, so there is no pool; name the file to answer with --data"
        )
    read = (given.data, given.config, given.calibrate_on, asked.config.data.train, asked.config.data.test)
    inputs: list[str | Path | None] = [*read]
    folders = [asked.adapter]
    if asked.run is not None:
        inputs.append(asked.run.path.parent.parent / "labels.csv")
        folders.append(asked.run.path)
    return check_output("--out", given.out, inputs, folders)


def answer_rest(
    given: PredictFlags, asked: Asked, out: Path | None, progress: Progress
) -> tuple[list[dict[str, Any]], str, PartialRows]:
    """A row for each prompt without a label, a sentence about all of them, and what to remove once they are written.

    Args:
      given: the flags.
      asked: what they mean.
      out: file beside which answers are kept until all are there; None to keep none.
      progress: where to show what is going on.

    Raises:
      ConfigError, DataError: model, adapter, run or data cannot be used, or every prompt has a label.
      ScoreError: a likelihood is not finite; the prompts are named.
    """
    from star_jax.checkpoints.hub import open_folder
    from star_jax.data.tasks import get_task
    from star_jax.evaluation.recalibration import fit_recalibration
    from star_jax.experiment.answering import open_adapter, run_data
    from star_jax.experiment.calibration_set import calibration_answers

    folder = open_folder(asked.config.model.path)
    task = get_task(asked.config.data.task, asked.config.format, folder.tokenizer)
    listed = None if given.data is None else _unlabelled_rows(given, asked, task)
    opened = open_adapter(asked.config, folder, task, asked.adapter, asked.run)
    data = run_data(opened) if listed is None else None
    prompts = _rest(opened, data) if listed is None else opened.answerer.encoder.within_limits(listed, {}).kept
    if not prompts:
        raise ConfigError("no prompt is within --max-prompt-tokens; raise it, or set --too-long to truncate-left")
    judged = calibration_answers(opened, given.calibrate_on, data, progress)
    calibrated = None if isinstance(judged, str) else fit_recalibration(judged.confidence, judged.correct)
    kept = PartialRows(out, _origin(opened, asked.adapter, prompts))
    answered = _answers(opened, prompts, kept, progress)
    rows = [_row(one, calibrated, given.threshold) for one in answered]
    known = judged if isinstance(judged, str) else judged.source
    return rows, _summary(answered, rows, calibrated, known, given.threshold), kept


def _unlabelled_rows(given: PredictFlags, asked: Asked, task: Task) -> list[Prompt]:
    """The rows of --data without a response, or all where every row has one; responses are not looked at."""
    from star_jax.data.loading import load_pool

    assert given.data is not None
    loaded = load_pool(task, given.data, asked.config.data.on_bad_row)
    return [prompt for prompt in loaded.prompts if prompt.id not in loaded.labels] or loaded.prompts


def _rest(opened: Opened, data: RunData | None) -> list[Prompt]:
    """What the run has neither labelled nor skipped; where its pool has labels for some rows only, of the others."""
    assert data is not None
    assert opened.run is not None
    done = opened.run.labels.keys() | opened.run.skipped
    if data.unlabelled:
        done |= data.labels.keys()
    rest = [prompt for prompt in data.pool if prompt.id not in done]
    if not rest:
        raise DataError(f"every prompt of the pool of {opened.run.path} has a label; name other prompts with --data")
    return rest


def _answers(opened: Opened, prompts: Sequence[Prompt], kept: PartialRows, progress: Progress) -> list[Answered]:
    """Answers to all prompts, some batches at a time; those that an interrupted command has given are taken over."""
    from star_jax.evaluation.predictions import Answered, answer_prompts, answer_shapes, readable_answer

    answerer, done = opened.answerer, len(kept.rows)
    shapes = answer_shapes(answerer.encoder, answerer.encoder.prompts(prompts).lengths, answerer.batch_size)
    if done:
        progress.log(f"goes on after {done} prompts that an interrupted command has answered")
    with progress.task("answer", len(prompts) - done, "prompts") as tick:
        for start in range(done, len(prompts), answerer.batch_size * BATCHES_KEPT):
            part = prompts[start : start + answerer.batch_size * BATCHES_KEPT]
            answered = answer_prompts(answerer, opened.adapter, part, shapes, tick)
            kept.add({"response": one.response, "confidence": one.confidence} for one in answered)
    return [
        Answered(prompt, row["response"], readable_answer(answerer.task, row["response"]), row["confidence"])
        for prompt, row in zip(prompts, kept.rows, strict=True)
    ]


def _origin(opened: Opened, adapter: Path, prompts: Sequence[Prompt]) -> str:
    """Hash of everything that answers depend on."""
    from star_jax import __version__
    from star_jax.checkpoints.fingerprints import folder_fingerprint
    from star_jax.data.run_data import fingerprint
    from star_jax.runs.files import plain

    settings: Any = plain(opened.config.to_dict())
    known = [__version__, opened.folder.fingerprint, folder_fingerprint(adapter), fingerprint(prompts), settings]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _row(one: Answered, calibrated: Recalibration | None, threshold: float) -> dict[str, Any]:
    """A row of the output; an answer that cannot be read is right by no rule, so its confidence is 0."""
    raw = 0.0 if one.answer is None else one.confidence
    sure = raw if calibrated is None or one.answer is None else float(calibrated(raw))
    figures = {} if calibrated is None else {"confidence": round(sure, 4)}
    return {
        "id": one.prompt.id,
        "prompt": one.prompt.readable,
        "answer": one.answer,
        **figures,
        "needs_person": sure < threshold or one.answer is None,
        "raw_confidence": round(raw, 6),
        "response": one.response,
    }


def _summary(
    answered: Sequence[Answered],
    rows: Sequence[dict[str, Any]],
    calibrated: Recalibration | None,
    known: str,
    threshold: float,
) -> str:
    """How many answers, how many for a person, and how many of the others should be right."""
    import numpy as np

    person = sum(row["needs_person"] for row in rows)
    said = f"{len(rows)} prompts answered, {person} of them for a person (confidence below {threshold:g})"
    if calibrated is None:
        return f"{said}; how many of the others are right is not known, confidence is the model's own: {known}."
    basis = f"calibrated on {calibrated.judged} {known}"
    sure = [one.confidence for one, row in zip(answered, rows, strict=True) if not row["needs_person"]]
    if not sure:
        return f"{said}; {basis}."
    low, high = calibrated.accuracy_interval(sure)
    expected = float(np.mean(calibrated(sure)))
    return (
        f"{said}; of the other {len(sure)}, about {expected:.0%} should be right (95 % interval {low:.0%} to "
        f"{high:.0%}), {basis}."
    )
