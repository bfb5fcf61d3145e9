"""The answers that an adapter's confidence can be calibrated on: to labelled prompts that it was not trained on.

Shapes: `N` labelled examples.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from star_jax import __version__
from star_jax.checkpoints.fingerprints import folder_fingerprint
from star_jax.checkpoints.peft import load_adapter
from star_jax.data.examples import Example
from star_jax.data.loading import load_examples
from star_jax.data.run_data import RunData, examples_within_limits
from star_jax.data.splits import hold_out
from star_jax.errors import ConfigError, DataError
from star_jax.evaluation.accuracy import judge
from star_jax.evaluation.predictions import answer_prompts, answer_shapes
from star_jax.evaluation.recalibration import LEAST_JUDGED, SOURCES
from star_jax.experiment.answering import Opened, labelled_examples, run_data
from star_jax.experiment.setup import load_replay
from star_jax.runs.files import plain, read_json, write_json_atomic
from star_jax.runs.stored_run import StoredRun
from star_jax.tracking.console import Progress
from star_jax.training.trainer import TrainingRows, fit, training_shapes

FOLDS = 3
"""Parts of the labels in cross-fitting: each is answered by an adapter that was trained on the other two."""

KEPT = "calibration.json"
"""File of a run folder that keeps what cross-fitting found."""

_log = logging.getLogger(__name__)


class Judged(NamedTuple):
    """Answers to labelled prompts that the answering adapter was not trained on.

    Attributes:
      confidence: `N`, raw.
      correct: `N` bool.
      source: where the labels are from, in words.
    """

    confidence: np.ndarray
    correct: np.ndarray
    source: str


def calibration_answers(opened: Opened, source: str, data: RunData | None, progress: Progress) -> Judged | str:
    """Judged answers to calibrate a confidence on.

    The labels of a run were trained on, and an adapter is surer of them, and more often right, than of others. So
    `auto` takes, in this order: the rows that `training.validation_fraction` held out; the run's labels, each answered
    by an adapter that was trained without it (cross-fitting, at the cost of two trainings; what it finds is kept in the
    run folder). The test set is left alone unless it is asked for: figures on it would be no test of the result. The
    model's guesses at the time of the query are not taken: they are of earlier and weaker adapters, and there are none
    of the first round. Whichever it is, labels that a strategy has picked are harder than what is left, so that
    confidences are rather too low than too high.

    Args:
      opened: the adapter, and its run.
      source: one of `SOURCES`, or a labelled file that was not trained on.
      data: of the run; read where it is needed and None.
      progress: shows trainings.

    Returns:
      The answers, or why there are none.

    Raises:
      ConfigError: a source was asked for that does not exist or has fewer than `LEAST_JUDGED` labels.
      DataError: a file cannot be used.
    """
    run = opened.run
    if source == "none":
        return "it was asked for"
    if source not in SOURCES:
        return _enough(_judged_file(opened, source, data), source)
    if run is None:
        if source != "auto":
            raise ConfigError(f"--calibrate-on {source} needs a run folder; name one, or a labelled file")
        return "nothing tells which labels the adapter was not trained on (name such a file with --calibrate-on)"
    if source == "test":
        return _enough(_from_test(run), source)
    examples = labelled_examples(run, data or run_data(opened))
    held = hold_out(examples, opened.config.training.validation_fraction)[1]
    if source == "validation" or (source == "auto" and len(held) >= LEAST_JUDGED):
        return _enough(_judged(opened, held, "labels that were held out of training"), source)
    if source == "auto" and len(examples) < LEAST_JUDGED:
        return f"the run has {len(examples)} labels, and {LEAST_JUDGED} are needed"
    _require(len(examples), source)
    return _cross_fitted(opened, examples, progress)


def _enough(judged: Judged, source: str) -> Judged:
    _require(len(judged.correct), source)
    return judged


def _require(count: int, source: str) -> None:
    if count < LEAST_JUDGED:
        raise ConfigError(
            f"--calibrate-on {source} has {count} labelled examples that were not trained on, and {LEAST_JUDGED} are "
            "needed; choose another source, or none"
        )


def _from_test(run: StoredRun) -> Judged:
    """The run has judged its test set after each round."""
    rows = run.test_predictions()
    try:
        confidence = np.asarray([float(row["confidence"]) for row in rows])
        correct = np.asarray([bool(row["correct"]) for row in rows])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{run.path}: the last predictions.jsonl has a row without 'confidence' or 'correct'; restore the file"
        ) from error
    return Judged(confidence, correct, "labels of the test set")


def _judged_file(opened: Opened, file: str, data: RunData | None) -> Judged:
    """A labelled file, without the prompts that the run was trained on."""
    answerer, reading = opened.answerer, opened.config.data
    loaded = load_examples(answerer.task, file, "test", reading.on_bad_row)
    kept = examples_within_limits(answerer.encoder, loaded)[0]
    trained = _trained_prompts(opened, data, file)
    fresh = [example for example in kept if example.prompt.text not in trained]
    if len(fresh) < len(kept):
        _log.warning("%s: %d rows were trained on and are left out", file, len(kept) - len(fresh))
    return _judged(opened, fresh, f"labels of {file}")


def _trained_prompts(opened: Opened, data: RunData | None, file: str) -> set[str]:
    """Prompts that the run was trained on; none where there is no run, or its pool is not there any more."""
    if opened.run is None:
        return set()
    try:
        return {example.prompt.text for example in labelled_examples(opened.run, data or run_data(opened))}
    except (ConfigError, DataError) as error:
        _log.warning("whether rows of %s were trained on is not known: %s", file, error)
        return set()


def _judged(opened: Opened, examples: Sequence[Example], source: str) -> Judged:
    answered = answer_prompts(opened.answerer, opened.adapter, [example.prompt for example in examples])
    correct = judge(opened.answerer.task, [one.response for one in answered], [one.response for one in examples])
    return Judged(np.asarray([one.confidence for one in answered]), correct, source)


def _cross_fitted(opened: Opened, examples: Sequence[Example], progress: Progress) -> Judged:
    """Answers to the run's labels, each by an adapter that has not seen it; kept for the next time."""
    assert opened.run is not None
    source = "labels of the run, each answered by an adapter that was trained without it"
    file, origin = opened.run.path / KEPT, _origin(opened)
    kept = _kept(file, origin, [example.id for example in examples])
    if kept is None:
        kept = _cross_fit(opened, examples, progress)
        rows = [
            {"id": example.id, "confidence": float(sure), "correct": bool(right)}
            for example, sure, right in zip(examples, *kept, strict=True)
        ]
        try:
            write_json_atomic(file, {"origin": origin, "answers": rows})
        except OSError as error:
            _log.warning("%s cannot be written (%s): the next call trains again", file, error.strerror)
    return Judged(*kept, source)


def _cross_fit(opened: Opened, examples: Sequence[Example], progress: Progress) -> tuple[np.ndarray, np.ndarray]:
    config, answerer = opened.config, opened.answerer
    encoder, model = answerer.encoder, answerer.model
    replay = load_replay(config, answerer.task, encoder, opened.folder)
    start = None if config.model.adapter is None else load_adapter(Path(config.model.adapter), model.config)[0]
    rows = encoder.examples(examples, counted=True)
    longest = encoder.limits.prompt + encoder.limits.response
    steps = training_shapes(
        [len(row.tokens) for row in rows], [len(row.tokens) for row in replay], longest, config.training
    )
    batches = answer_shapes(encoder, [row.prompt_length for row in rows], answerer.batch_size)
    key = jax.random.fold_in(jax.random.key(config.seeds[0]), config.loop.rounds)
    fold = _folds([example.id for example in examples])
    confidence, correct = np.zeros(len(examples)), np.zeros(len(examples), bool)
    for number in range(FOLDS):
        inside, outside = np.flatnonzero(fold != number).tolist(), np.flatnonzero(fold == number).tolist()
        title = f"calibration, part {number + 1}/{FOLDS}: train"
        with progress.task(title, len(inside) * config.training.epochs_of(len(inside)), "examples") as tick:
            data = TrainingRows([rows[place] for place in inside], replay, steps)
            fitted = fit(
                jax.random.fold_in(key, number), model, data, config.lora, config.training, start=start, on_step=tick
            )
        held = [examples[place] for place in outside]
        answered = answer_prompts(answerer, fitted.adapter, [example.prompt for example in held], batches)
        confidence[outside] = [one.confidence for one in answered]
        correct[outside] = judge(
            answerer.task, [one.response for one in answered], [example.response for example in held]
        )
    return confidence, correct


def _folds(names: Sequence[str]) -> np.ndarray:
    """The part of each example, all of one size; the names decide, as they do in `hold_out`."""
    order = sorted(range(len(names)), key=lambda place: hashlib.sha256(names[place].encode()).digest())
    parts = np.zeros(len(names), np.int64)
    parts[order] = np.arange(len(names)) % FOLDS
    return parts


def _origin(opened: Opened) -> str:
    """Hash of what the cross-fitted answers depend on: the run's adapter stands for its labels."""
    assert opened.run is not None
    settings: Any = plain(opened.config.to_dict() | {"output_dir": None, "track": None})
    known = [__version__, FOLDS, opened.folder.fingerprint, folder_fingerprint(opened.run.adapter), settings]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _kept(file: Path, origin: str, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """What an earlier call found; None where there was none, or of something else, or the file is damaged."""
    if not file.is_file():
        return None
    try:
        found = read_json(file)
        rows = found["answers"] if found["origin"] == origin else []
        if [row["id"] for row in rows] != list(names):
            return None
        confidence = np.asarray([float(row["confidence"]) for row in rows])
        correct = np.asarray([bool(row["correct"]) for row in rows])
    except (DataError, KeyError, TypeError, ValueError):
        return None
    return confidence, correct
