"""A whole experiment: every strategy with every seed, each in a run folder of its own.

The shell around the loop: opens what a run needs, times its phases, writes its files, takes it up again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from star_jax.acquisition.strategy import Strategy, get_strategy
from star_jax.active.budget import check_priced
from star_jax.active.loop import init
from star_jax.active.state import LoopState
from star_jax.annotators.annotator import Annotator, Rereadable
from star_jax.config import AUTO, ExperimentConfig
from star_jax.config.stop_rule import stop_rule
from star_jax.data.bucketing import Shapes
from star_jax.data.run_data import RunData
from star_jax.environment import memory_bytes
from star_jax.errors import LabelsNeeded
from star_jax.experiment.checks import check_output_dir
from star_jax.experiment.judging import judged_set
from star_jax.experiment.one_run import Run, open_run_folder
from star_jax.experiment.plan import chosen_strategies, named_strategies, said_of_labels
from star_jax.experiment.resume import check_state, drop_unfinished, finished_since, labels_bought
from star_jax.experiment.rounds import play_round
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
from star_jax.experiment.stopping import stop_reason
from star_jax.parallel.hosts import check_same, shared
from star_jax.registry import load_plugins
from star_jax.runs.files import plain
from star_jax.runs.loop_state import load_state
from star_jax.runs.records import summary_row
from star_jax.runs.run_folder import RunFolder
from star_jax.runs.run_settings import FINGERPRINTS, flatten
from star_jax.runs.score_store import computed_with
from star_jax.tracking.console import Progress, round_title
from star_jax.tracking.timing import Stopwatch
from star_jax.tracking.tracker import TrackedRun, Tracking


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
    shared(lambda: check_output_dir(config))
    load_plugins(config.plugins)  # the commands have done so; a caller from Python may not
    watch = Stopwatch(began)
    with watch.phase("load"):
        # A seed's pool is loaded once for all strategies, which must see the same one. Everything that can be refused
        # is refused before the model is loaded: data of all seeds, what was written into tables, and all run folders.
        strategies = [get_strategy(name, config.acquisition) for name in named_strategies(config)]
        sources = open_sources(config, strategies, progress)
        data = {seed: load_seed(sources, seed) for seed in config.seeds}
        check_same(_facts(sources, data))
        chosen = shared(lambda: chosen_strategies(config, data))
        if said := said_of_labels(config, chosen, data):
            progress.log(said)
        strategies = [strategy for strategy in strategies if strategy.name in chosen]
        for seed in config.seeds:
            log_seed(progress, seed, data[seed])
            _review(sources, data[seed])
            if config.loop.budget_unit == "cost":
                check_priced(config, make_annotator(sources, data[seed]))
            for strategy in strategies:
                with open_run_folder(sources, strategy, seed, data[seed]):
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
    context.after_round.conclude()
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
    if context.config.annotator not in (AUTO, "oracle", "csv", "llm", "label_studio"):
        return None
    annotator = make_annotator(context, data)
    if isinstance(annotator, Rereadable):
        annotator.review()
    return annotator


def _run(context: ExperimentContext, strategy: Strategy, seed: int, data: RunData, shapes: Shapes) -> dict[str, Any]:
    progress, title = context.progress, f"{strategy.name} seed {seed}"
    with open_run_folder(context, strategy, seed, data) as folder:
        stop = None if context.config.loop.stop_when is None else stop_rule(context.config.loop.stop_when)
        tests = data.facts.get("test_examples")

        def stops() -> str | None:
            labels = context.config.loop.labels_per_round
            return shared(lambda: stop_reason(stop, folder.metrics(), labels, tests))

        def finished() -> bool:
            # One that has stopped early goes on where its rule holds no longer.
            return folder.finished and (folder.summary().get("stopped") is None or bool(stops()))

        if shared(finished):
            context.forecast.skip(strategy.name, context.config.loop.rounds)
            progress.log(f"{title}: finished already, in {folder.path}")
            annotator = _review(context, data)
            if annotator is not None and (since := shared(lambda: finished_since(folder, annotator, data.pool))):
                progress.log(f"{title}: {since}")
            return shared(folder.summary)
        with context.watch.phase("load"):
            state = shared(lambda: _taken_up(folder, data))
            problem = make_problem(context, data, shapes)
            test = judged_set(context, data.test, shapes)
            run = Run(context, strategy, seed, data, problem, test, folder, title)
            resumed = state is not None
            if state is None:
                state = init(len(data.pool))
            else:
                last = round_title(state.round - 1, context.config.loop.rounds)
                progress.log(f"{title}: continues after {last}, in {folder.path}")
                context.forecast.skip(strategy.name, state.round)
        context.tracking.start(_tracked(run, resumed))
        try:
            while state.round < context.config.loop.rounds and not (reason := stops()):
                state = play_round(run, state)
        finally:
            context.tracking.finish()
        if state.round < context.config.loop.rounds:
            progress.log(f"{title}: stops by loop.stop_when: {reason}")
            context.forecast.skip(strategy.name, context.config.loop.rounds, first=state.round)
        else:
            reason = None
        return shared(lambda: _summary(run, reason))


def _taken_up(folder: RunFolder, data: RunData) -> LoopState | None:
    """The state after the last finished round, with its labels; None before the first. What is behind it is dropped."""
    state = load_state(folder.path)
    folder.reopen()
    drop_unfinished(folder, 0 if state is None else state.round)
    folder.record()
    if state is None:
        return None
    bought = labels_bought(folder, data.pool, state.round)
    check_state(folder, bought, state.pool)
    return state._replace(labels=bought.labels)


def _summary(run: Run, stopped: str | None) -> dict[str, Any]:
    context, rows = run.context, run.folder.metrics()
    summary = summary_row(run.strategy.name, run.seed, rows, run.data.counts(), context.watch.lap())
    summary |= {} if stopped is None else {"stopped": stopped}
    run.folder.write_summary(summary)
    return summary


def _facts(context: Sources, data: Mapping[int, RunData]) -> dict[str, str]:
    """What must be the same on all hosts, in words."""
    settings = {f"setting {name}": str(value) for name, value in flatten(plain(context.config.to_dict())).items()}
    found = {
        f"{FINGERPRINTS.get(name, name)} (seed {seed})": str(value)
        for seed, one in data.items()
        for name, value in one.facts.items()
    }
    return settings | found | {"versions": str(computed_with()["versions"]), "devices": str(jax.local_device_count())}


def _tracked(run: Run, resumed: bool) -> TrackedRun:
    config = run.context.config
    experiment = Path(config.output_dir).resolve().name
    name = f"{run.strategy.name}/seed-{run.seed}"
    return TrackedRun(experiment, name, run.folder.path, config.to_dict(), resumed, run.title)
