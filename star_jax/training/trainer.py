"""Fits one adapter: a jitted step, and the loop over epochs around it.

Shapes: `B` rows a step (labelled and replay rows together), `T` tokens, `R` response tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from star_jax.config import LoraConfig, TrainingConfig
from star_jax.data.batching import Batch, Limits, Row, pack
from star_jax.models.head import output_head
from star_jax.models.lora import Adapter, Dropout, Factors, init_adapter, row_keys
from star_jax.models.sequences import SequenceInputs, response_hidden, response_mask, response_targets, sequence_inputs
from star_jax.models.transformer import LanguageModel
from star_jax.training.losses import TokenLosses, objective, token_losses
from star_jax.training.optimizers import direction, learning_rate

Array = jax.Array

STEPS_AHEAD = 2
"""Steps that may be queued on the device while an earlier one runs."""


class TrainState(NamedTuple):
    """What the next step needs: the adapter's factors, Adam's moments, and the number of steps taken."""

    weights: Factors
    optimizer: optax.OptState
    step: Array


class TrainInfo(NamedTuple):
    """What a person wants to see of a step.

    Attributes:
      loss: objective, nats a response token.
      cross_entropy: its first term, nats a response token.
      gradient_norm: ‖gradient‖, before clipping.
      tokens: response tokens of the step.
    """

    loss: Array
    cross_entropy: Array
    gradient_norm: Array
    tokens: Array


class TrainBatch(NamedTuple):
    """Rows of one step: inputs, and a mask `B` of rows that are real."""

    inputs: SequenceInputs
    row_mask: Array


def init_state(
    key: Array, model: LanguageModel, lora: LoraConfig, config: TrainingConfig, start: Adapter | None = None
) -> tuple[TrainState, Factors]:
    """The training state of a copy of `start`, or of a fresh adapter, and the adapter's scales."""
    adapter = init_adapter(key, model.params, lora) if start is None else jax.tree.map(jnp.copy, start)
    state = TrainState(adapter.weights, direction(config).init(adapter.weights), jnp.zeros((), jnp.int32))
    return state, adapter.scale


@partial(jax.jit, static_argnames=("width", "lora", "config"), donate_argnames=("state",))
def train_step(
    model: LanguageModel,
    scale: Factors,
    state: TrainState,
    batch: TrainBatch,
    key: Array,
    total_steps: Array,
    *,
    width: int,
    lora: LoraConfig,
    config: TrainingConfig,
) -> tuple[TrainState, TrainInfo]:
    """One step of AdamW on the adapter; the frozen weights are constants of the gradient.

    Args:
      model: decoder and frozen weights.
      scale: the adapter's scales.
      state: donated.
      batch: rows of one bucket.
      key: PRNG key of the run of training; the step number is folded in.
      total_steps: steps of the whole fit, for the schedule.
      width: R of the bucket.
      lora: dropout rate and mode.
      config: loss and optimiser.
    """
    inputs, row_mask = batch
    mask = response_mask(inputs, width) & row_mask[:, None]
    targets = response_targets(inputs, width)
    dropout = None
    if lora.training_dropout != "off":
        keys = row_keys(jax.random.fold_in(key, state.step), jnp.arange(row_mask.shape[0]))
        dropout = Dropout(keys, lora.dropout, lora.training_dropout)

    def loss_of(weights: Factors) -> tuple[Array, TokenLosses]:
        hidden = response_hidden(model, Adapter(weights, scale), inputs, width, dropout)
        losses = token_losses(
            hidden,
            targets,
            mask,
            output_head(model),
            label_smoothing=config.label_smoothing,
            entropy_floor=config.entropy_floor,
        )
        return objective(losses, weights, config), losses

    (loss, losses), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.weights)
    updates, optimizer = direction(config).update(gradient, state.optimizer, state.weights)
    rate = learning_rate(state.step, total_steps, config)
    weights = optax.apply_updates(state.weights, jax.tree.map(lambda update: -rate * update, updates))
    cross_entropy = losses.cross_entropy / jnp.maximum(losses.count, 1)
    info = TrainInfo(loss, cross_entropy, optax.tree.norm(gradient), losses.count)
    return TrainState(weights, optimizer, state.step + 1), info


def epoch_batches(key: Array, rows: int, batch_size: int, epochs: int) -> Iterator[np.ndarray]:
    """Row numbers of each step: a fresh permutation an epoch, the last batch of an epoch shorter."""
    for epoch in range(epochs):
        order = np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), rows))
        for start in range(0, rows, batch_size):
            yield order[start : start + batch_size]


def fit(
    key: Array,
    model: LanguageModel,
    rows: Sequence[Row],
    replay: Sequence[Row],
    *,
    limits: Limits,
    lora: LoraConfig,
    config: TrainingConfig,
    start: Adapter | None = None,
    on_step: Callable[[int], None] = lambda rows: None,
) -> tuple[Adapter, float]:
    """Trains an adapter on `rows`.

    Args:
      key: PRNG key of adapter, order, replay and dropout.
      model: decoder and frozen weights.
      rows: the labelled examples, tokenised.
      replay: rows mixed into each step, drawn evenly without replacement until all have been used.
      limits: buckets of the batches.
      lora: rank, scale, targets, dropout.
      config: loss, optimiser, epochs.
      start: the adapter to go on from; None for a fresh one.
      on_step: told the number of labelled rows of each step.

    Returns:
      The adapter, and the mean cross-entropy of the last epoch, nats a token.

    Raises:
      FloatingPointError: the loss is not finite.
    """
    if not rows:
        raise ValueError("fit needs at least one labelled row")
    adapter_key, order_key, replay_key, dropout_key = jax.random.split(key, 4)
    state, scale = init_state(adapter_key, model, lora, config, start)
    steps_an_epoch = math.ceil(len(rows) / config.batch_size)
    total = jnp.asarray(steps_an_epoch * config.epochs, jnp.int32)
    extra = _replay_stream(replay_key, len(replay), config.replay_rows)
    infos: list[TrainInfo] = []
    for chosen in epoch_batches(order_key, len(rows), config.batch_size, config.epochs):
        again = next(extra)
        batch_rows = [rows[i] for i in chosen] + [replay[i] for i in again]
        batch = pack(batch_rows, range(len(batch_rows)), limits, config.batch_size + config.replay_rows)
        state, info = train_step(
            model, scale, state, train_batch(batch), dropout_key, total, width=batch.width, lora=lora, config=config
        )
        infos.append(info)
        if len(infos) > STEPS_AHEAD:
            # Waits for the device, so that what is counted has been done and the queue stays short.
            jax.block_until_ready(infos[-STEPS_AHEAD])
        on_step(len(chosen))
    final = jax.device_get(infos[-steps_an_epoch:])
    # Steps weigh by their tokens: the last of an epoch may be short.
    last = float(np.average([info.cross_entropy for info in final], weights=[info.tokens for info in final]))
    if not math.isfinite(last):
        raise FloatingPointError(
            f"the training loss is {last} after {len(infos)} steps; lower training.learning_rate or use float32"
        )
    return Adapter(state.weights, scale), last


def train_batch(batch: Batch) -> TrainBatch:
    """The device part of a batch."""
    return TrainBatch(sequence_inputs(batch.tokens, batch.prompt_lengths, batch.lengths), jnp.asarray(batch.row_mask))


def _replay_stream(key: Array, rows: int, count: int) -> Iterator[np.ndarray]:
    """Draws of `count` row numbers: permutations of all rows, one after another."""
    if rows == 0 or count == 0:
        while True:
            yield np.zeros(0, np.int64)
    waiting, turn = np.zeros(0, np.int64), 0
    while True:
        while len(waiting) < count:
            order = np.asarray(jax.random.permutation(jax.random.fold_in(key, turn), rows))
            waiting, turn = np.concatenate([waiting, order]), turn + 1
        yield waiting[:count]
        waiting = waiting[count:]
