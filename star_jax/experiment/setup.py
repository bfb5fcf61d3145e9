"""What the runs of an experiment share, loaded once: the model, its tokenizer, the task, shapes, scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.acquisition.pools import (
    BatchSizes,
    Pool,
    candidate_pool,
    check_candidates,
    choose_shapes,
    generated_pool,
    proposed_pool,
)
from star_jax.acquisition.strategy import Strategy
from star_jax.active.state import Problem
from star_jax.annotators.annotator import Annotator, AnnotatorContext
from star_jax.annotators.csv_file import LABELS_FILE
from star_jax.annotators.led import led
from star_jax.annotators.oracle import gold_examples
from star_jax.checkpoints.fingerprints import folder_fingerprint
from star_jax.checkpoints.hf_config import read_config
from star_jax.checkpoints.hub import EMBEDDED, ModelFolder, open_folder
from star_jax.checkpoints.huggingface import load_folder
from star_jax.checkpoints.peft import load_adapter
from star_jax.config import ExperimentConfig
from star_jax.data.bucketing import Shapes
from star_jax.data.loading import load_examples
from star_jax.data.rows import PromptRows
from star_jax.data.run_data import RunData, examples_within_limits, prepare, rows_fingerprint
from star_jax.data.store import FOLDER as TOKENS
from star_jax.data.store import TokenPlace, tokenizer_origin
from star_jax.data.targets import load_targets
from star_jax.data.tasks import get_task
from star_jax.data.tasks.task import Task
from star_jax.data.tokenization import Encoder, Limits, TokenizedExample
from star_jax.environment import memory_bytes
from star_jax.errors import ConfigError
from star_jax.experiment.after_round import AfterRound
from star_jax.experiment.checks import check_data, check_experiment, check_model
from star_jax.experiment.lengths import known_lengths
from star_jax.experiment.mesh_choice import set_mesh
from star_jax.experiment.sizes import experiment_demands, refuse_what_does_not_fit
from star_jax.models.architecture import TransformerConfig
from star_jax.models.lora import Adapter, init_adapter
from star_jax.models.merged import can_merge
from star_jax.models.transformer import LanguageModel
from star_jax.ops.attention_kernels import choose_implementation
from star_jax.parallel.hosts import leads, shared
from star_jax.parallel.mesh import parameter_sharding
from star_jax.registry import ANNOTATORS
from star_jax.runs.score_store import FOLDER, BaseScores, scores_origin
from star_jax.tracking.console import Progress
from star_jax.tracking.timing import Forecast, Stopwatch
from star_jax.tracking.tracker import Tracking, open_trackers
from star_jax.training.trainer import training_shapes

REPLAY_FILE = "replay.jsonl"
"""Name of the replay rows beside a model that ships with the package."""


@dataclass(kw_only=True)
class Sources:
    """What an experiment reads before it loads any weights.

    Attributes:
      config: the experiment.
      folder: that the model is from.
      shape: of the base model.
      encoder: tokenizer, format and limits.
      task: format and correctness.
      replay: tokenised replay rows.
      targets: tokens of the target prompts.
      progress: where to show what is going on.
    """

    config: ExperimentConfig
    folder: ModelFolder
    shape: TransformerConfig
    encoder: Encoder
    task: Task
    replay: Sequence[TokenizedExample]
    targets: Sequence[np.ndarray]
    progress: Progress


@dataclass(kw_only=True)
class ExperimentContext(Sources):
    """What the runs of an experiment share: the model, and its scores, which stay the same.

    The weights are loaded when they are first asked for: all that can be refused is refused before.

    Attributes:
      base: the base model's scores.
      watch: splits the time of the session; each run takes what it has spent.
      tracking: where figures go besides the run folders.
      forecast: how long the rest will take.
      after_round: what is done when a round is finished.
      start: the adapter the user starts from, or None.
      rslora: whether adapters are written with rsLoRA's scale.
    """

    base: BaseScores
    watch: Stopwatch
    tracking: Tracking
    forecast: Forecast
    after_round: AfterRound
    start: Adapter | None = None
    rslora: bool = False

    @cached_property
    def model(self) -> LanguageModel:
        """The frozen base model."""
        return load_base(self.config, self.folder)

    @cached_property
    def base_adapter(self) -> Adapter | None:
        """The adapter that the base model is scored with, or None."""
        return _base_adapter(self.config, self.model, self.start)


def open_sources(
    config: ExperimentConfig, strategies: Sequence[Strategy], progress: Progress, room: float | None = None
) -> Sources:
    """Opens what is needed to read the data; settings that contradict each other or the model are refused here.

    Args:
      config: the experiment.
      strategies: of all runs.
      progress: where to show what is going on.
      room: bytes of memory that it has to fit; this machine's when None.

    Raises:
      ConfigError, DataError: something the user can put right.
    """
    folder = open_folder(config.model.path)
    task = get_task(config.data.task, config.format, folder.tokenizer)
    check_experiment(config, strategies, task)
    limits = Limits(config.data.max_prompt_tokens, config.data.max_response_tokens, config.data.too_long)
    longest = limits.prompt + limits.response
    shape = read_config(folder.path, config.model.dtype, longest, config.model.ignored_fields)
    check_model(config, shape)
    if room is None:
        lora = None if config.model.adapter else config.lora
        set_mesh(config.mesh, shape, progress.log, quantization=config.model.quantization, lora=lora)
    refuse_what_does_not_fit(experiment_demands(config, shape), memory_bytes() if room is None else room)
    encoder = Encoder(folder.tokenizer, task, limits, vocab_size=shape.vocab_size, end_ids=folder.end_ids)
    replay = load_replay(config, task, encoder, folder)
    targets = load_targets(encoder, task, config.acquisition.target_file)
    return Sources(
        config=config,
        folder=folder,
        shape=shape,
        encoder=encoder,
        task=task,
        replay=replay,
        targets=targets,
        progress=progress,
    )


def open_experiment(
    config: ExperimentConfig,
    strategies: Sequence[Strategy],
    progress: Progress,
    watch: Stopwatch,
    tracking: Tracking | None = None,
    sources: Sources | None = None,
) -> ExperimentContext:
    """Loads what all runs share.

    Args:
      config: the experiment.
      strategies: of all runs.
      progress: where to show what is going on.
      watch: counts already.
      tracking: where figures go besides; to the screen alone when None.
      sources: what `open_sources` gave; opened here when None.

    Raises:
      ConfigError, DataError: something the user can put right.
    """
    sources = sources or open_sources(config, strategies, progress)
    progress.log(_place_of_work(sources.shape))
    start, rslora = _starting_adapter(config, sources.shape, progress)
    return ExperimentContext(
        config=config,
        shape=sources.shape,
        folder=sources.folder,
        encoder=sources.encoder,
        task=sources.task,
        replay=sources.replay,
        targets=sources.targets,
        base=BaseScores(Path(config.output_dir) / FOLDER, scores_origin(config, sources.folder.path), progress.log),
        progress=progress,
        watch=watch,
        tracking=tracking or open_trackers((), progress.log),
        forecast=_forecast(config, [strategy.name for strategy in strategies]),
        after_round=AfterRound(config.after_round, progress.log),
        start=start,
        rslora=rslora,
    )


def _forecast(config: ExperimentConfig, strategies: Sequence[str]) -> Forecast:
    loop = config.loop
    labels = [loop.initial_labels + number * loop.labels_per_round for number in range(loop.rounds)]
    runs = [strategy for _ in config.seeds for strategy in strategies]
    return Forecast(dict.fromkeys(runs, labels), runs)


def load_base(config: ExperimentConfig, folder: ModelFolder) -> LanguageModel:
    """The frozen base model of an experiment."""
    return load_folder(
        folder.path,
        config.model.dtype,
        quantization=config.model.quantization,
        longest=config.data.max_prompt_tokens + config.data.max_response_tokens,
        ignored_fields=config.model.ignored_fields,
        placement=parameter_sharding,
    )


def load_seed(context: Sources, seed: int) -> RunData:
    """Pool and test set of a seed, with the fingerprints of everything that its runs must find again.

    Raises:
      ConfigError, DataError: something the user can put right.
    """
    config = context.config
    place = TokenPlace(Path(config.output_dir) / TOKENS / "pool-", tokenizer_origin(context.folder.fingerprint))
    data = prepare(config.data, context.task, context.encoder, seed, config.labels, place if leads() else None)
    data.facts["model"] = context.folder.fingerprint
    if config.model.adapter is not None:
        data.facts["start"] = folder_fingerprint(Path(config.model.adapter))
    if context.replay:
        data.facts["replay"] = rows_fingerprint(context.replay)
    if len(context.targets):
        data.facts["targets"] = rows_fingerprint(PromptRows(context.targets))
    check_data(config, data)
    if config.scoring.answers == "candidates" and context.task.candidates is not None:
        check_candidates(context.encoder, data.pool[0], context.task.candidates)
    return data


def log_seed(progress: Progress, seed: int, data: RunData) -> None:
    """Says what is noteworthy about the data of a seed."""
    if data.facts["duplicate_prompts"] or data.facts["test_overlap"]:
        progress.log(
            f"seed {seed}: {data.facts['duplicate_prompts']} pool prompts repeat an earlier one, "
            f"{data.facts['test_overlap']} are also in the test set"
        )
    if data.unlabelled:
        progress.log(f"seed {seed}: {data.unlabelled} of {len(data.pool)} pool prompts have no response yet")
    if data.skipped:
        progress.log(f"seed {seed}: {len(data.skipped)} of {len(data.pool)} pool prompts are marked as not to label")


def experiment_shapes(context: ExperimentContext, data: Sequence[RunData]) -> Shapes:
    """Shapes for the data of all seeds, so that all runs share their programs."""
    config = context.config
    lengths = known_lengths(context.encoder, data, context.replay)
    sizes = BatchSizes(config.generation.batch_size, config.scoring.batch_size)
    prompts = np.concatenate([lengths.prompts, lengths.asked])
    rows = np.concatenate([lengths.likely, lengths.known])
    shapes = choose_shapes(prompts, rows, lengths.longest, sizes)
    longest = max([lengths.longest, *lengths.replay])
    training = training_shapes(lengths.likely, lengths.replay, longest, config.training)
    return shapes._replace(training=training)


def make_problem(context: ExperimentContext, data: RunData, shapes: Shapes) -> Problem:
    """What the loop works on."""
    encoder, scoring = context.encoder, context.config.scoring
    pool: Pool
    if scoring.answers == "candidates":
        assert context.task.candidates is not None
        pool = candidate_pool(encoder, data.pool, context.task.candidates, scoring.batch_size)
    elif scoring.answers == "reference":
        pool = proposed_pool(encoder.examples(gold_examples(data.labels, data.pool), counted=True), shapes.sequences)
    else:
        pool = generated_pool(encoder, data.tokens, shapes)
    annotator = make_annotator(context, data)
    model, replay, start = context.model, context.replay, context.start
    read, group, targets = context.task.parse, context.task.group, context.targets
    tokens = data.tokens
    return Problem(model, encoder, data.pool, tokens, pool, shapes, annotator, replay, start, read, group, targets)


def make_annotator(context: Sources, data: RunData) -> Annotator:
    """Who labels what is picked: the file that the pool is from, and a person where it has no responses.

    A person's labels serve all runs of the experiment, also where the pool has got responses of its own since.
    """
    config, folder = context.config, Path(context.config.output_dir)
    name = config.annotator
    if name == "auto":
        name = "csv" if data.unlabelled or shared((folder / LABELS_FILE).exists) else "oracle"
    known = AnnotatorContext(
        data.labels,
        data.ids,
        folder,
        context.task,
        lambda one: context.encoder.examples([one]),
        config.labels.skip,
        data.skipped,
        data.columns,
        config.simulated,
        config.llm,
        config.label_studio,
    )
    return led(lambda: ANNOTATORS.get(name, "annotator")(known))


def _place_of_work(shape: TransformerConfig) -> str:
    """Where programs run, in words."""
    devices, processes = jax.devices(), jax.process_count()
    dtype, softcap = jnp.dtype(shape.dtype), shape.attention_softcap
    attention = choose_implementation(dtype, shape.head_dim, softcap=softcap, devices=1)
    reason = f": {attention.reason}" if attention.reason else ""
    of = f" of {processes} processes" if processes > 1 else ""
    return f"runs on {len(devices)} x {devices[0].device_kind}{of}; attention by {attention.kernel}{reason}"


def _starting_adapter(
    config: ExperimentConfig, shape: TransformerConfig, progress: Progress
) -> tuple[Adapter | None, bool]:
    """The adapter of `model.adapter`, and whether adapters of this run have rsLoRA's scale."""
    if config.model.adapter is None:
        return None, config.lora.rslora
    adapter, raw = load_adapter(Path(config.model.adapter), shape)
    progress.log(
        f"starts from the adapter in {config.model.adapter}: rank {raw['r']}, alpha {raw['lora_alpha']}, on "
        f"{', '.join(adapter.weights['layers'])}; lora.rank, alpha, rslora, targets and init are not used"
    )
    return adapter, bool(raw.get("use_rslora"))


def _base_adapter(config: ExperimentConfig, model: LanguageModel, start: Adapter | None) -> Adapter | None:
    """The adapter to start from; where there is none, and adapters are not added to the weights, one of 0 throughout.

    So the base model is scored by the programs that score with an adapter. That of 0 is kept on the host.
    """
    if start is not None or can_merge(model):
        return start
    shapes = jax.eval_shape(partial(init_adapter, config=config.lora), jax.random.key(0), model.params)
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def load_replay(config: ExperimentConfig, task: Task, encoder: Encoder, folder: ModelFolder) -> list[TokenizedExample]:
    """Tokenised replay rows of `training.replay`: the file beside a shipped model, or one of the user's."""
    source = config.training.replay
    if source is None:
        return []
    # `check_experiment` has seen to it that a shipped model's replay rows are those of the model that is trained.
    path = str(folder.path / REPLAY_FILE) if source.startswith(EMBEDDED) else source
    examples = load_examples(task, path, "train", config.data.on_bad_row)
    kept = examples_within_limits(encoder, examples)[0]
    if not kept:
        raise ConfigError(
            f"training.replay: no row of {path} has a prompt of at most {config.data.max_prompt_tokens} tokens; raise "
            "data.max_prompt_tokens, or set data.too_long to truncate-left"
        )
    return encoder.examples(kept, counted=True)
