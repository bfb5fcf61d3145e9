"""A whole experiment: every strategy with every seed, each in a run folder of its own.

The shell around the loop: opens what a run needs, times its phases, writes its files, takes it up again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.acquisition.pool_scoring import Pool, score_pool
from star_jax.acquisition.strategy import Strategy, get_strategy
from star_jax.active.loop import choose, init, learn
from star_jax.active.pool import available
from star_jax.active.query import first_strategy
from star_jax.active.state import LoopState, Problem
from star_jax.annotators.annotator import Annotator, Rereadable
from star_jax.checkpoints.companions import copy_companions, tokenizer_files
from star_jax.checkpoints.files import read_object
from star_jax.checkpoints.fingerprints import fingerprint_like
from star_jax.checkpoints.peft import CONFIG_FILE, save_adapter
from star_jax.config import AUTO, ExperimentConfig
from star_jax.data.bucketing import Shapes
from star_jax.data.examples import Example
from star_jax.data.run_data import RunData, tokenize_examples
from star_jax.environment import memory_bytes
from star_jax.errors import LabelsNeeded
from star_jax.evaluation.evaluator import (
    PASSES,
    UNCERTAINTY,
    TestSet,
    accuracy_of_answers,
    evaluate,
    prepare_test_set,
)
from star_jax.experiment.checks import check_output_dir
from star_jax.experiment.plan import chosen_strategies, named_strategies, said_of_labels
from star_jax.experiment.resume import (
    Bought,
    check_state,
    corrected_state,
    corrections,
    drop_unfinished,
    finished_since,
    labels_bought,
    said_of,
)
from star_jax.experiment.setup import (
    ExperimentContext,
    Sources,
    experiment_shapes,
    load_seed,
    log_seed,
    make_annotator,
    make_problem,
    open_experiment,
    open_sources,
)
from star_jax.experiment.sizes import batch_demands, refuse_what_does_not_fit
from star_jax.models.lora import Adapter, b_norm
from star_jax.registry import load_plugins, source_fingerprint
from star_jax.report.model_card import model_card, usage_of
from star_jax.runs.files import replace_folder_atomic, write_text_atomic
from star_jax.runs.loop_state import KeptChoice, forget_choices, load_choice, load_state, save_choice, save_state
from star_jax.runs.records import group_counts, length_correlation, nothing_right, queried_rows, summary_row
from star_jax.runs.run_folder import RunFolder, stored_data
from star_jax.runs.score_store import StoredScores, answers_of, with_answers
from star_jax.tracking.console import Progress, round_title
from star_jax.tracking.observer import Timed
from star_jax.tracking.timing import Stopwatch, added, row_seconds
from star_jax.tracking.tracker import TrackedRun, Tracking


@dataclass(frozen=True)
class Run:
    """One strategy with one seed.

    Attributes:
      context: what it shares with other runs.
      strategy: from the registry.
      seed: of every choice that is left to chance.
      data: of that seed.
      problem: the same for the loop.
      test: test set.
      folder: open.
      title: its name on the screen.
    """

    context: ExperimentContext
    strategy: Strategy
    seed: int
    data: RunData
    problem: Problem
    test: TestSet
    folder: RunFolder
    title: str


def run_experiment(
    config: ExperimentConfig, progress: Progress, began: float | None = None, tracking: Tracking | None = None
) -> list[dict[str, Any]]:
    """Runs, or continues, every strategy with every seed.

    Args:
      config: the experiment.
      progress: where to show what is going on.
      began: when the command was started, by `time.monotonic`; now when None. What all runs share, loading and the
        base model's scores, counts as time of the run that it was done for first.
      tracking: where figures go besides the run folders; to the screen alone when None.

    Returns:
      One summary a run, in the order of strategies and seeds.

    Raises:
      ConfigError, DataError: something the user can put right.
      LabelsNeeded: every run has gone as far as its labels go, and a person has to give some.
      FloatingPointError: a training or a score diverged.
    """
    check_output_dir(config)
    load_plugins(config.plugins)  # the commands have done so; a caller from Python may not
    watch = Stopwatch(began)
    with watch.phase("load"):
        # A seed's pool is loaded once for all strategies, which must see the same one. Everything that can be refused
        # is refused before the model is loaded: data of all seeds, what was written into tables, and all run folders.
        strategies = [get_strategy(name, config.acquisition) for name in named_strategies(config)]
        sources = open_sources(config, strategies, progress)
        data = {seed: load_seed(sources, seed) for seed in config.seeds}
        chosen = chosen_strategies(config, data)
        if said := said_of_labels(config, chosen, data):
            progress.log(said)
        strategies = [strategy for strategy in strategies if strategy.name in chosen]
        for seed in config.seeds:
            log_seed(progress, seed, data[seed])
            _review(sources, data[seed])
            for strategy in strategies:
                with _open(sources, strategy, seed, data[seed]):
                    pass
        context = open_experiment(config, strategies, progress, watch, tracking, sources)
        shapes = experiment_shapes(context, list(data.values()))
        refuse_what_does_not_fit(batch_demands(config, context.shape, shapes), memory_bytes())
        _ = context.model  # loaded here, last, and counted as loading
    summaries: dict[tuple[str, int], dict[str, Any]] = {}
    waiting: LabelsNeeded | None = None
    progress.log(_plan(config, len(strategies)))
    with progress.whole("all runs", context.forecast):
        for seed in config.seeds:
            for strategy in strategies:
                try:
                    summaries[strategy.name, seed] = _run(context, strategy, seed, data[seed], shapes)
                except LabelsNeeded as needed:
                    waiting = needed  # all runs ask in one table, so the last one speaks for all
                    watch.lap()  # what it has spent lies with its choice
    if waiting is not None:
        raise waiting
    return [summaries[strategy.name, seed] for strategy in strategies for seed in config.seeds]


def _plan(config: ExperimentConfig, strategies: int) -> str:
    """What is going to happen, in one line; also how rounds are counted."""
    runs, rounds = strategies * len(config.seeds), config.loop.rounds
    return (
        f"{runs} run{'s' if runs > 1 else ''} of {rounds} round{'s' if rounds > 1 else ''}, counted from 0 as in their "
        f"folders; round 0 labels {'at random' if config.loop.initial == 'random' else f'by {config.loop.initial}'}"
    )


def _review(context: Sources, data: RunData) -> Annotator | None:
    """The annotator, where what it reads can be read again without asking anybody; None for a user's own.

    Raises:
      DataError: what was written so far cannot be used.
    """
    if context.config.annotator not in (AUTO, "oracle", "csv"):
        return None
    annotator = make_annotator(context, data)
    if isinstance(annotator, Rereadable):
        annotator.review()
    return annotator


def _open(context: Sources, strategy: Strategy, seed: int, data: RunData) -> RunFolder:
    config = context.config
    device = jax.devices()[0].device_kind
    facts = _facts(context, strategy, data, seed)
    return RunFolder.open(config.output_dir, strategy.name, seed, config.to_dict(), device, facts)


def _facts(context: Sources, strategy: Strategy, data: RunData, seed: int) -> dict[str, Any]:
    """What a run must find again: its data and model, and the code of a strategy or a task that is a plug-in."""
    task, config = context.task, context.config
    code = source_fingerprint([strategy.pick, task.prompt, task.response, task.parse])
    facts = data.facts if code is None else data.facts | {"plugins": code}
    # A run that an earlier version began goes on with the fingerprints of that version.
    before = stored_data(config.output_dir, strategy.name, seed)
    folders = {"model": context.folder.path, "start": Path(config.model.adapter or "")}
    found = {name: folder for name, folder in folders.items() if name in facts and name in before}
    return facts | {name: fingerprint_like(before[name], folder, facts[name]) for name, folder in found.items()}


def _run(context: ExperimentContext, strategy: Strategy, seed: int, data: RunData, shapes: Shapes) -> dict[str, Any]:
    progress, title = context.progress, f"{strategy.name} seed {seed}"
    with _open(context, strategy, seed, data) as folder:
        if folder.finished:
            context.forecast.skip(strategy.name, context.config.loop.rounds)
            progress.log(f"{title}: finished already, in {folder.path}")
            annotator = _review(context, data)
            if annotator is not None and (since := finished_since(folder, annotator, data.pool)):
                progress.log(f"{title}: {since}")
            return folder.summary()
        with context.watch.phase("load"):
            state = load_state(folder.path)
            drop_unfinished(folder, 0 if state is None else state.round)
            folder.record()
            problem = make_problem(context, data, shapes)
            test = prepare_test_set(context.task, context.encoder, data.test, shapes)
            run = Run(context, strategy, seed, data, problem, test, folder, title)
            resumed = state is not None
            if state is None:
                state = init(len(data.pool))
            else:
                last = round_title(state.round - 1, context.config.loop.rounds)
                progress.log(f"{title}: continues after {last}, in {folder.path}")
                bought = labels_bought(folder, data.pool, state.round)
                check_state(folder, bought, state.pool)
                state = state._replace(labels=bought.labels)
                context.forecast.skip(strategy.name, state.round)
        context.tracking.start(_tracked(run, resumed))
        try:
            while state.round < context.config.loop.rounds:
                state = _round(run, state)
        finally:
            context.tracking.finish()
        summary = summary_row(strategy.name, seed, folder.metrics(), data.counts(), context.watch.lap())
        folder.write_summary(summary)
        return summary


def _tracked(run: Run, resumed: bool) -> TrackedRun:
    config = run.context.config
    experiment = Path(config.output_dir).resolve().name
    name = f"{run.strategy.name}/seed-{run.seed}"
    return TrackedRun(experiment, name, run.folder.path, config.to_dict(), resumed, run.title)


def _round(run: Run, state: LoopState) -> LoopState:
    """One round and its files; the checkpoint is written last, and makes the round count."""
    context, problem, data, folder = run.context, run.problem, run.data, run.folder
    config, number = context.config, state.round
    candidates = np.asarray(available(state.pool))
    timed = Timed(context.progress, context.watch, f"{run.title}, {round_title(number, config.loop.rounds)}")
    facts = _facts(context, run.strategy, data, run.seed)
    key, origin = jax.random.key(run.seed), folder.origin(config.to_dict(), facts)
    # 1. What to label, unless an interrupted session has chosen already.
    kept = load_choice(folder.path, number, origin)
    if kept is None:
        state = _with_base(run, state, timed.title)
        kept = KeptChoice(choose(config, run.strategy, problem, state, key, timed), context.watch.lap())
        with context.watch.phase("write"):
            save_choice(folder.path, number, kept, origin)
    # 2. Labels, those of earlier rounds as they have been corrected, and training.
    changed = corrections(
        problem.annotator, problem.prompts, Bought(dict(state.labels), np.asarray(state.pool.labelled_in))
    )
    if changed:
        context.progress.log(f"{timed.title}: {said_of(changed)}; they count from the next training on")
        state = corrected_state(state, changed)
    state, info = learn(config, problem, state, kept.choice, key, timed, run.strategy)
    assert state.adapter is not None
    adapter = state.adapter
    # 3. How good it is.
    with context.watch.phase("evaluate"):
        figures, predictions = _judge(run, adapter, timed)
        held_out = _validate(run, adapter, info.validation, timed.title)
    if figures["accuracy"] == 0:
        context.progress.log(f"{timed.title}: {nothing_right(predictions)}")
    # 4. Files.
    queried = queried_rows(context.task, problem, info, state.labels)
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
    steps = sum(one.get("train_steps") or 0 for one in folder.metrics())
    row |= {"train_steps": len(info.losses)} | ({"skipped": skipped} if (skipped := info.skipped) else {})
    row |= {"corrected": len(changed)} if changed else {}
    with context.watch.phase("write"):
        folder.write_round(number, queried, predictions)
        if changed:
            folder.write_corrected(number, [one.row() for one in changed])
        replace_folder_atomic(folder.adapter, partial(_write_adapter, run, adapter, row))
        context.tracking.losses(info.losses, steps)
        # What is written from here on counts in the next row, or in the summary.
        timed_row = row | row_seconds(added([kept.seconds, context.watch.lap()]))
        folder.append_metrics(timed_row)
        save_state(folder.path, state)
        forget_choices(folder.path)
        context.tracking.log({f"round/{name}": value for name, value in row.items()}, info.labelled)
    context.forecast.add(run.strategy.name, timed_row)
    context.progress.round_finished(context.forecast)
    return state


def _judge(run: Run, adapter: Adapter, timed: Timed) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Figures and predictions on the test set."""
    context, test = run.context, run.test
    base = _base_measures(context, test.prompts, f"{timed.title}: base model on the test set", answers=True)
    with timed.phase("evaluate", PASSES * len(test.examples), "examples") as tick:
        figures, predictions = evaluate(
            context.model, adapter, test, context.config.evaluation, base=base[UNCERTAINTY], on_batch=tick
        )
    return figures | {"base_accuracy": accuracy_of_answers(test, answers_of(base))}, predictions


def _write_adapter(run: Run, adapter: Adapter, metrics: Mapping[str, Any], path: Path) -> None:
    """A PEFT folder with its model card, and with the tokenizer and chat template that it was trained with."""
    context = run.context
    config, rslora = context.config, context.rslora
    base, root = config.model.path, context.model.config.module_root
    save_adapter(adapter, path, base_model=base, dropout=config.lora.dropout, rslora=rslora, root=root)
    copy_companions(tokenizer_files(context.folder.path), path)
    usage = usage_of(context.encoder, run.data.pool, read_object(path / CONFIG_FILE))
    card = model_card(config, run.strategy.name, run.seed, metrics, run.data.facts, usage)
    write_text_atomic(path / "README.md", card)


def _validate(run: Run, adapter: Adapter, examples: Sequence[Example], title: str) -> dict[str, Any]:
    """Accuracy and NLL on the labelled examples that were held out, where there are some."""
    if not examples:
        return {}
    context, config = run.context, run.context.config.evaluation
    tokens = tokenize_examples(context.encoder, examples)
    held_out = prepare_test_set(context.task, context.encoder, tokens, run.problem.shapes)
    unasked = np.zeros(len(examples))  # the base model's uncertainty on them is of no interest
    with context.progress.task(f"{title}: validate", PASSES * len(examples), "examples") as tick:
        figures, _ = evaluate(context.model, adapter, held_out, config, base=unasked, on_batch=tick)
    return {"validation_examples": len(examples)} | {
        f"validation_{name}": figures[name] for name in ("accuracy", "nll")
    }


def _with_base(run: Run, state: LoopState, title: str) -> LoopState:
    """The state with the base model's measures, where the coming query needs some that it does not have."""
    asker = run.strategy if state.round else first_strategy(run.context.config)
    needs = [] if asker is None else asker.measures("base")
    if all(need in state.base for need in needs):
        return state
    with run.context.watch.phase("score"):
        measures = _base_measures(run.context, run.problem.pool, f"{title}: base model on the pool")
    return state._replace(base={**state.base, **{need: jnp.asarray(measures[need.name]) for need in needs}})


def _base_measures(context: ExperimentContext, pool: Pool, title: str, answers: bool = False) -> StoredScores:
    """The base model's measures, from disk or from a pass over the examples; with its answers where they are wanted."""

    def compute() -> Mapping[str, Any]:
        with context.progress.task(title, pool.size, "examples") as tick:
            scores = score_pool(context.model, context.base_adapter, pool, on_batch=tick)
        return with_answers(scores) if answers else scores.measures

    return context.base.measures(pool, compute)
