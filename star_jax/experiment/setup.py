"""What the runs of an experiment share: the model, its tokenizer, the adapter to start from, and replay rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.acquisition.strategies import Strategy
from star_jax.checkpoints.hub import EMBEDDED, end_tokens, load_tokenizer, resolve_folder
from star_jax.checkpoints.huggingface import load_model
from star_jax.checkpoints.peft import load_adapter
from star_jax.config import ExperimentConfig
from star_jax.data.loading import load_examples
from star_jax.data.run_data import examples_within_limits
from star_jax.data.tasks import get_task
from star_jax.data.tasks.task import Task
from star_jax.data.tokenization import Encoder, Limits, TokenizedExample
from star_jax.errors import ConfigError
from star_jax.experiment.checks import check_experiment, check_model
from star_jax.models.lora import Adapter, init_adapter
from star_jax.models.merged import can_merge
from star_jax.models.transformer import LanguageModel
from star_jax.ops.attention_kernels import choose_implementation
from star_jax.parallel.mesh import replicated_sharding
from star_jax.runs.score_store import FOLDER, BaseScores, scores_origin
from star_jax.tracking.console import Progress
from star_jax.tracking.timing import Stopwatch

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
      base_adapter: the adapter that the base model is scored with, or None.
      rslora: whether adapters are written with rsLoRA's scale.
    """

    config: ExperimentConfig
    model: LanguageModel
    encoder: Encoder
    task: Task
    replay: Sequence[TokenizedExample]
    base: BaseScores
    progress: Progress
    watch: Stopwatch
    start: Adapter | None = None
    base_adapter: Adapter | None = None
    rslora: bool = False


def open_workbench(
    config: ExperimentConfig, strategies: Sequence[Strategy], progress: Progress, watch: Stopwatch
) -> Workbench:
    """Loads what all runs share.

    Args:
      config: the experiment.
      strategies: of all runs.
      progress: where to show what is going on.
      watch: counts already.

    Raises:
      ConfigError, DataError: something the user can put right.
    """
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
    base_adapter = _base_adapter(config, model, start)
    return Workbench(config, model, encoder, task, replay, base, progress, watch, start, base_adapter, rslora)


def load_base(config: ExperimentConfig) -> LanguageModel:
    """The frozen base model of an experiment."""
    return load_model(
        config.model.path,
        config.model.dtype,
        quantization=config.model.quantization,
        longest=config.data.max_prompt_tokens + config.data.max_response_tokens,
        ignored_fields=config.model.ignored_fields,
        placement=lambda name, shape: replicated_sharding(),
    )


def _place_of_work(model: LanguageModel) -> str:
    """Where programs run, in words."""
    devices, shape = jax.local_devices(), model.config
    attention = choose_implementation(
        jnp.dtype(shape.dtype), shape.head_dim, softcap=shape.attention_softcap, devices=1
    )
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


def _base_adapter(config: ExperimentConfig, model: LanguageModel, start: Adapter | None) -> Adapter | None:
    """The adapter to start from; where there is none, and adapters are not added to the weights, one of 0 throughout.

    So the base model is scored by the programs that score with an adapter. That of 0 is kept on the host.
    """
    if start is not None or can_merge(model):
        return start
    shapes = jax.eval_shape(partial(init_adapter, config=config.lora), jax.random.key(0), model.params)
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def load_replay(config: ExperimentConfig, task: Task, encoder: Encoder) -> list[TokenizedExample]:
    """Tokenised replay rows of `training.replay`: the file beside a shipped model, or one of the user's."""
    source = config.training.replay
    if source is None:
        return []
    path = str(resolve_folder(source) / REPLAY_FILE) if source.startswith(EMBEDDED) else source
    examples = load_examples(task, path, "train", config.data.on_bad_row)
    kept = examples_within_limits(encoder, examples)[0]
    if not kept:
        raise ConfigError(
            f"training.replay: no row of {path} has a prompt of at most {config.data.max_prompt_tokens} tokens; raise "
            "data.max_prompt_tokens, or set data.too_long to truncate-left"
        )
    return encoder.examples(kept, counted=True)
