"""Fits one adapter: a jitted step, and the loop over epochs around it.

Shapes: `B` rows a step (labelled and replay rows together), `T` tokens.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from star_jax.config import LoraConfig, TrainingConfig
from star_jax.data.batching import Batch, make_batch
from star_jax.data.bucketing import StepLadder
from star_jax.data.step_shapes import random_steps, shapes_of_steps, step_ladder
from star_jax.data.tokenization import TokenizedExample
from star_jax.models.dropout import Dropout, row_keys
from star_jax.models.kernels_apart import kernels_apart
from star_jax.models.lm_head import output_head
from star_jax.models.lora import Adapter, Factors, init_adapter
from star_jax.models.sequences import SequenceInputs, hidden_states, next_tokens, response_mask
from star_jax.models.transformer import LanguageModel
from star_jax.parallel.mesh import ALIKE, by_rows, data_mesh, held, in_place, parameter_specs, parts_of_a_model, placed
from star_jax.parallel.parts import summed
from star_jax.training.compile_cost import program_tokens
from star_jax.training.losses import TokenLosses, objective, token_losses
from star_jax.training.optimizers import direction, learning_rate, norm

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


class FitResult(NamedTuple):
    """What a training gives.

    Attributes:
      adapter: the trained one.
      loss: mean cross-entropy of the last epoch, nats a token.
      step_losses: cross-entropy of each step, nats a token, `steps` float32.
    """

    adapter: Adapter
    loss: float
    step_losses: np.ndarray


class TrainBatch(NamedTuple):
    """Rows of one step: inputs, a mask `B` of rows that are real, and their numbers `B`, which pick their dropout."""

    inputs: SequenceInputs
    row_mask: Array | np.ndarray
    numbers: Array | np.ndarray


class Fixed(NamedTuple):
    """What all steps of a fit have.

    Attributes:
      model: decoder and frozen weights.
      scale: the adapter's scales.
      key: PRNG key of the dropout; the step number is folded in.
      total_steps: scalar, steps of the whole fit, for the schedule.
    """

    model: LanguageModel
    scale: Factors
    key: Array
    total_steps: Array


class TrainingRows(NamedTuple):
    """What is trained on.

    Attributes:
      labelled: tokenised examples.
      replay: rows mixed into each step, drawn evenly without replacement until all have been used.
      shapes: that steps may have, from `training_shapes`.
    """

    labelled: Sequence[TokenizedExample]
    replay: Sequence[TokenizedExample]
    shapes: StepLadder


def init_state(
    key: Array, model: LanguageModel, lora: LoraConfig, config: TrainingConfig, start: Adapter | None = None
) -> tuple[TrainState, Factors]:
    """The training state of a copy of `start`, or of a fresh adapter, and the adapter's scales."""
    adapter = init_adapter(key, model.params, lora) if start is None else jax.tree.map(jnp.copy, start)
    state = TrainState(adapter.weights, direction(config).init(adapter.weights), jnp.zeros((), jnp.int32))
    return state, adapter.scale


@partial(jax.jit, static_argnames=("lora", "config"))
def _state_in_parts(
    key: Array, model: LanguageModel, start: Adapter | None, *, lora: LoraConfig, config: TrainingConfig
) -> tuple[TrainState, Factors]:
    """`init_state`, of which no device makes more than its part."""
    return held(init_state(key, model, lora, config, start))


@partial(jax.jit, static_argnames=("capacity", "lora", "config"), donate_argnames=("state",))
def train_step(
    fixed: Fixed,
    state: TrainState,
    batch: TrainBatch,
    *,
    capacity: int | None = None,
    lora: LoraConfig,
    config: TrainingConfig,
) -> tuple[TrainState, TrainInfo]:
    """One step of AdamW on the adapter; the frozen weights are constants of the gradient.

    Args:
      fixed: what all steps of a fit have.
      state: donated.
      batch: rows of one shape, a multiple of the number of local devices, which share them.
      capacity: as `hidden_states` takes them, on each device.
      lora: dropout rate and mode.
      config: loss and optimiser.
    """
    shared = (fixed.model, fixed.scale, state.weights, jax.random.fold_in(fixed.key, state.step))
    out = (ALIKE, parameter_specs(state.weights))
    losses, slopes = by_rows(partial(_slopes, capacity, lora, config), shared, batch, out=out)
    count = jnp.maximum(losses.count, 1)
    loss, penalty = jax.value_and_grad(lambda weights: objective(losses, weights, config))(state.weights)
    length = norm(_gradient(slopes, penalty, count))
    rate = learning_rate(state.step, fixed.total_steps, config)
    told = (state, slopes, penalty, count, length, rate)
    new = in_place(partial(_updated, config), told, parameter_specs(state))
    return new, TrainInfo(loss, losses.cross_entropy / count, length, losses.count)


def _gradient(slopes: Factors, penalty: Factors, count: Array) -> Factors:
    """Of the objective: the mean over all tokens, and what the penalty on the weights adds."""
    return jax.tree.map(lambda slope, extra: slope / count + extra, slopes, penalty)


def _updated(config: TrainingConfig, told: Any) -> TrainState:
    """The state after a step, of an adapter or of a part of it: nothing here looks from one entry to another."""
    state, slopes, penalty, count, length, rate = told
    gradient = _gradient(slopes, penalty, count)
    updates, optimizer = direction(config).update(gradient, state.optimizer, state.weights, length=length)
    weights = optax.apply_updates(state.weights, jax.tree.map(lambda update: -rate * update, updates))
    return TrainState(weights, optimizer, state.step + 1)


def _slopes(
    capacity: int | None, lora: LoraConfig, config: TrainingConfig, shared: Any, batch: TrainBatch
) -> tuple[TokenLosses, Factors]:
    """Summed losses of all rows, and the gradient of their sum with respect to the adapter's factors."""
    model, scale, weights, key = shared
    inputs, row_mask, numbers = batch
    mask = response_mask(inputs) & row_mask[:, None]
    dropout = None
    if lora.training_dropout != "off":
        keys = key if lora.training_dropout == "shared" else row_keys(key, jnp.asarray(numbers))
        dropout = Dropout(keys, lora.dropout, lora.training_dropout)

    def loss_of(weights: Factors) -> tuple[Array, TokenLosses]:
        hidden = hidden_states(model, Adapter(weights, scale), inputs, dropout, capacity)
        losses = token_losses(hidden, next_tokens(inputs), mask, output_head(model), config)
        return losses.penalised, losses

    slopes, losses = jax.grad(loss_of, has_aux=True)(weights)
    return summed((losses, slopes))


def schedule_steps(rows: int, config: TrainingConfig) -> int:
    """Steps over which the learning rate runs: those that are really taken for so many labelled rows."""
    return math.ceil(rows / config.batch_size) * config.epochs_of(rows)


def epoch_batches(key: Array, rows: int, batch_size: int, epochs: int) -> Iterator[np.ndarray]:
    """Row numbers of each step, at most `batch_size`: a fresh permutation an epoch, whose last batch may be shorter."""
    for epoch in range(epochs):
        order = np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), rows))
        for start in range(0, rows, batch_size):
            yield order[start : start + batch_size]


def training_shapes(
    labelled: Sequence[int] | np.ndarray, replay: Sequence[int], longest: int, config: TrainingConfig
) -> StepLadder:
    """Shapes that a device's share of a step may have; a fit takes the few that pay.

    Args:
      labelled: lengths of rows like those that will be trained on.
      replay: lengths of the replay rows.
      longest: tokens of the longest row that may come.
      config: rows of a step.
    """
    sizes = config.batch_size, config.replay_rows
    return step_ladder(random_steps(labelled, replay, sizes), sum(sizes), longest, data_mesh().size)


def fit(
    key: Array,
    model: LanguageModel,
    data: TrainingRows,
    lora: LoraConfig,
    config: TrainingConfig,
    *,
    start: Adapter | None = None,
    on_step: Callable[[int], None] = lambda rows: None,
) -> FitResult:
    """Trains an adapter on labelled rows.

    Args:
      key: PRNG key of adapter, order, replay and dropout.
      model: decoder and frozen weights.
      data: rows, and shapes that steps may have.
      lora: rank, scale, targets, dropout.
      config: loss, optimiser, epochs.
      start: the adapter to go on from; None for a fresh one.
      on_step: told the number of labelled rows of each step once the device has finished it.

    Returns:
      The adapter, and its losses.

    Raises:
      FloatingPointError: the loss is not finite.
      ValueError: there are no rows, or a step of them fits no shape.
      ConfigError: the adapter has a target that the model does not have.
    """
    rows, replay, ladder = data
    if not rows:
        raise ValueError("fit needs at least one labelled row")
    adapter_key, order_key, replay_key, dropout_key = jax.random.split(key, 4)
    model = placed(LanguageModel(model.decoder.clone(rematerialise=config.rematerialise), model.params))
    if parts_of_a_model() == 1:
        state, scale = placed(init_state(adapter_key, model, lora, config, start))
    else:
        state, scale = _state_in_parts(adapter_key, model, placed(start), lora=lora, config=config)
    steps_an_epoch = math.ceil(len(rows) / config.batch_size)
    total = jnp.asarray(schedule_steps(len(rows), config), jnp.int32)
    fixed = Fixed(placed(kernels_apart(model)), scale, dropout_key, total)
    # All steps are known before the first, so that their shapes are chosen for them.
    chosen = list(epoch_batches(order_key, len(rows), config.batch_size, config.epochs_of(len(rows))))
    averaged = range(len(chosen) - math.ceil(len(chosen) * config.average_fraction), len(chosen))
    extra = _replay_stream(replay_key, len(replay), config.replay_rows)
    taken = [[rows[i] for i in new] + [replay[i] for i in next(extra)] for new in chosen]
    lengths = [[len(row.tokens) for row in step] for step in taken]
    shapes = shapes_of_steps(ladder, lengths, program_tokens(model), data_mesh().size)
    running: deque[tuple[TrainInfo, int]] = deque()
    steps: list[TrainInfo] = []
    mean: Factors | None = None
    for number, (new, step) in enumerate(zip(chosen, taken, strict=True)):
        batch = make_batch(step, range(len(step)), shapes, data_mesh().size)
        state, info = train_step(fixed, state, train_batch(batch), capacity=batch.capacity, lora=lora, config=config)
        if number in averaged:
            mean = _mean(state.weights if mean is None else mean, state.weights, number - averaged.start + 1)
        steps.append(info)
        running.append((info, len(new)))
        if len(running) > STEPS_AHEAD:
            _count_next(running, on_step)
    while running:
        _count_next(running, on_step)
    done = jax.device_get(steps)
    final = done[-steps_an_epoch:]
    # Steps weigh by their tokens: the last of an epoch may be short.
    last = float(np.average([info.cross_entropy for info in final], weights=[info.tokens for info in final]))
    if not math.isfinite(last):
        raise FloatingPointError(
            f"the training loss is {last} after {int(total)} steps; lower training.learning_rate or use float32"
        )
    weights = state.weights if mean is None else mean
    return FitResult(Adapter(weights, scale), last, np.asarray([info.cross_entropy for info in done], np.float32))


@jax.jit
def _mean(mean: Factors, weights: Factors, count: Array | int) -> Factors:
    """The mean of `count` weights, from that of all but the last, and the last."""
    return jax.tree.map(lambda one, other: one + (other - one) / count, mean, weights)


def _count_next(running: deque[tuple[TrainInfo, int]], on_step: Callable[[int], None]) -> None:
    """Waits for the oldest step under way and counts it: what is counted has been done, and the queue stays short."""
    info, rows = running.popleft()
    jax.block_until_ready(info)
    on_step(rows)


def train_batch(batch: Batch) -> TrainBatch:
    """A batch as a step takes it; a row's place in the step picks its dropout."""
    inputs = SequenceInputs(batch.tokens, batch.prompt_lengths, batch.lengths)
    return TrainBatch(inputs, batch.row_mask, batch.index)


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
