"""A whole experiment: every strategy with every seed, each in a run folder of its own, and the report.

The shell around the loop: loads what a run needs, times its phases, writes its files, takes it up again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.acquisition.pool_scoring import (
    BatchSizes,
    Pool,
    PoolShapes,
    candidate_pool,
    check_candidates,
    choose_shapes,
    generated_pool,
    proposed_pool,
    score_pool,
)
from star_jax.acquisition.strategies import Strategy, get_strategy, resolve
from star_jax.active.loop import LoopState, Problem, choose, init, learn
from star_jax.active.pool import available
from star_jax.annotators.csv_file import LABELS_FILE, FileAnnotator
from star_jax.annotators.oracle import Annotator, SimulatedOracle
from star_jax.checkpoints.hub import folder_fingerprint, resolve_folder
from star_jax.checkpoints.peft import save_adapter
from star_jax.config import ExperimentConfig
from star_jax.data.batching import Shape
from star_jax.data.examples import Example, Prompt
from star_jax.data.run_data import RunData, prepare, rows_fingerprint, tokenize_examples
from star_jax.errors import ConfigError, LabelsNeeded
from star_jax.evaluation.evaluator import PASSES, UNCERTAINTY, TestSet, evaluate, prepare_test_set
from star_jax.experiment.checks import check_data
from star_jax.experiment.setup import Workbench, open_workbench
from star_jax.models.lora import Adapter, b_norm
from star_jax.report.model_card import model_card
from star_jax.runs.files import replace_folder_atomic, write_text_atomic
from star_jax.runs.loop_state import Choice, forget_choices, load_choice, load_state, save_choice, save_state
from star_jax.runs.records import group_counts, length_correlation, queried_rows, summary_row
from star_jax.runs.run_folder import RunFolder
from star_jax.runs.score_store import Measures
from star_jax.tracking.console import Progress
from star_jax.tracking.observer import Timed
from star_jax.tracking.timing import Stopwatch, added, row_seconds
from star_jax.training.trainer import training_shapes


class Shapes(NamedTuple):
    """Shapes of all batches of an experiment, so that its runs share their programs.

    Attributes:
      scoring: of pools and test sets.
      training: of steps.
    """

    scoring: PoolShapes
    training: tuple[Shape, ...]


@dataclass(frozen=True)
class Run:
    """One strategy with one seed: what its rounds share.

    Attributes:
      bench: what it shares with other runs.
      strategy: from the registry.
      seed: of every choice that is left to chance.
      data: of that seed.
      problem: the same for the loop.
      shapes: of batches that are scored.
      test: test set.
      folder: open.
      title: its name on the screen.
    """

    bench: Workbench
    strategy: Strategy
    seed: int
    data: RunData
    problem: Problem
    shapes: PoolShapes
    test: TestSet
    folder: RunFolder
    title: str


def run_experiment(config: ExperimentConfig, progress: Progress, began: float | None = None) -> list[dict[str, Any]]:
    """Runs, or continues, every strategy with every seed.

    Args:
      config: the experiment.
      progress: where to show what is going on.
      began: when the command was started, by `time.monotonic`; now when None. What all runs share, loading and the
        base model's scores, counts as time of the run that it was done for first.

    Returns:
      One summary a run, in the order of strategies and seeds.

    Raises:
      ConfigError, DataError: something the user can put right.
      LabelsNeeded: every run has gone as far as its labels go, and a person has to give some.
      FloatingPointError: a training or a score diverged.
    """
    strategies = [get_strategy(name) for name in config.strategies]
    watch = Stopwatch(began)
    with watch.phase("load"):
        bench = open_workbench(config, strategies, progress, watch)
        # A seed's pool is loaded once for all strategies, which must see the same one. Everything that can be refused
        # is refused before the first training: data of all seeds, then all run folders.
        data = {seed: _load(bench, seed) for seed in config.seeds}
        for seed in config.seeds:
            for strategy in strategies:
                with _open(bench, strategy, seed, data[seed]):
                    pass
        shapes = _shapes(bench, list(data.values()))
    summaries: dict[tuple[str, int], dict[str, Any]] = {}
    waiting: LabelsNeeded | None = None
    for seed in config.seeds:
        for strategy in strategies:
            try:
                summaries[strategy.name, seed] = _run(bench, strategy, seed, data[seed], shapes)
            except LabelsNeeded as needed:
                waiting = needed  # all runs ask in one table, so the last one speaks for all
                watch.lap()  # what it has spent lies with its choice
    if waiting is not None:
        raise waiting
    return [summaries[strategy.name, seed] for strategy in strategies for seed in config.seeds]


def _load(bench: Workbench, seed: int) -> RunData:
    data = prepare(bench.config.data, bench.task, bench.encoder, seed)
    data.facts["model"] = folder_fingerprint(resolve_folder(bench.config.model.path))
    if bench.config.model.adapter is not None:
        data.facts["start"] = folder_fingerprint(Path(bench.config.model.adapter))
    if bench.replay:
        data.facts["replay"] = rows_fingerprint(bench.replay)
    check_data(bench.config, data)
    if bench.config.scoring.answers == "candidates" and bench.task.candidates is not None:
        check_candidates(bench.encoder, data.pool[0], bench.task.candidates)
    if data.facts["duplicate_prompts"] or data.facts["test_overlap"]:
        bench.progress.log(
            f"seed {seed}: {data.facts['duplicate_prompts']} pool prompts repeat an earlier one, "
            f"{data.facts['test_overlap']} are also in the test set"
        )
    if data.unlabelled:
        bench.progress.log(f"seed {seed}: {data.unlabelled} of {len(data.pool)} pool prompts have no response yet")
    return data


def _annotator(bench: Workbench, data: RunData) -> Annotator:
    """Who labels what is picked: the file that the pool is from, and a person where it has no responses.

    A person's labels serve all runs of the experiment.
    """
    if data.unlabelled:
        table = Path(bench.config.output_dir) / LABELS_FILE
        return FileAnnotator(data.labels, data.ids, table, bench.task, lambda one: bench.encoder.examples([one]))
    return SimulatedOracle(data.labelled())


def _open(bench: Workbench, strategy: Strategy, seed: int, data: RunData) -> RunFolder:
    config = bench.config
    device = jax.devices()[0].device_kind
    return RunFolder.open(config.output_dir, strategy.name, seed, config.to_dict(), device, data.facts)


def _run(bench: Workbench, strategy: Strategy, seed: int, data: RunData, shapes: Shapes) -> dict[str, Any]:
    progress, title = bench.progress, f"{strategy.name} seed {seed}"
    with _open(bench, strategy, seed, data) as folder:
        if folder.finished:
            progress.log(f"{title}: finished already, in {folder.path}")
            return folder.summary()
        with bench.watch.phase("load"):
            state = load_state(folder.path)
            _drop_unfinished(folder, 0 if state is None else state.round)
            folder.record()
            problem, test = _problem(bench, data, shapes), prepare_test_set(bench.encoder, data.test, shapes.scoring)
            run = Run(bench, strategy, seed, data, problem, shapes.scoring, test, folder, title)
            if state is None:
                state = init(len(data.pool))
            else:
                progress.log(f"{title}: continues after round {state.round}, in {folder.path}")
                state = state._replace(labels=_labels(folder, data.pool, state.round))
        while state.round < bench.config.loop.rounds:
            state = _round(run, state)
        summary = summary_row(strategy.name, seed, folder.metrics(), data.counts(), bench.watch.lap())
        folder.write_summary(summary)
        return summary


def _drop_unfinished(folder: RunFolder, rounds: int) -> None:
    """Drops what a killed run wrote of a round whose state it did not come to write, which is one round at most."""
    written = len(folder.metrics())
    if written > rounds + 1:
        raise ConfigError(
            f"{folder.path} has {written} finished rounds, and {folder.path / 'state'} the state after "
            f"{rounds or 'none'} of them; put the newest state back, or delete the folder to start again"
        )
    folder.drop_rounds_from(rounds)


def _labels(folder: RunFolder, pool: Sequence[Prompt], rounds: int) -> dict[int, str]:
    """The labels bought so far, from the run folder: nobody is asked twice."""
    place = {prompt.id: index for index, prompt in enumerate(pool)}
    rows = [row for number in range(rounds) for row in folder.queried(number)]
    return dict(sorted((place[row["id"]], row["response"]) for row in rows))


def _shapes(bench: Workbench, data: Sequence[RunData]) -> Shapes:
    """Shapes for the data of all seeds.

    Responses of the pool are hidden; those of the test set, which all seeds have, tell how long they are.
    """
    config, limits, test = bench.config, bench.encoder.limits, data[0].test
    pools = {one.facts["pool"]: one.tokens for one in data}  # seeds may have the same one
    prompts = [len(tokens) for part in (*pools.values(), test.prompts) for tokens in part]
    known, longest = [len(row.tokens) for row in test.rows], limits.prompt + limits.response
    sizes = BatchSizes(config.generation.batch_size, config.scoring.batch_size)
    replay = [len(row.tokens) for row in bench.replay]
    return Shapes(
        choose_shapes(prompts, known, longest, sizes), training_shapes(known, replay, longest, config.training)
    )


def _problem(bench: Workbench, data: RunData, shapes: Shapes) -> Problem:
    """What the loop works on."""
    encoder, scoring = bench.encoder, bench.config.scoring
    pool: Pool
    if scoring.answers == "candidates":
        assert bench.task.candidates is not None
        pool = candidate_pool(encoder, data.pool, bench.task.candidates, scoring.batch_size)
    elif scoring.answers == "reference":
        gold = SimulatedOracle(data.labelled()).reveal(data.pool)
        pool = proposed_pool(encoder.examples(gold, counted=True), shapes.scoring.sequences)
    else:
        pool = generated_pool(encoder, data.tokens, shapes.scoring)
    annotator = _annotator(bench, data)
    return Problem(bench.model, encoder, data.pool, pool, shapes.training, annotator, bench.replay, bench.start)


def _round(run: Run, state: LoopState) -> LoopState:
    """One round and its files; the checkpoint is written last, and makes the round count."""
    bench, problem, data, folder = run.bench, run.problem, run.data, run.folder
    config, number = bench.config, state.round
    candidates = np.asarray(available(state.pool))
    timed = Timed(bench.progress, bench.watch, f"{run.title}, round {number + 1}/{config.loop.rounds}")
    key, origin = jax.random.key(run.seed), folder.origin(config.to_dict(), data.facts)
    choice = load_choice(folder.path, number, origin)
    if choice is None:
        query = choose(config, run.strategy, problem, _with_base(run, state, timed.title), key, timed)
        choice = Choice(query, bench.watch.lap())
        with bench.watch.phase("write"):
            save_choice(folder.path, number, choice, origin)
    state, info = learn(config, problem, state, choice.query, key, timed)
    assert state.adapter is not None
    adapter, test = state.adapter, run.test
    with bench.watch.phase("evaluate"):
        base = _base_measures(bench, test.prompts, f"{timed.title}: base model on the test set")[UNCERTAINTY]
        with timed.phase("evaluate", PASSES * len(test.examples), "examples") as tick:
            figures, predictions = evaluate(
                bench.model, adapter, test, bench.task, bench.encoder, config.evaluation, base=base, on_batch=tick
            )
        held_out = _validate(run, adapter, info.validation, timed.title)
    queried = queried_rows(bench.task, problem, info, state.labels)
    row = {
        "round": number,
        "labelled": info.labelled,
        **figures,
        **held_out,
        "lora_b_norm": float(b_norm(adapter)),
        "train_loss": info.train_loss,
        "score_length_correlation": length_correlation(info, candidates),
        "picked_groups": group_counts([entry["group"] for entry in queried]),
    }
    with bench.watch.phase("write"):
        folder.write_round(number, queried, predictions)
        replace_folder_atomic(folder.adapter, partial(_write_adapter, run, adapter, row))
        # What is written from here on counts in the next row, or in the summary.
        folder.append_metrics(row | row_seconds(added([choice.seconds, bench.watch.lap()])))
        save_state(folder.path, state)
        forget_choices(folder.path)
    bench.progress.log(
        f"{timed.title}: {info.labelled} labels, accuracy {figures['accuracy']:.3f}, ECE {figures['ece']:.3f}"
    )
    return state


def _write_adapter(run: Run, adapter: Adapter, metrics: Mapping[str, Any], path: Path) -> None:
    """A PEFT folder with its model card."""
    config, rslora = run.bench.config, run.bench.rslora
    save_adapter(adapter, path, base_model=config.model.path, dropout=config.lora.dropout, rslora=rslora)
    card = model_card(config, run.strategy.name, run.seed, metrics, run.data.facts)
    write_text_atomic(path / "README.md", card)


def _validate(run: Run, adapter: Adapter, examples: Sequence[Example], title: str) -> dict[str, Any]:
    """Accuracy and NLL on the labelled examples that were held out, where there are some."""
    if not examples:
        return {}
    bench, config = run.bench, run.bench.config.evaluation
    held_out = prepare_test_set(bench.encoder, tokenize_examples(bench.encoder, examples), run.shapes)
    unasked = np.zeros(len(examples))  # the base model's uncertainty on them is of no interest
    with bench.progress.task(f"{title}: validate", PASSES * len(examples), "examples") as tick:
        figures, _ = evaluate(
            bench.model, adapter, held_out, bench.task, bench.encoder, config, base=unasked, on_batch=tick
        )
    return {"validation_examples": len(examples)} | {
        f"validation_{name}": figures[name] for name in ("accuracy", "nll")
    }


def _with_base(run: Run, state: LoopState, title: str) -> LoopState:
    """The state with the base model's measure, where the coming query needs it and does not have it."""
    resolved = resolve(run.strategy, run.bench.config.acquisition)
    if state.round == 0 or state.base is not None or not resolved.needs_base or resolved.measure is None:
        return state
    with run.bench.watch.phase("score"):
        measures = _base_measures(run.bench, run.problem.pool, f"{title}: base model on the pool")
    return state._replace(base=jnp.asarray(measures[resolved.measure]))


def _base_measures(bench: Workbench, pool: Pool, title: str) -> Measures:
    """The base model's measures, from disk or from a pass over the examples."""

    def compute() -> Mapping[str, jax.Array]:
        with bench.progress.task(title, pool.size, "examples") as tick:
            return score_pool(bench.model, bench.base_adapter, pool, on_batch=tick).measures

    return bench.base.measures(pool, compute)
