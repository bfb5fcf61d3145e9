"""A whole experiment: every strategy with every seed, each in a run folder of its own, and the report.

The shell around the loop: loads what a run needs, times its phases, writes its files, takes it up again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

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
from star_jax.active.oracles import Annotator, LabelsNeeded, SimulatedOracle
from star_jax.active.pool import available
from star_jax.checks import check_data, check_experiment, check_model
from star_jax.config import ExperimentConfig
from star_jax.data.encoding import Encoder, Limits, Row
from star_jax.data.examples import Example, Prompt
from star_jax.data.loading import load_examples
from star_jax.data.prepared import RunData, examples_within_limits, prepare
from star_jax.data.tasks import get_task
from star_jax.data.tasks.task import Task
from star_jax.evaluation.evaluator import UNCERTAINTY, TestSet, evaluate, prepare_test_set
from star_jax.models.attention_kernels import choose_kernel
from star_jax.models.checkpoint_hf import load_model
from star_jax.models.folders import EMBEDDED, end_tokens, folder_fingerprint, load_tokenizer, resolve_folder
from star_jax.models.lora import Adapter, b_norm
from star_jax.models.peft_format import load_adapter, save_adapter
from star_jax.models.transformer import LanguageModel
from star_jax.records import group_counts, length_correlation, queried_rows, summary_row
from star_jax.report.model_card import model_card
from star_jax.runtime.annotation import LABELS_FILE, FileAnnotator
from star_jax.runtime.base_scores import FOLDER, BaseScores, Measures, scores_origin
from star_jax.runtime.checkpoints import Choice, forget_choices, load_choice, load_state, save_choice, save_state
from star_jax.runtime.files import replace_folder_atomic, write_text_atomic
from star_jax.runtime.observer import Timed
from star_jax.runtime.progress import Progress
from star_jax.runtime.run_folder import RunFolder
from star_jax.runtime.timing import Stopwatch, added, row_seconds
from star_jax.training.trainer import training_shapes

REPLAY_FILE = "replay.jsonl"
"""Name of the replay rows beside a model that ships with the package."""


@dataclass
class Workbench:
    """What the runs of an experiment share: the model, and its scores, which stay the same.

    Attributes:
      config: the experiment.
      model: the frozen base model.
      encoder: tokenizer, format and limits.
      task: format and correctness.
      replay: tokenised replay rows.
      base: the base model's scores.
      progress: where to show what is going on.
      watch: splits the time of the session; each run takes what it has spent.
      start: the adapter the user starts from, or None.
      rslora: whether adapters are written with rsLoRA's scale.
    """

    config: ExperimentConfig
    model: LanguageModel
    encoder: Encoder
    task: Task
    replay: Sequence[Row]
    base: BaseScores
    progress: Progress
    watch: Stopwatch
    start: Adapter | None = None
    rslora: bool = False


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
        bench = _workbench(config, strategies, progress, watch)
        # A seed's pool is loaded once for all strategies, which must see the same one. Everything that can be refused
        # is refused before the first training: data of all seeds, then all run folders.
        data = {seed: _load(bench, seed) for seed in config.seeds}
        for seed in config.seeds:
            for strategy in strategies:
                with _open(bench, strategy, seed, data[seed]):
                    pass
    summaries: dict[tuple[str, int], dict[str, Any]] = {}
    waiting: LabelsNeeded | None = None
    for seed in config.seeds:
        for strategy in strategies:
            try:
                summaries[strategy.name, seed] = _run(bench, strategy, seed, data[seed])
            except LabelsNeeded as needed:
                waiting = needed  # all runs ask in one table, so the last one speaks for all
                watch.lap()  # what it has spent lies with its choice
    if waiting is not None:
        raise waiting
    return [summaries[strategy.name, seed] for strategy in strategies for seed in config.seeds]


def _workbench(
    config: ExperimentConfig, strategies: Sequence[Strategy], progress: Progress, watch: Stopwatch
) -> Workbench:
    tokenizer = load_tokenizer(config.model.path)
    task = get_task(config.data.task, config.format, tokenizer)
    check_experiment(config, strategies, task)
    limits = Limits(config.data.max_prompt_tokens, config.data.max_response_tokens, config.data.too_long)
    model = load_base(config)
    check_model(config, model)
    encoder = Encoder(
        tokenizer, task, limits, vocab_size=model.config.vocab_size, end_ids=end_tokens(config.model.path)
    )
    progress.log(_place_of_work(model))
    start, rslora = _starting_adapter(config, model, progress)
    replay = load_replay(config, task, encoder)
    base = BaseScores(Path(config.output_dir) / FOLDER, scores_origin(config), progress.log)
    return Workbench(config, model, encoder, task, replay, base, progress, watch, start, rslora)


def load_base(config: ExperimentConfig) -> LanguageModel:
    """The frozen base model of an experiment."""
    return load_model(
        config.model.path,
        config.model.dtype,
        quantization=config.model.quantization,
        longest=config.data.max_prompt_tokens + config.data.max_response_tokens,
        ignored_fields=config.model.ignored_fields,
    )


def _place_of_work(model: LanguageModel) -> str:
    """Where programs run, in words."""
    devices, shape = jax.local_devices(), model.config
    attention = choose_kernel(jnp.dtype(shape.dtype), shape.head_dim, softcap=shape.attention_softcap, devices=1)
    reason = f": {attention.reason}" if attention.reason else ""
    return f"runs on {len(devices)} x {devices[0].device_kind}; attention by {attention.kernel}{reason}"


def _starting_adapter(
    config: ExperimentConfig, model: LanguageModel, progress: Progress
) -> tuple[Adapter | None, bool]:
    """The adapter of `model.adapter`, and whether adapters of this run have rsLoRA's scale."""
    if config.model.adapter is None:
        return None, config.lora.rslora
    adapter, raw = load_adapter(Path(config.model.adapter), model.config)
    progress.log(
        f"starts from the adapter in {config.model.adapter}: rank {raw['r']}, alpha {raw['lora_alpha']}, on "
        f"{', '.join(adapter.weights['layers'])}; lora.rank, alpha, rslora, targets and init are not used"
    )
    return adapter, bool(raw.get("use_rslora"))


def load_replay(config: ExperimentConfig, task: Task, encoder: Encoder) -> list[Row]:
    """Tokenised replay rows of `training.replay`: the file beside a shipped model, or one of the user's."""
    source = config.training.replay
    if source is None:
        return []
    path = str(resolve_folder(source) / REPLAY_FILE) if source.startswith(EMBEDDED) else source
    examples = load_examples(task, path, "train", config.data.on_bad_row)
    return encoder.examples(examples_within_limits(encoder, examples)[0])


def _load(bench: Workbench, seed: int) -> RunData:
    data = prepare(bench.config.data, bench.task, bench.encoder, seed)
    data.facts["model"] = folder_fingerprint(resolve_folder(bench.config.model.path))
    if bench.config.model.adapter is not None:
        data.facts["start"] = folder_fingerprint(Path(bench.config.model.adapter))
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


def _run(bench: Workbench, strategy: Strategy, seed: int, data: RunData) -> dict[str, Any]:
    config, progress = bench.config, bench.progress
    with _open(bench, strategy, seed, data) as folder:
        title = f"{strategy.name} seed {seed}"
        if folder.finished:
            progress.log(f"{title}: finished already, in {folder.path}")
            return folder.summary()
        with bench.watch.phase("load"):
            state = load_state(folder.path)
            folder.drop_rounds_from(0 if state is None else state.round)
            problem, shapes = _problem(bench, data)
            test_set = prepare_test_set(bench.encoder, data.test, shapes)
            if state is None:
                state = init(len(data.pool))
            else:
                progress.log(f"{title}: continues after round {state.round - 1}, in {folder.path}")
                state = state._replace(labels=_labels(folder, data.pool, state.round))
        while state.round < config.loop.rounds:
            state = _round(bench, strategy, seed, data, problem, shapes, test_set, state, folder, title)
        summary = summary_row(strategy.name, seed, folder.metrics(), data.counts(), bench.watch.lap())
        folder.write_summary(summary)
        return summary


def _labels(folder: RunFolder, pool: Sequence[Prompt], rounds: int) -> dict[int, str]:
    """The labels bought so far, from the run folder: nobody is asked twice."""
    place = {prompt.id: index for index, prompt in enumerate(pool)}
    rows = [row for number in range(rounds) for row in folder.queried(number)]
    return dict(sorted((place[row["id"]], row["response"]) for row in rows))


def _problem(bench: Workbench, data: RunData) -> tuple[Problem, PoolShapes]:
    """What the loop works on, and the shapes of a run's batches.

    Responses of the pool are hidden; those of the test set tell how long they are.
    """
    prompts, config, encoder = data.pool, bench.config, bench.encoder
    sizes = BatchSizes(config.generation.batch_size, config.scoring.batch_size)
    prompt_tokens = encoder.prompts(prompts)
    # Tokenised alone, as they are answered: a last token may become another with a response behind it.
    tested = encoder.prompts([example.prompt for example in data.test])
    known = [len(row.tokens) for row in encoder.examples(data.test)]
    longest = encoder.limits.prompt + encoder.limits.response
    shapes = choose_shapes([*map(len, prompt_tokens), *map(len, tested)], known, longest, sizes)
    steps = training_shapes(known, [len(row.tokens) for row in bench.replay], longest, config.training)
    tokens: Pool
    if config.scoring.answers == "candidates":
        assert bench.task.candidates is not None
        tokens = candidate_pool(encoder, prompts, bench.task.candidates, sizes.sequences)
    elif config.scoring.answers == "reference":
        gold = SimulatedOracle(data.labelled()).reveal(prompts)
        tokens = proposed_pool(encoder.examples(gold), shapes.sequences)
    else:
        tokens = generated_pool(encoder, prompt_tokens, shapes)
    annotator = _annotator(bench, data)
    return Problem(bench.model, encoder, prompts, tokens, steps, annotator, bench.replay, bench.start), shapes


def _round(
    bench: Workbench,
    strategy: Strategy,
    seed: int,
    data: RunData,
    problem: Problem,
    shapes: PoolShapes,
    test: TestSet,
    state: LoopState,
    folder: RunFolder,
    title: str,
) -> LoopState:
    """One round and its files; the checkpoint is written last, and makes the round count."""
    config, number = bench.config, state.round
    candidates = np.asarray(available(state.pool))
    timed = Timed(bench.progress, bench.watch, f"{title}, round {number + 1}/{config.loop.rounds}")
    key, origin = jax.random.key(seed), folder.origin(config.to_dict(), data.facts)
    choice = load_choice(folder.path, number, origin)
    if choice is None:
        query = choose(config, strategy, problem, _with_base(bench, strategy, problem, state), key, timed)
        choice = Choice(query, bench.watch.lap())
        with bench.watch.phase("write"):
            save_choice(folder.path, number, choice, origin)
    state, info = learn(config, problem, state, choice.query, key, timed)
    assert state.adapter is not None
    adapter = state.adapter
    with bench.watch.phase("evaluate"):
        base = _base_measures(bench, test.prompts, "base model on the test set")[UNCERTAINTY]
        with timed.phase("evaluate", len(test.examples), "examples") as tick:
            figures, predictions = evaluate(
                bench.model, adapter, test, bench.task, bench.encoder, config.evaluation, base=base, on_batch=tick
            )
        held_out = _validate(bench, adapter, info.validation, shapes)
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
        writer = partial(_write_adapter, bench, strategy.name, seed, adapter, row, data.facts)
        replace_folder_atomic(folder.adapter, writer)
        # What is written from here on counts in the next row, or in the summary.
        folder.append_metrics(row | row_seconds(added([choice.seconds, bench.watch.lap()])))
        save_state(folder.path, state)
        forget_choices(folder.path)
    bench.progress.log(
        f"{timed.title}: {info.labelled} labels, accuracy {figures['accuracy']:.3f}, ECE {figures['ece']:.3f}"
    )
    return state


def _write_adapter(
    bench: Workbench,
    strategy: str,
    seed: int,
    adapter: Adapter,
    metrics: Mapping[str, Any],
    facts: Mapping[str, Any],
    path: Path,
) -> None:
    """A PEFT folder with its model card."""
    config = bench.config
    save_adapter(adapter, path, base_model=config.model.path, dropout=config.lora.dropout, rslora=bench.rslora)
    write_text_atomic(path / "README.md", model_card(config, strategy, seed, metrics, facts))


def _validate(bench: Workbench, adapter: Adapter, examples: Sequence[Example], shapes: PoolShapes) -> dict[str, Any]:
    """Accuracy and NLL on the labelled examples that were held out, where there are some."""
    if not examples:
        return {}
    config = bench.config.evaluation
    held_out = prepare_test_set(bench.encoder, examples, shapes)
    unasked = np.zeros(len(examples))  # the base model's uncertainty on them is of no interest
    figures = evaluate(bench.model, adapter, held_out, bench.task, bench.encoder, config, base=unasked).metrics
    return {"validation_examples": len(examples)} | {
        f"validation_{name}": figures[name] for name in ("accuracy", "nll")
    }


def _with_base(bench: Workbench, strategy: Strategy, problem: Problem, state: LoopState) -> LoopState:
    """The state with the base model's measure, where the coming query needs it and does not have it."""
    resolved = resolve(strategy, bench.config.acquisition)
    if state.round == 0 or state.base is not None or not resolved.needs_base or resolved.measure is None:
        return state
    with bench.watch.phase("score"):
        measures = _base_measures(bench, problem.pool, "base model on the pool")
    return state._replace(base=jnp.asarray(measures[resolved.measure]))


def _base_measures(bench: Workbench, pool: Pool, title: str) -> Measures:
    """The base model's measures, from disk or from a pass over the examples."""

    def compute() -> Mapping[str, jax.Array]:
        with bench.progress.task(title, pool.size, "examples") as tick:
            return score_pool(bench.model, bench.start, pool, on_batch=tick).measures

    return bench.base.measures(pool, compute)


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
    # Also the small programs, dozens of which run before the first batch: reading one back is a tenth of compiling it.
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "star_jax" / "xla"))
