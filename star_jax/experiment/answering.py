"""An adapter with its base model, ready to answer, and the data of the run that it is from."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from star_jax.checkpoints.fingerprints import fingerprint_like
from star_jax.checkpoints.hf_config import read_config
from star_jax.checkpoints.hub import ModelFolder
from star_jax.checkpoints.peft import load_adapter
from star_jax.config import ExperimentConfig, MeshConfig
from star_jax.data.examples import Example
from star_jax.data.run_data import RunData, prepare
from star_jax.data.tasks.task import Task
from star_jax.data.tokenization import Encoder, Limits
from star_jax.errors import DataError
from star_jax.evaluation.predictions import Answerer
from star_jax.experiment.mesh_choice import set_mesh
from star_jax.experiment.setup import load_base
from star_jax.models.lora import Adapter
from star_jax.runs.stored_run import StoredRun


class Opened(NamedTuple):
    """A model with an adapter, ready to answer.

    Attributes:
      config: of the run, or as far as flags give it.
      folder: of the base model.
      answerer: the base model.
      adapter: on top.
      run: that the adapter is from, or None.
    """

    config: ExperimentConfig
    folder: ModelFolder
    answerer: Answerer
    adapter: Adapter
    run: StoredRun | None


def open_adapter(
    config: ExperimentConfig, folder: ModelFolder, task: Task, adapter: Path, run: StoredRun | None
) -> Opened:
    """Loads a base model and an adapter.

    Args:
      config: model, limits and what counts as confidence.
      folder: of the base model.
      task: what a prompt and an answer are.
      adapter: PEFT folder.
      run: that it is from, or None.

    Raises:
      ConfigError: one of the two cannot be used, or the model is not the run's.
    """
    if run is not None:
        before = run.facts.get("model")
        run.check_data({"model": fingerprint_like(before, folder.path, folder.fingerprint)}, ("model",))
    shape = read_config(folder.path, config.model.dtype, None, config.model.ignored_fields)
    set_mesh(MeshConfig(), shape, quantization=config.model.quantization)  # the run's may have had other devices
    model = load_base(config, folder)
    weights, _ = load_adapter(adapter, model.config)
    limits = Limits(config.data.max_prompt_tokens, config.data.max_response_tokens, config.data.too_long)
    encoder = Encoder(folder.tokenizer, task, limits, vocab_size=model.config.vocab_size, end_ids=folder.end_ids)
    closed = config.evaluation.judges_candidates(config.scoring.answers)
    batch_size = config.scoring.batch_size if closed else config.generation.batch_size
    answerer = Answerer(model, task, encoder, config.evaluation.confidence, batch_size, closed)
    return Opened(config, folder, answerer, weights, run)


def run_data(opened: Opened) -> RunData:
    """Pool and test set of the adapter's run.

    Raises:
      ConfigError: they are not what they were.
      DataError: they cannot be read.
    """
    assert opened.run is not None
    data = prepare(opened.config.data, opened.answerer.task, opened.answerer.encoder, opened.run.seed)
    opened.run.check_data(data.facts, ("pool",))
    missing = sorted(opened.run.labels.keys() - {prompt.id for prompt in data.pool})
    if missing:
        raise DataError(
            f"{opened.run.path} has a label for {missing[0]!r}, which is not in the pool; put the pool back as it was"
        )
    return data


def labelled_examples(run: StoredRun, data: RunData) -> list[Example]:
    """What the run has labelled, in the order of the pool."""
    return [Example(prompt, run.labels[prompt.id]) for prompt in data.pool if prompt.id in run.labels]
