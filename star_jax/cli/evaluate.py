"""`star-jax evaluate`: how good an adapter is on a labelled file."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from star_jax.cli.answer_flags import AnswerFlags, Asked, parse_answer
from star_jax.cli.outputs import TABLES, check_output_file, write_rows
from star_jax.config import SEEDS
from star_jax.errors import ConfigError

if TYPE_CHECKING:
    from star_jax.data.examples import Example
    from star_jax.data.tasks.task import Task
    from star_jax.evaluation.evaluator import Evaluation, GoldLikelihood
    from star_jax.evaluation.intervals import Estimate
    from star_jax.experiment.answering import Opened
    from star_jax.tracking.console import Progress

PROGRAM = "star-jax evaluate"

_log = logging.getLogger("star_jax.evaluate")


@dataclass(frozen=True)
class EvaluateFlags(AnswerFlags):
    """Judges an adapter on labelled examples: accuracy, NLL, Brier and calibration with 95 % intervals, and by group.

    Without --data, a run is judged on its own test set. With --label-budget, --data need have no labels: some prompts
    are drawn for a person to label, in a table, and the accuracy on all of them is estimated.
    """

    out: str | None = None
    """File for every prediction, by its ending .csv or .jsonl; none to write none."""
    metrics: str | None = None
    """JSON file for the figures; none to write none. They are printed all the same."""
    label_budget: int | None = None
    """Labels that a person gives to --data; it may be raised later. None where all rows have one."""
    labels: str | None = None
    """With it, CSV file that the person writes the labels into."""
    label_seed: int = 0
    """Of which prompts are drawn."""


def main(argv: Sequence[str], program: str = PROGRAM) -> int:
    """Judges what `argv` names and prints the figures."""
    given, asked = parse_answer(program, EvaluateFlags, argv)
    _check_budget(given)
    out, metrics = _checked_outputs(given, asked)
    # Imported after parsing, for the same reason as in run.py.
    from star_jax.environment import configure_jax, configure_logging
    from star_jax.runs.files import write_json_atomic
    from star_jax.tracking.console import Progress

    configure_logging()
    configure_jax()
    if given.label_budget is not None:
        _judge_with_budget(given, asked, metrics)
        return 0
    examples, found, gold = judge_file(given, asked, Progress())
    figures = figures_with_intervals(found, gold, asked.config.evaluation.bins)
    if out is not None:
        texts = {example.id: example.prompt.readable for example in examples}
        rows = [{"id": row["id"], "prompt": texts[row["id"]], **_shown(row)} for row in found.predictions]
        write_rows(out, rows)
    if metrics is not None:
        write_json_atomic(metrics, _as_json(figures, len(examples)))
    source = given.data or f"the test set of {asked.run.path if asked.run else given.place}"
    print(_table(figures, f"{len(examples)} examples of {source}"))
    for path in (out, metrics):
        if path is not None:
            print(path)
    return 0


def _check_budget(given: EvaluateFlags) -> None:
    if given.label_budget is None:
        if given.labels is not None:
            raise ConfigError("--labels is for --label-budget; give the number of labels too, or leave it out")
        return
    if given.label_budget < 2:
        raise ConfigError(f"--label-budget is {given.label_budget}; it must be at least 2")
    if not 0 <= given.label_seed < SEEDS:
        raise ConfigError(f"--label-seed is {given.label_seed}; it must be from 0 to {SEEDS - 1}")
    for flag, value in (("--data", given.data), ("--labels", given.labels)):
        if value is None:
            raise ConfigError(f"--label-budget needs {flag}: the prompts, and a CSV file for labels")
    if given.out is not None:
        raise ConfigError("--out is for data that is labelled already; leave it out, or use star-jax predict")


def _judge_with_budget(given: EvaluateFlags, asked: Asked, metrics: Path | None) -> None:
    """Prints the accuracy that the labels say, once they are there."""
    from star_jax.cli.evaluate_budget import judge_with_budget, said
    from star_jax.runs.files import write_json_atomic
    from star_jax.tracking.console import Progress

    assert given.labels is not None
    table = check_output_file("--labels", given.labels, asked.files_read(given), asked.folders_read(), (".csv",))
    if table is None:
        raise ConfigError("--labels is -, and has to be a file that somebody can write into")
    found = judge_with_budget(given, asked, table, Progress())
    if metrics is not None:
        write_json_atomic(
            metrics, {"examples": found.examples, "labels": found.labels, "accuracy": found.accuracy._asdict()}
        )
    print(said(found, str(given.data)))
    if metrics is not None:
        print(metrics)


def _checked_outputs(given: EvaluateFlags, asked: Asked) -> tuple[Path | None, Path | None]:
    if asked.run is None and given.data is None:
        raise ConfigError(
            f"{given.place} is no run's adapter, so there is no test set; name a labelled file with --data"
        )
    read, folders = asked.files_read(given), asked.folders_read()
    out, metrics = None, None
    if given.out is not None:
        out = check_output_file("--out", given.out, read, folders, TABLES)
    if given.metrics is not None:
        metrics = check_output_file("--metrics", given.metrics, read | {"--out": out}, folders, (".json",))
    return out, metrics


def judge_file(
    given: EvaluateFlags, asked: Asked, progress: Progress
) -> tuple[Sequence[Example], Evaluation, GoldLikelihood]:
    """The examples within the limits, what the evaluator finds on them, and how likely their responses are.

    Raises:
      ConfigError, DataError: model, adapter, run or data cannot be used, or a row has no response.
      ScoreError: a likelihood is not finite; the examples are named.
    """
    import numpy as np

    from star_jax.acquisition.pools import BatchSizes, choose_shapes
    from star_jax.checkpoints.hub import open_folder
    from star_jax.data.run_data import examples_within_limits, tokenize_examples
    from star_jax.data.tasks import get_task
    from star_jax.evaluation.evaluator import PASSES, evaluate_with_gold, prepare_test_set
    from star_jax.experiment.answering import open_adapter

    config = asked.config
    folder = open_folder(config.model.path)
    task = get_task(config.data.task, config.format, folder.tokenizer)
    loaded = _examples(given, asked, task)
    opened = open_adapter(config, folder, task, asked.adapter, asked.run)
    encoder, batch = opened.answerer.encoder, config.generation.batch_size
    examples = examples_within_limits(encoder, loaded)[0]
    if not examples:
        raise ConfigError("no example is within --max-prompt-tokens; raise it, or set --too-long to truncate-left")
    tokens = tokenize_examples(encoder, examples, counted=True)
    prompts, rows = [*map(len, tokens.prompts)], [len(row.tokens) for row in tokens.rows]
    shapes = choose_shapes(prompts, rows, max(rows), BatchSizes(batch, config.scoring.batch_size))
    closed = config.scoring.batch_size if opened.answerer.closed else None
    test = prepare_test_set(task, encoder, tokens, shapes, closed)
    with progress.task("evaluate", PASSES * len(examples), "examples") as tick:
        unasked = np.zeros(len(examples))  # the base model's uncertainty on them is of no interest
        found, gold = evaluate_with_gold(
            opened.answerer.model, opened.adapter, test, config.evaluation, base=unasked, on_batch=tick
        )
    _warn_of_training_rows(given, opened, examples)
    return examples, found, gold


def _examples(given: EvaluateFlags, asked: Asked, task: Task) -> list[Example]:
    from star_jax.data.loading import load_examples, load_pool_and_test

    if given.data is not None:
        return load_examples(task, given.data, "test", asked.config.data.on_bad_row)
    assert asked.run is not None
    return load_pool_and_test(asked.config.data, task, asked.run.seed).test


def _warn_of_training_rows(given: EvaluateFlags, opened: Opened, examples: Sequence[Example]) -> None:
    """Rows of the run's own pool that it was trained on say nothing of others."""
    if opened.run is None or given.data is None or given.data != opened.config.data.train:
        return
    trained = sum(example.id in opened.run.labels for example in examples)
    if trained:
        _log.warning("%d of %d examples were trained on; the figures are better than on others", trained, len(examples))


def figures_with_intervals(found: Evaluation, gold: GoldLikelihood, bins: int) -> dict[str, Any]:
    """Figures with 95 % intervals: `accuracy`, `nll`, `brier`, `ece`, and `groups` with examples and accuracy of each.

    Accuracies have Wilson's interval, the others a bootstrap over examples; AUROC, which may not exist, has none.
    """
    import numpy as np

    from star_jax.evaluation.calibration import brier, expected_calibration_error
    from star_jax.evaluation.intervals import bootstrap, wilson

    correct = np.asarray([row["correct"] for row in found.predictions])
    confidence = np.asarray([row["confidence"] for row in found.predictions])
    groups = np.asarray([row["group"] for row in found.predictions])

    def nll(nats: np.ndarray, tokens: np.ndarray) -> float:
        return float(nats.sum(dtype=np.float64) / tokens.sum(dtype=np.float64))

    def ece(confidence: np.ndarray, correct: np.ndarray) -> float:
        return expected_calibration_error(confidence, correct, bins)

    return {
        "accuracy": wilson(correct),
        "nll": bootstrap(nll, gold.nll, gold.tokens),
        "brier": bootstrap(brier, confidence, correct),
        "ece": bootstrap(ece, confidence, correct),
        "auroc": found.metrics["auroc"],
        "groups": {
            name: (int(np.sum(groups == name)), wilson(correct[groups == name]))
            for name in sorted(set(groups.tolist()))
        },
    }


NAMES = {
    "accuracy": "accuracy",
    "nll": "NLL, nats a token",
    "brier": "Brier score",
    "ece": "calibration error (ECE)",
}
"""Figure -> what it is called on the screen."""


def _table(figures: Mapping[str, Any], title: str) -> str:
    """At most 80 columns, unless a name of a group is longer."""
    lines = [title, "", f"{'':<26}{'value':>8}   95 % interval"]
    lines += [f"{said:<26}{_said(figures[name])}" for name, said in NAMES.items()]
    if figures["auroc"] is not None:
        lines.append(f"{'AUROC of uncertainty':<26}{figures['auroc']:>8.3f}")
    groups = figures["groups"]
    if len(groups) > 1:
        wide = max(24, *map(len, groups))
        lines += ["", f"{'group':<{wide}}  accuracy   95 % interval     examples"]
        lines += [f"{name:<{wide}}  {_said(one)}  {count:>8}" for name, (count, one) in groups.items()]
    return "\n".join(lines)


def _said(one: Estimate) -> str:
    return f"{one.value:>8.3f}   {one.low:.3f} to {one.high:.3f}"


def _as_json(figures: Mapping[str, Any], examples: int) -> dict[str, Any]:
    plain = {name: figures[name]._asdict() for name in NAMES} | {"auroc": figures["auroc"]}
    groups = {name: {"examples": count, "accuracy": one._asdict()} for name, (count, one) in figures["groups"].items()}
    return {"examples": examples, **plain, "groups": groups}


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("id", "prompt", "base_uncertainty")}
