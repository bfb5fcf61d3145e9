"""Losses against sums written out token by token in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.config import TrainingConfig
from star_jax.data.batching import Limits, Row, pack
from star_jax.models import head
from star_jax.models.sequences import SequenceInputs, response_mask, response_targets
from star_jax.training.losses import TokenLosses, b_square, objective, token_losses

BATCH, WIDTH, FEATURES, VOCABULARY = 4, 5, 7, 11


def draw(seed: int):
    """States, targets, a ragged mask with a row of padding, and an output projection."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(BATCH, WIDTH, FEATURES)).astype(np.float32)
    targets = rng.integers(VOCABULARY, size=(BATCH, WIDTH)).astype(np.int32)
    mask = np.arange(WIDTH) < np.array([WIDTH, 3, 1, 0])[:, None]
    return hidden, targets, mask, head.OutputHead(rng.normal(size=(VOCABULARY, FEATURES)).astype(np.float32))


def reference(hidden, targets, mask, output, smoothing: float = 0.0, floor: float | None = None) -> TokenLosses:
    cross_entropy = entropy = missing = count = 0.0
    for b, r in zip(*np.nonzero(mask), strict=True):
        scores = output.weight.astype(np.float64) @ hidden[b, r].astype(np.float64)
        probs = np.exp(scores) / np.exp(scores).sum()
        wanted = np.full(VOCABULARY, smoothing / VOCABULARY)
        wanted[targets[b, r]] += 1 - smoothing
        own = -sum(p * np.log(p) for p in probs)
        cross_entropy -= sum(q * np.log(p) for q, p in zip(wanted, probs, strict=True))
        entropy += own
        missing += 0.0 if floor is None else max(0.0, floor - own)
        count += 1
    return TokenLosses(cross_entropy, entropy, missing, count)


@pytest.mark.parametrize(("smoothing", "floor"), [(0.0, None), (0.1, None), (0.0, 1.2), (0.3, 2.0)])
def test_sums_equal_those_written_out(smoothing, floor):
    drawn = draw(1)
    got = token_losses(*jax.tree.map(jnp.asarray, drawn), label_smoothing=smoothing, entropy_floor=floor)
    want = reference(*drawn, smoothing, floor)
    for name in ("cross_entropy", "entropy", "missing_entropy", "count"):
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), rtol=1e-5, atol=1e-6, err_msg=name)
    assert jnp.issubdtype(got.count.dtype, jnp.integer)
    if floor is not None:
        assert want.missing_entropy > 0  # else the hinge would go untested


def test_chunks_of_positions_change_neither_sums_nor_gradient(monkeypatch):
    hidden, targets, mask, output = jax.tree.map(jnp.asarray, draw(2))

    def total(states):
        losses = token_losses(states, targets, mask, output, label_smoothing=0.1, entropy_floor=2.0)
        return losses.cross_entropy + 0.7 * losses.entropy + 0.2 * losses.missing_entropy

    value, gradient = jax.jit(jax.value_and_grad(total))(hidden)
    monkeypatch.setattr(head, "CHUNK_ELEMENTS", 3 * VOCABULARY)  # 20 positions: six chunks and a rest
    chunked, chunked_gradient = jax.jit(jax.value_and_grad(total))(hidden)
    np.testing.assert_allclose(chunked, value, rtol=1e-6)
    np.testing.assert_allclose(chunked_gradient, gradient, rtol=1e-5, atol=1e-6)


def test_masked_positions_and_padding_rows_contribute_nothing():
    hidden, targets, mask, output = draw(3)
    other_hidden, other_targets, _, _ = draw(4)
    changed = np.where(mask[..., None], hidden, other_hidden), np.where(mask, targets, other_targets)
    options = {"label_smoothing": 0.1, "entropy_floor": 1.5}
    one = token_losses(hidden, targets, mask, output, **options)
    other = token_losses(*changed, mask, output, **options)
    jax.tree.map(np.testing.assert_array_equal, one, other)
    gradient = jax.grad(lambda states: token_losses(states, targets, mask, output, **options).cross_entropy)(hidden)
    assert (np.asarray(gradient)[~mask] == 0).all()
    assert (np.abs(gradient)[mask].max(axis=-1) > 0).all()


def test_end_of_sequence_is_part_of_the_response():
    limits, eos = Limits(4, WIDTH), 9
    rows = [Row(np.array([1, 2, 3, 4, 5, eos]), 3), Row(np.array([6, eos]), 1)]
    batch = pack(rows, range(2), limits, BATCH)
    inputs = SequenceInputs(batch.tokens, batch.prompt_lengths, batch.lengths)
    mask, targets = response_mask(inputs, WIDTH), response_targets(inputs, WIDTH)
    np.testing.assert_array_equal(mask.sum(axis=1), [3, 1, 0, 0])
    assert targets[0, :3].tolist() == [4, 5, eos]
    assert int(targets[1, 0]) == eos

    hidden, _, _, output = draw(5)
    whole = token_losses(hidden, targets, mask, output)
    only_eos = np.array(mask) & (np.asarray(targets) == eos)
    rest = token_losses(hidden, targets, np.array(mask) & ~only_eos, output)
    last = reference(hidden, np.asarray(targets), only_eos, output)
    assert int(whole.count) == 4
    np.testing.assert_allclose(whole.cross_entropy - rest.cross_entropy, last.cross_entropy, rtol=1e-5)


def test_extreme_logits_stay_finite():
    hidden, targets, mask, output = draw(6)
    steep = head.OutputHead(1e4 * output.weight)
    losses = token_losses(hidden, targets, mask, steep)
    assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(losses))
    np.testing.assert_allclose(losses.entropy, 0, atol=1e-6)  # 0 · log 0 = 0
    gradient = jax.grad(lambda states: token_losses(states, targets, mask, steep).entropy)(hidden)
    assert np.isfinite(gradient).all()


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
    sums = reference(*drawn, config.label_smoothing, config.entropy_floor)
    losses = token_losses(*drawn, label_smoothing=config.label_smoothing, entropy_floor=config.entropy_floor)
    square = sum((np.asarray(factors["b"], np.float64) ** 2).sum() for factors in weights["layers"].values())
    np.testing.assert_allclose(objective(losses, weights, config), formula(sums, square), rtol=1e-5)


def test_hinge_leaves_distributions_above_the_floor_alone():
    hidden, targets, mask, output = draw(10)

    def penalty(states, floor):
        config = TrainingConfig(confidence_penalty=1.0, entropy_floor=floor)
        losses = token_losses(states, targets, mask, output, entropy_floor=floor)
        return objective(losses.replace(cross_entropy=0.0), draw_weights(0), config)

    places = zip(*np.nonzero(mask), strict=True)
    alone = [np.zeros_like(mask) for _ in range(mask.sum())]
    for only, place in zip(alone, places, strict=True):
        only[place] = True
    entropies = [reference(hidden, targets, only, output).entropy for only in alone]
    floor = float(np.median(entropies)) + 1e-3
    gradient = np.abs(jax.grad(penalty)(hidden, floor))[mask].max(axis=-1)
    np.testing.assert_array_equal(gradient > 0, np.array(entropies) < floor)
    assert 0 < (gradient > 0).sum() < mask.sum()


@pytest.mark.parametrize("floor", [None, 2.3])
def test_penalty_pulls_towards_entropy(floor):
    hidden, targets, mask, output = draw(11)
    config = TrainingConfig(confidence_penalty=1.0, entropy_floor=floor)

    def penalty(states):
        losses = token_losses(states, targets, mask, output, entropy_floor=floor)
        return objective(losses.replace(cross_entropy=0.0), draw_weights(0), config)

    moved = hidden - 0.1 * jax.grad(penalty)(hidden)
    before, after = (token_losses(states, targets, mask, output).entropy for states in (hidden, moved))
    assert after > before


def test_a_batch_of_padding_costs_nothing():
    hidden, targets, mask, output = draw(12)
    losses = token_losses(hidden, targets, np.zeros_like(mask), output)
    assert int(losses.count) == 0
    assert float(objective(losses, draw_weights(0), TrainingConfig(confidence_penalty=0.3))) == 0
