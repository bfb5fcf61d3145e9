"""A whole experiment: every strategy with every seed, each in a run folder of its own, and the report.

The shell around the loop: loads what a run needs, times its phases, writes its files, takes it up again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from star_jax.acquisition.pool_scoring import Pool, candidate_pool, generated_pool, proposed_pool
from star_jax.acquisition.strategies import Strategy, get_strategy, resolve
from star_jax.active.loop import LoopState, Problem, init, step
from star_jax.active.oracles import SimulatedOracle
from star_jax.active.pool import available
from star_jax.config import ConfigError, ExperimentConfig
from star_jax.data.batching import Encoder, Limits, Row
from star_jax.data.examples import Example
from star_jax.data.loading import load_examples, load_pool_and_test
from star_jax.data.tasks import get_task
from star_jax.data.tasks.task import Task
from star_jax.evaluation.evaluator import TestSet, base_uncertainty, evaluate, prepare_test_set
from star_jax.models.checkpoint_hf import EMBEDDED, LanguageModel, load_model, load_tokenizer, resolve_folder
from star_jax.models.lora import b_norm
from star_jax.models.peft_format import save_adapter
from star_jax.records import group_counts, length_correlation, queried_rows, summary_row
from star_jax.runtime.checkpoints import load_state, save_state
from star_jax.runtime.progress import Progress
from star_jax.runtime.run_folder import RunFolder, replace_folder_atomic

REPLAY_FILE = "replay.jsonl"
"""Name of the replay rows beside a model that ships with the package."""


@dataclass
class Timed:
    """An observer that shows progress and adds up the seconds of each phase."""

    progress: Progress
    title: str
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        """Times a phase; see `active.loop.Observer`. A phase with nothing to do is not shown."""
        began = time.monotonic()
        try:
            if total:
                with self.progress.task(f"{self.title}: {name}", total, unit) as tick:
                    yield tick
            else:
                yield lambda count: None
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began


@dataclass
class Workbench:
    """What the runs of an experiment share: the model, and figures of the base model that stay the same.

    Attributes:
      config: the experiment.
      model: the frozen base model.
      encoder: tokenizer, format and limits.
      task: format and correctness.
      replay: tokenised replay rows.
      progress: where to show what is going on.
      base_measures: (pool, measure) -> the base model's scores, computed by the first run that needs them.
      base_tests: test set -> the base model's uncertainty on it.
    """

    config: ExperimentConfig
    model: LanguageModel
    encoder: Encoder
    task: Task
    replay: Sequence[Row]
    progress: Progress
    base_measures: dict[tuple[Any, ...], jax.Array] = field(default_factory=dict)
    base_tests: dict[tuple[str, ...], np.ndarray] = field(default_factory=dict)


def run_experiment(config: ExperimentConfig, progress: Progress) -> list[dict[str, Any]]:
    """Runs, or continues, every strategy with every seed.

    Args:
      config: the experiment.
      progress: where to show what is going on.

    Returns:
      One summary a run, in the order of strategies and seeds.

    Raises:
      ConfigError, DataError: something the user can put right.
      FloatingPointError: a training or a score diverged.
    """
    strategies = [get_strategy(name) for name in config.strategies]
    task = get_task(config.data.task)
    _check(config, strategies, task)
    limits = Limits(config.data.max_prompt_tokens, config.data.max_response_tokens, config.data.too_long)
    encoder = Encoder(load_tokenizer(config.model.path), task, limits)
    model = load_model(config.model.path, config.model.dtype)
    _check_context(config, model)
    bench = Workbench(config, model, encoder, task, load_replay(config, task, encoder), progress)
    # A seed's pool is loaded once for all strategies, which must see the same one. Everything that can be refused
    # is refused before the first training: data of all seeds, then all run folders.
    data = {seed: _load(bench, seed) for seed in config.seeds}
    for seed in config.seeds:
        for strategy in strategies:
            with _open(bench, strategy, seed, data[seed]):
                pass
    summaries = {(s.name, seed): _run(bench, s, seed, data[seed]) for seed in config.seeds for s in strategies}
    return [summaries[strategy.name, seed] for strategy in strategies for seed in config.seeds]


def _check(config: ExperimentConfig, strategies: Sequence[Strategy], task: Task) -> None:
    for strategy in strategies:
        resolved = resolve(strategy, config.acquisition)
        if strategy.normaliser not in (None, "minmax") and config.acquisition.arithmetic == "released":
            raise ConfigError(
                f"strategy {strategy.name} blends on a {strategy.normaliser} scale, which the released code does not "
                "have; set acquisition.arithmetic to standard, or choose entropy_dynamic or pe_dynamic"
            )
        if resolved.monte_carlo and config.lora.dropout == 0:
            raise ConfigError(
                f"strategy {strategy.name} averages over dropout samples and lora.dropout is 0, where all samples are "
                f"the same; set lora.dropout above 0 or choose another strategy"
            )
        if (resolved.measure or "").startswith("bald") and config.scoring.mc_samples < 2:
            raise ConfigError(
                f"strategy {strategy.name} measures how dropout samples disagree and scoring.mc_samples is "
                f"{config.scoring.mc_samples}; set it to 2 or more"
            )
    replay = config.training.replay
    if replay is not None and replay.startswith(EMBEDDED) and (config.model.path, task.name) != (replay, "skills"):
        raise ConfigError(
            f"training.replay is {replay}, rows of that model's own past, and the run is model {config.model.path} on "
            f"task {task.name}; set training.replay to none and training.replay_rows to 0, or name a file of yours"
        )
    if config.lora.training_dropout != "off" and config.lora.dropout == 0:
        raise ConfigError(
            f"lora.training_dropout is {config.lora.training_dropout} and lora.dropout is 0; "
            f"set lora.dropout above 0 or lora.training_dropout to off"
        )
    if config.scoring.answers == "candidates" and task.candidates is None:
        raise ConfigError(
            f"scoring.answers is candidates, but task {task.name} has no closed answer set; choose generated"
        )


def _check_context(config: ExperimentConfig, model: LanguageModel) -> None:
    asked, most = config.data.max_prompt_tokens + config.data.max_response_tokens, model.config.max_position_embeddings
    if asked > most:
        raise ConfigError(
            f"data.max_prompt_tokens + data.max_response_tokens is {asked} and the model reads {most} tokens "
            f"(max_position_embeddings); lower one of the two"
        )


def _check_sizes(config: ExperimentConfig, pool: int, test: int) -> None:
    if config.loop.budget > pool:
        raise ConfigError(
            f"loop asks for {config.loop.budget} labels (initial_labels + (rounds - 1) * labels_per_round) and the "
            f"pool has {pool} examples; lower one of the three or enlarge the pool"
        )
    if test == 0:
        raise ConfigError("no test example is within data.max_prompt_tokens; raise it or set data.too_long to truncate")


def load_replay(config: ExperimentConfig, task: Task, encoder: Encoder) -> list[Row]:
    """Tokenised replay rows of `training.replay`: the file beside a shipped model, or one of the user's."""
    source = config.training.replay
    if source is None:
        return []
    path = str(resolve_folder(source) / REPLAY_FILE) if source.startswith(EMBEDDED) else source
    return encoder.examples(encoder.within_limits(load_examples(task, path, "train")))


class RunData(NamedTuple):
    """What a seed runs on: pool and test set within the limits, and figures that identify them (data.json)."""

    pool: list[Example]
    test: list[Example]
    facts: dict[str, Any]


def _load(bench: Workbench, seed: int) -> RunData:
    config, encoder = bench.config, bench.encoder
    loaded = load_pool_and_test(config.data, seed)
    pool, test = encoder.within_limits(loaded.pool), encoder.within_limits(loaded.test)
    _check_sizes(config, len(pool), len(test))
    facts = {
        "pool": _fingerprint(pool),
        "test": _fingerprint(test),
        "pool_examples": len(pool),
        "test_examples": len(test),
        "left_out_of_pool": len(loaded.pool) - len(pool),
        "left_out_of_test": len(loaded.test) - len(test),
        "pool_prompts_cut": encoder.count_cut(pool),
        "test_prompts_cut": encoder.count_cut(test),
        "duplicate_prompts": loaded.duplicate_prompts,
        "test_overlap": loaded.test_overlap,
    }
    if loaded.duplicate_prompts or loaded.test_overlap:
        bench.progress.log(
            f"seed {seed}: {loaded.duplicate_prompts} pool prompts repeat an earlier one, "
            f"{loaded.test_overlap} are also in the test set"
        )
    return RunData(pool, test, facts)


def _fingerprint(examples: Sequence[Example]) -> str:
    """Hash of ids and prompts: a state holds places in the pool, and means nothing for another one."""
    text = json.dumps([(example.id, example.prompt.text) for example in examples])
    return hashlib.sha256(text.encode()).hexdigest()


def _open(bench: Workbench, strategy: Strategy, seed: int, data: RunData) -> RunFolder:
    config = bench.config
    device = jax.devices()[0].device_kind
    return RunFolder.open(config.output_dir, strategy.name, seed, config.to_dict(), device, data.facts)


def _run(bench: Workbench, strategy: Strategy, seed: int, data: RunData) -> dict[str, Any]:
    config, progress = bench.config, bench.progress
    with _open(bench, strategy, seed, data) as folder:
        title = f"{strategy.name} seed {seed}"
        if folder.finished:
            progress.log(f"{title}: finished already, in {folder.path}")
            return folder.summary()
        state = load_state(folder.path)
        folder.drop_rounds_from(0 if state is None else state.round)
        problem = _problem(bench, data.pool)
        place = (resolve(strategy, config.acquisition).measure, data.facts["pool"])
        if state is None:
            state = init(len(data.pool), bench.base_measures.get(place))
        else:
            progress.log(f"{title}: continues after round {state.round - 1}, in {folder.path}")
            state = state._replace(labels=_labels(folder, data.pool, state.round))
        test_set = prepare_test_set(bench.encoder, data.test, config.evaluation.batch_size)
        while state.round < config.loop.rounds:
            state = _round(bench, strategy, seed, problem, test_set, state, folder, title)
            if state.base is not None:
                bench.base_measures[place] = state.base
        summary = summary_row(strategy.name, seed, folder.metrics())
        folder.write_summary(summary)
        return summary


def _labels(folder: RunFolder, pool: Sequence[Example], rounds: int) -> dict[int, str]:
    """The labels bought so far, from the run folder: nobody is asked twice."""
    place = {example.id: index for index, example in enumerate(pool)}
    rows = [row for number in range(rounds) for row in folder.queried(number)]
    return dict(sorted((place[row["id"]], row["response"]) for row in rows))


def _problem(bench: Workbench, pool: Sequence[Example]) -> Problem:
    prompts = [example.prompt for example in pool]
    oracle = SimulatedOracle(pool)
    batch_size = bench.config.scoring.batch_size
    tokens: Pool
    if bench.config.scoring.answers == "candidates":
        assert bench.task.candidates is not None
        tokens = candidate_pool(bench.encoder, prompts, bench.task.candidates, batch_size)
    elif bench.config.scoring.answers == "reference":
        tokens = proposed_pool(bench.encoder, bench.encoder.examples(oracle.reveal(prompts)), batch_size)
    else:
        tokens = generated_pool(bench.encoder, prompts, batch_size)
    return Problem(bench.model, bench.encoder, prompts, tokens, oracle, bench.replay)


def _round(
    bench: Workbench,
    strategy: Strategy,
    seed: int,
    problem: Problem,
    test: TestSet,
    state: LoopState,
    folder: RunFolder,
    title: str,
) -> LoopState:
    """One round and its files; the checkpoint is written last, and makes the round count."""
    config, number = bench.config, state.round
    candidates = np.asarray(available(state.pool))
    timed = Timed(bench.progress, f"{title}, round {number + 1}/{config.loop.rounds}")
    state, info = step(config, strategy, problem, state, jax.random.key(seed), timed)
    assert state.adapter is not None
    base = _base_on_test(bench, test)
    with timed.phase("evaluate", len(test.examples), "examples") as tick:
        figures, predictions = evaluate(
            bench.model,
            state.adapter,
            test,
            bench.task,
            bench.encoder,
            config.evaluation,
            base=base,
            on_batch=tick,
        )
    queried = queried_rows(bench.task, problem, info, state.labels)
    row = {
        "round": number,
        "labelled": info.labelled,
        **figures,
        "lora_b_norm": float(b_norm(state.adapter)),
        "train_loss": info.train_loss,
        **{f"{name}_seconds": round(timed.seconds.get(name, 0.0), 3) for name in ("train", "score", "evaluate")},
        "score_length_correlation": length_correlation(info, candidates),
        "picked_groups": group_counts([entry["group"] for entry in queried]),
    }
    folder.write_round(number, queried, predictions)
    adapter = state.adapter
    replace_folder_atomic(
        folder.adapter,
        lambda path: save_adapter(adapter, path, base_model=config.model.path, dropout=config.lora.dropout),
    )
    folder.append_metrics(row)
    save_state(folder.path, state)
    bench.progress.log(
        f"{timed.title}: {info.labelled} labels, accuracy {figures['accuracy']:.3f}, ECE {figures['ece']:.3f}"
    )
    return state


def _base_on_test(bench: Workbench, test: TestSet) -> np.ndarray:
    place = tuple(example.id for example in test.examples)
    if place not in bench.base_tests:
        with bench.progress.task("base model on the test set", len(place), "examples") as tick:
            bench.base_tests[place] = base_uncertainty(bench.model, test, tick)
    return bench.base_tests[place]


def configure_logging() -> None:
    """Warnings of this package as plain lines on stderr; those of libraries only when they are errors."""
    logging.basicConfig(format="%(message)s", level=logging.ERROR)
    logging.getLogger("star_jax").setLevel(logging.WARNING)
    # Else it says at every start that PyTorch is missing, which is as it should be.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def configure_jax() -> None:
    """True float32 products, and compiled programs kept across processes unless the user chose a place for them."""
    # Accelerators multiply float32 in fewer bits unless told otherwise; bfloat16 products are not affected.
    jax.config.update("jax_default_matmul_precision", "highest")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "star_jax" / "xla"))
