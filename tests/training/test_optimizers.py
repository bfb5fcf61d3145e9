"""Schedules against optax's and against rules written out; AdamW against plain numpy."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from star_jax.config import TrainingConfig
from star_jax.training.optimizers import direction, factor_labels, learning_rate

PEAK = 3e-3
LONGEST = 100


@partial(jax.jit, static_argnames="config")
def all_rates(total: jax.Array, config: TrainingConfig) -> jax.Array:
    return jax.vmap(lambda step: learning_rate(step, total, config))(jnp.arange(LONGEST))


def rates(config: TrainingConfig, total: int) -> np.ndarray:
    return np.asarray(all_rates(jnp.asarray(total), config))[:total]


def reference(step: int, total: int, config: TrainingConfig) -> float:
    """Rise, plateau and fall, one step at a time."""
    warmup = max(config.warmup_fraction * total, 1.0)
    rise = min(1.0, (step + 1) / warmup)
    if config.schedule == "constant":
        return config.learning_rate * rise
    left, span = total - step, max(1.0, min(config.decay_fraction, 1 - config.warmup_fraction) * total)
    if left >= span:
        return config.learning_rate * rise
    share = left / span
    return config.learning_rate * rise * (share if config.schedule == "linear" else math.sin(math.pi / 2 * share) ** 2)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("warmup", "decay"), [(0.0, 1.0), (0.25, 0.5), (0.0, 0.2), (0.5, 0.0), (0.3, 0.7)])
def test_rates_follow_the_rule(schedule, warmup, decay):
    config = TrainingConfig(learning_rate=PEAK, schedule=schedule, warmup_fraction=warmup, decay_fraction=decay)
    for total in (1, 2, 7, 40):
        want = [reference(step, total, config) for step in range(total)]
        np.testing.assert_allclose(rates(config, total), want, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("total", [1, 3, 50])
def test_plain_schedules_are_those_of_optax(total):
    linear = optax.linear_schedule(PEAK, 0.0, total)
    cosine = optax.cosine_decay_schedule(PEAK, total)
    for name, schedule in (("linear", linear), ("cosine", cosine)):
        config = TrainingConfig(learning_rate=PEAK, schedule=name)
        np.testing.assert_allclose(rates(config, total), schedule(np.arange(total)), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_rate_starts_at_the_peak_and_ends_near_zero(schedule):
    config = TrainingConfig(learning_rate=PEAK, schedule=schedule)
    for total in (10, LONGEST):
        curve = rates(config, total)
        np.testing.assert_allclose(curve[0], PEAK, rtol=1e-6)
        assert 0 < curve[-1] <= PEAK / total * 1.0001
        assert (np.diff(curve) < 0).all()


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_a_single_step_is_taken_at_the_peak(schedule, warmup):
    config = TrainingConfig(learning_rate=PEAK, schedule=schedule, warmup_fraction=warmup, decay_fraction=1 - warmup)
    np.testing.assert_allclose(rates(config, 1), [PEAK], rtol=1e-6)


def test_warm_up_rises_to_a_plateau_before_the_fall():
    config = TrainingConfig(learning_rate=PEAK, warmup_fraction=0.2, decay_fraction=0.5)
    curve = rates(config, 20)
    np.testing.assert_allclose(curve[:4], PEAK * np.array([0.25, 0.5, 0.75, 1.0]), rtol=1e-6)
    np.testing.assert_allclose(curve[4:11], PEAK, rtol=1e-6)
    np.testing.assert_allclose(curve[11:], PEAK * np.arange(9, 0, -1) / 10, rtol=1e-5)


def test_schedules_of_different_length_share_one_program():
    config = TrainingConfig()
    rate = jax.jit(lambda step, total: learning_rate(step, total, config))
    for total in (1, 5, 90):
        for step in range(min(total, 3)):
            rate(jnp.asarray(step), jnp.asarray(total))
    assert rate._cache_size() == 1


def draw(rng: np.random.Generator, scale: float = 1.0):
    """A tree like an adapter's, in float32."""
    widths = {"q_proj": (4, 5), "down_proj": (6, 3)}
    return {
        "layers": {
            name: {
                "a": (scale * rng.normal(size=(2, fan_in, 3))).astype(np.float32),
                "b": (scale * rng.normal(size=(2, 3, out))).astype(np.float32),
            }
            for name, (fan_in, out) in widths.items()
        }
    }


def apply(config: TrainingConfig, weights, gradients, rate: float):
    """The trainer's rule: W ← W − rate · direction, over a list of gradients."""
    optimizer = direction(config)
    state = optimizer.init(weights)
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, weights)
        weights = jax.tree.map(lambda w, u: w - rate * u, weights, updates)
    return weights


def test_factors_are_labelled_by_name():
    labels = factor_labels(draw(np.random.default_rng(0)))
    assert labels == {"layers": {name: {"a": "a", "b": "b"} for name in ("q_proj", "down_proj")}}


@pytest.mark.parametrize(("decay_a", "decay_b"), [(0.0, 0.5), (0.2, 0.0), (0.1, 0.3)])
def test_without_a_gradient_only_the_decay_acts(decay_a, decay_b):
    config = TrainingConfig(decay_a=decay_a, decay_b=decay_b)
    weights, rate = draw(np.random.default_rng(1)), 0.05
    moved = apply(config, weights, [jax.tree.map(np.zeros_like, weights)] * 3, rate)
    for name, factors in weights["layers"].items():
        for factor, decay in (("a", decay_a), ("b", decay_b)):
            want = factors[factor] * (1 - rate * decay) ** 3
            np.testing.assert_allclose(moved["layers"][name][factor], want, rtol=1e-6)
            if decay == 0:
                np.testing.assert_array_equal(moved["layers"][name][factor], factors[factor])


@pytest.mark.parametrize("clip", [None, 1.0, 100.0])
def test_steps_equal_adamw_in_numpy(clip):
    config = TrainingConfig(gradient_clip=clip, decay_a=0.03, decay_b=0.4, adam_b1=0.8, adam_b2=0.95)
    rng, rate = np.random.default_rng(2), 0.02
    weights = draw(rng)
    # Gradients of very different size: some are clipped and some are not.
    gradients = [draw(rng, scale) for scale in (3.0, 1e-2, 1.0, 1e-3, 0.5)]
    got = apply(config, weights, gradients, rate)

    want = {n: {f: w.astype(np.float64) for f, w in factors.items()} for n, factors in weights["layers"].items()}
    first = {n: {f: np.zeros_like(w) for f, w in factors.items()} for n, factors in want.items()}
    second = {n: {f: np.zeros_like(w) for f, w in factors.items()} for n, factors in want.items()}
    for step, gradient in enumerate(gradients, start=1):
        norm = math.sqrt(sum(float((leaf.astype(np.float64) ** 2).sum()) for leaf in jax.tree.leaves(gradient)))
        shrink = 1.0 if clip is None else min(1.0, clip / norm)
        for name, factors in want.items():
            for factor, decay in (("a", config.decay_a), ("b", config.decay_b)):
                g = gradient["layers"][name][factor].astype(np.float64) * shrink
                m = first[name][factor] = config.adam_b1 * first[name][factor] + (1 - config.adam_b1) * g
                v = second[name][factor] = config.adam_b2 * second[name][factor] + (1 - config.adam_b2) * g**2
                adam = m / (1 - config.adam_b1**step) / (np.sqrt(v / (1 - config.adam_b2**step)) + 1e-8)
                factors[factor] = factors[factor] - rate * (adam + decay * factors[factor])
    for name, factors in want.items():
        for factor, value in factors.items():
            np.testing.assert_allclose(got["layers"][name][factor], value, rtol=2e-5, atol=2e-6, err_msg=name + factor)
