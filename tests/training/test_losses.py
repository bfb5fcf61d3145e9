"""Losses against sums written out token by token in float64, and their gradient against JAX's own."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.config import TrainingConfig
from star_jax.models import lm_head as head
from star_jax.models.sequences import SequenceInputs, next_tokens, response_mask
from star_jax.training.losses import TokenLosses, b_square, objective, token_losses

BATCH, WIDTH, FEATURES, VOCABULARY = 4, 5, 7, 11
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "smoothed": {"label_smoothing": 0.1},
    "penalty": {"confidence_penalty": 0.3},
    "hinge": {"confidence_penalty": 0.7, "entropy_floor": 2.0},
    "all": {"label_smoothing": 0.3, "confidence_penalty": 0.4, "entropy_floor": 2.0},
}
"""Terms of the objective that a token's loss is made of."""


losses_of = jax.jit(token_losses, static_argnames="config")


@partial(jax.jit, static_argnames="config")
def gradient_of(hidden, targets, mask, output, config: TrainingConfig) -> jax.Array:
    """Of what is minimised, with respect to the states."""
    return jax.grad(lambda states: token_losses(states, targets, mask, output, config).penalised)(hidden)


def draw(seed: int, softcap: float | None = None):
    """States, targets, a ragged mask with a row of padding, and an output projection."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(BATCH, WIDTH, FEATURES)).astype(np.float32)
    targets = rng.integers(VOCABULARY, size=(BATCH, WIDTH)).astype(np.int32)
    mask = np.arange(WIDTH) < np.array([WIDTH, 3, 1, 0])[:, None]
    mask[1] = [False, True, False, True, True]  # wherever they stand
    weight = rng.normal(size=(VOCABULARY, FEATURES)).astype(np.float32)
    return hidden, targets, mask, head.OutputHead(weight, softcap)


def reference(hidden, targets, mask, output, config: TrainingConfig) -> TokenLosses:
    cross_entropy = entropy = missing = count = 0.0
    for b, r in zip(*np.nonzero(mask), strict=True):
        scores = output.weight.astype(np.float64) @ hidden[b, r].astype(np.float64)
        scores = scores if output.softcap is None else output.softcap * np.tanh(scores / output.softcap)
        probs = np.exp(scores) / np.exp(scores).sum()
        wanted = np.full(VOCABULARY, config.label_smoothing / VOCABULARY)
        wanted[targets[b, r]] += 1 - config.label_smoothing
        own = -sum(p * np.log(p) for p in probs)
        cross_entropy -= sum(q * np.log(p) for q, p in zip(wanted, probs, strict=True))
        entropy += own
        missing += 0.0 if config.entropy_floor is None else max(0.0, config.entropy_floor - own)
        count += 1
    held = -entropy if config.entropy_floor is None else missing
    return TokenLosses(cross_entropy + config.confidence_penalty * held, cross_entropy, entropy, missing, count)


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("name", OPTIONS)
def test_sums_equal_those_written_out(name, softcap):
    drawn, config = draw(1, softcap), TrainingConfig(**OPTIONS[name])
    got, want = losses_of(*drawn, config), reference(*drawn, config)
    for field in ("penalised", "cross_entropy", "entropy", "missing_entropy", "count"):
        np.testing.assert_allclose(getattr(got, field), getattr(want, field), rtol=1e-5, atol=1e-6, err_msg=field)
    assert jnp.issubdtype(got.count.dtype, jnp.integer)
    if config.entropy_floor is not None:
        assert want.missing_entropy > 0  # else the hinge would go untested


def naive(hidden, targets, mask, output, config: TrainingConfig) -> jax.Array:
    """`penalised` in a line each, for JAX to differentiate."""
    scores = hidden.astype(jnp.float32) @ output.weight.astype(jnp.float32).T
    scores = scores if output.softcap is None else output.softcap * jnp.tanh(scores / output.softcap)
    log_probs = jax.nn.log_softmax(scores)
    wanted = (1 - config.label_smoothing) * jax.nn.one_hot(targets, VOCABULARY) + config.label_smoothing / VOCABULARY
    entropy = -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)
    held = -entropy if config.entropy_floor is None else jnp.maximum(0.0, config.entropy_floor - entropy)
    return jnp.sum(jnp.where(mask, config.confidence_penalty * held - jnp.sum(wanted * log_probs, axis=-1), 0))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("name", OPTIONS)
def test_gradient_is_that_of_the_formula(seed, name, softcap, dtype):
    """In bfloat16 the slope is rounded twice: before the product with the projection and after it."""
    hidden, targets, mask, output = draw(seed, softcap)
    config, output = TrainingConfig(**OPTIONS[name]), output.replace(weight=jnp.asarray(output.weight, dtype))
    hidden = jnp.asarray(hidden, dtype)

    @jax.jit
    def gradients(hidden, output):
        return [
            jax.grad(lambda states, function=function: 0.5 * function(states))(states)
            for function, states in (
                (lambda states: token_losses(states, targets, mask, output, config).penalised, hidden),
                (lambda states: naive(states, targets, mask, output, config), hidden.astype(jnp.float32)),
            )
        ]

    got, want = map(np.asarray, gradients(hidden, output))
    assert got.dtype == dtype
    largest = float(np.abs(want).max())
    assert largest > 0.1
    bound = (1e-5 if dtype == "float32" else 2**-6) * largest
    np.testing.assert_allclose(np.asarray(got, np.float32), want, rtol=0, atol=bound)


def test_only_what_is_minimised_has_a_gradient():
    hidden, targets, mask, output = draw(2)
    config = TrainingConfig(**OPTIONS["all"])
    fields = ("cross_entropy", "entropy", "missing_entropy")

    @jax.jit
    @jax.jacrev
    def gradients(states):
        losses = token_losses(states, targets, mask, output, config)
        return [getattr(losses, field) for field in fields]

    for gradient in gradients(hidden):
        assert (np.asarray(gradient) == 0).all()


@pytest.mark.parametrize("jitted", [False, True])
def test_the_projection_is_frozen(jitted):
    hidden, targets, mask, output = draw(2)

    def loss(hidden, weight):
        output = head.OutputHead(weight)
        return token_losses(hidden, targets, mask, output, TrainingConfig()).penalised

    for argument in (1, (0, 1)):
        gradient = jax.grad(loss, argument)
        with pytest.raises(ValueError, match="no gradient with respect to the output projection, which is frozen"):
            (jax.jit(gradient) if jitted else gradient)(hidden, output.weight)


@pytest.mark.parametrize("positions", [1, 3, 8])
def test_chunks_of_positions_change_neither_sums_nor_gradient(monkeypatch, positions):
    """Nine positions count: one by one, in three chunks, and in two of which one is nearly empty."""
    hidden, targets, mask, output = jax.tree.map(jnp.asarray, draw(2))
    assert int(mask.sum()) == 9
    config = TrainingConfig(**OPTIONS["all"])

    def losses() -> Callable[..., Any]:
        def total(states):
            found = token_losses(states, targets, mask, output, config)
            return found.penalised, found

        return jax.jit(jax.value_and_grad(total, has_aux=True))

    whole = losses()(hidden)
    monkeypatch.setattr(head, "FEWEST_POSITIONS", 1)
    monkeypatch.setattr(head, "LOGITS_AT_ONCE", {"cpu": positions * VOCABULARY})
    chunked = losses()(hidden)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6), chunked, whole)


def test_masked_positions_and_padding_rows_contribute_nothing():
    hidden, targets, mask, output = draw(3)
    other_hidden, other_targets, _, _ = draw(4)
    changed = np.where(mask[..., None], hidden, other_hidden), np.where(mask, targets, other_targets)
    config = TrainingConfig(label_smoothing=0.1, confidence_penalty=0.2, entropy_floor=1.5)
    one = losses_of(hidden, targets, mask, output, config)
    other = losses_of(*changed, mask, output, config)
    jax.tree.map(np.testing.assert_array_equal, one, other)
    gradient = np.asarray(gradient_of(hidden, targets, mask, output, config))
    assert (gradient[~mask] == 0).all()
    assert (np.abs(gradient)[mask].max(axis=-1) > 0).all()


def test_end_of_sequence_is_part_of_the_response():
    eos = 9
    rows, prompts = [[1, 2, 3, 4, eos], [6, eos], [], []], [3, 1, 1, 1]
    tokens = np.array([row + [0] * (WIDTH - len(row)) for row in rows], np.int32)
    inputs = SequenceInputs(tokens, np.array(prompts), np.array([len(row) for row in rows]))
    mask, targets = np.asarray(response_mask(inputs)), np.asarray(next_tokens(inputs))
    assert [targets[row][mask[row]].tolist() for row in range(BATCH)] == [[4, eos], [eos], [], []]

    hidden, _, _, output = draw(5)
    config = TrainingConfig()
    whole = losses_of(hidden, targets, mask, output, config)
    only_eos = mask & (targets == eos)
    rest = losses_of(hidden, targets, mask & ~only_eos, output, config)
    last = reference(hidden, targets, only_eos, output, config)
    assert int(whole.count) == 3
    np.testing.assert_allclose(whole.cross_entropy - rest.cross_entropy, last.cross_entropy, rtol=1e-5)


@pytest.mark.parametrize("name", ["plain", "penalty", "all"])
def test_extreme_logits_stay_finite(name):
    hidden, targets, mask, output = draw(6)
    steep, config = head.OutputHead(1e4 * output.weight), TrainingConfig(**OPTIONS[name])
    losses = losses_of(hidden, targets, mask, steep, config)
    assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(losses))
    np.testing.assert_allclose(losses.entropy, 0, atol=1e-6)  # 0 · log 0 = 0
    assert np.isfinite(gradient_of(hidden, targets, mask, steep, config)).all()


def draw_weights(seed: int):
    rng = np.random.default_rng(seed)
    return {
        "layers": {
            name: {"a": jnp.asarray(rng.normal(size=(2, 4, 3))), "b": jnp.asarray(rng.normal(size=(2, 3, width)))}
            for name, width in (("q_proj", 4), ("down_proj", 6))
        }
    }


def test_b_square_sums_every_entry_of_b_and_none_of_a():
    weights = draw_weights(7)
    want = sum(float(x) ** 2 for factors in weights["layers"].values() for x in np.ravel(factors["b"]))
    np.testing.assert_allclose(b_square(weights), want, rtol=1e-5)
    gradient = jax.grad(b_square)(weights)
    for name, factors in gradient["layers"].items():
        assert (np.asarray(factors["a"]) == 0).all()
        np.testing.assert_allclose(factors["b"], 2 * weights["layers"][name]["b"], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "formula"),
    [
        ({}, lambda s, b: s.cross_entropy / s.count),
        ({"confidence_penalty": 0.3}, lambda s, b: (s.cross_entropy - 0.3 * s.entropy) / s.count),
        (
            {"confidence_penalty": 0.3, "entropy_floor": 2.0},
            lambda s, b: (s.cross_entropy + 0.3 * s.missing_entropy) / s.count,
        ),
        ({"l2_b": 0.05}, lambda s, b: s.cross_entropy / s.count + 0.05 * b),
        (
            {"label_smoothing": 0.2, "confidence_penalty": 0.1, "l2_b": 0.01},
            lambda s, b: (s.cross_entropy - 0.1 * s.entropy) / s.count + 0.01 * b,
        ),
    ],
)
def test_objective_is_the_formula(options, formula):
    config = TrainingConfig(**options)
    drawn, weights = draw(8), draw_weights(9)
    sums, losses = reference(*drawn, config), losses_of(*drawn, config)
    square = sum((np.asarray(factors["b"], np.float64) ** 2).sum() for factors in weights["layers"].values())
    np.testing.assert_allclose(objective(losses, weights, config), formula(sums, square), rtol=1e-5)


def gradient_of_penalty(hidden, targets, mask, output, floor: float | None) -> np.ndarray:
    """What a penalty of weight 1 adds to the gradient."""
    penalty = TrainingConfig(confidence_penalty=1.0, entropy_floor=floor)
    with_it, without = (
        np.asarray(gradient_of(hidden, targets, mask, output, config)) for config in (penalty, TrainingConfig())
    )
    return with_it - without


def test_hinge_leaves_distributions_above_the_floor_alone():
    hidden, targets, mask, output = draw(10)
    places = zip(*np.nonzero(mask), strict=True)
    alone = [np.zeros_like(mask) for _ in range(mask.sum())]
    for only, place in zip(alone, places, strict=True):
        only[place] = True
    entropies = [reference(hidden, targets, only, output, TrainingConfig()).entropy for only in alone]
    floor = float(np.median(entropies)) + 1e-3
    gradient = np.abs(gradient_of_penalty(hidden, targets, mask, output, floor))[mask].max(axis=-1)
    np.testing.assert_array_equal(gradient > 1e-5, np.array(entropies) < floor)
    assert 0 < (gradient > 1e-5).sum() < mask.sum()


@pytest.mark.parametrize("floor", [None, 2.3])
def test_penalty_pulls_towards_entropy(floor):
    hidden, targets, mask, output = draw(11)
    moved = hidden - 0.1 * gradient_of_penalty(hidden, targets, mask, output, floor)
    before, after = (losses_of(states, targets, mask, output, TrainingConfig()).entropy for states in (hidden, moved))
    assert after > before


def test_a_batch_of_padding_costs_nothing():
    hidden, targets, mask, output = draw(12)
    config = TrainingConfig(confidence_penalty=0.3)
    losses = losses_of(hidden, targets, np.zeros_like(mask), output, config)
    assert int(losses.count) == 0
    assert float(objective(losses, draw_weights(0), config)) == 0
