"""Posteriors over an adapter's factors against plain numpy, float64, and against what they promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import random_adapter

from star_jax.data.batching import Shape
from star_jax.data.tokenization import TokenizedExample
from star_jax.inference.gradients import fisher_diagonal
from star_jax.inference.mc_dropout import DrawnWeights, mc_score_responses, sample_keys
from star_jax.inference.posterior import (
    LOSSES,
    NARROWEST,
    WIDEST,
    GaussianPosterior,
    isotropic_family,
    laplace,
    prior_precision,
    widest,
)
from star_jax.inference.scoring import score_responses
from star_jax.models.lora import Adapter

SHAPES = (Shape(2, 5, 10), Shape(3, 8, 24))


def change(weights, scale, name, layer):
    """ΔW of a projection of a layer."""
    a, b = (np.asarray(weights["layers"][name][factor][layer], np.float64) for factor in "ab")
    return float(scale["layers"][name]["scale"][layer]) * a @ b


def test_the_isotropic_family_has_the_adapter_as_its_mean(small_adapter):
    mean = isotropic_family(small_adapter).mean
    for name in small_adapter.weights["layers"]:
        for layer in range(2):
            want = change(small_adapter.weights, small_adapter.scale, name, layer)
            np.testing.assert_allclose(change(mean.weights, mean.scale, name, layer), want, atol=2e-6)


def test_tfb_noise_has_one_width_in_all_directions_of_b(small_adapter):
    """Covariance of a row of ΔW, by SVD in float64: (scale · width)² on the rows of B, 0 beside them."""
    family, width = isotropic_family(small_adapter), 0.3
    name, layer = "q_proj", 1
    a_deviation = np.asarray(family.deviation["layers"][name]["a"][layer], np.float64) * width
    b = np.asarray(family.mean.weights["layers"][name]["b"][layer], np.float64)
    scale = float(small_adapter.scale["layers"][name]["scale"][layer])
    rows = np.linalg.svd(np.asarray(small_adapter.weights["layers"][name]["b"][layer], np.float64))[2][:3]
    for line in (0, 7):
        covariance = scale**2 * b.T @ np.diag(a_deviation[line] ** 2) @ b
        np.testing.assert_allclose(covariance, (scale * width) ** 2 * rows.T @ rows, atol=1e-5)
    assert not np.asarray(family.deviation["layers"][name]["b"]).any()


def test_a_direction_that_b_lacks_gets_no_noise(small_adapter):
    factors = dict(small_adapter.weights["layers"]["q_proj"])
    factors["b"] = factors["b"].at[0, 2].set(factors["b"][0, 1]).at[1].set(0)
    family = isotropic_family(Adapter({"layers": {"q_proj": factors}}, small_adapter.scale))
    deviation = np.asarray(family.deviation["layers"]["q_proj"]["a"])
    assert (deviation[0] > 0).sum(axis=1).tolist() == [2] * deviation.shape[1]
    assert not deviation[1].any()
    assert np.isfinite(deviation).all()


def test_draws_have_mean_and_deviation(small_adapter):
    """Each entry's mean over 400 draws is normal with deviation s/20; 6 of those miss once in 10⁹ entries."""
    posterior = isotropic_family(small_adapter).scaled(0.1)
    drawn = posterior.draw(jax.random.key(0), 400)
    for name in ("q_proj", "down_proj"):
        for factor in "ab":
            samples = np.asarray(drawn.weights["layers"][name][factor], np.float64)
            mean, deviation = (
                np.asarray(tree["layers"][name][factor]) for tree in (posterior.mean.weights, posterior.deviation)
            )
            assert (np.abs(samples.mean(axis=0) - mean) <= 6 * deviation / 20 + 1e-6).all()
            # (n−1)s²/σ² is χ²: its relative deviation is √(2/399) for the variance.
            ratio = samples.var(axis=0, ddof=1)[deviation > 0] / deviation[deviation > 0] ** 2
            assert (np.abs(ratio - 1) < 7 * np.sqrt(2 / 399)).all()


def test_a_pass_by_drawn_weights_is_a_pass_by_each_of_them(small_model, small_adapter, draw_sequences):
    inputs = draw_sequences(3, 4, 5, 3)
    drawn = isotropic_family(small_adapter).scaled(0.2).draw(jax.random.key(1), 3)
    sampling = DrawnWeights(3)
    keys = sample_keys(jax.random.key(2), jnp.arange(4), sampling)
    got, _ = mc_score_responses(small_model, drawn, inputs, keys, sampling)
    for k in range(3):
        one = Adapter(jax.tree.map(lambda leaf, k=k: leaf[k], drawn.weights), drawn.scale)
        want, _ = score_responses(small_model, one, inputs)
        np.testing.assert_allclose(got.log_prob[k], want.log_prob[0], rtol=1e-4, atol=1e-5)
    assert np.asarray(got.log_prob).std(axis=0).max() > 1e-3


@pytest.mark.parametrize("limit", [3e-5, 0.02, 0.7])
def test_the_search_finds_where_the_loss_has_grown_enough(limit):
    """loss = 2 + (σ/limit)²·0.1 has grown by 5 % at σ = limit."""
    asked = []

    def loss(width):
        asked.append(width)
        return 2 + 0.1 * (width / limit) ** 2

    found = widest(loss, 0.05)
    assert limit / 1.004 < found <= limit * (1 + 1e-9)
    assert len(asked) == LOSSES


def test_the_search_ends_at_its_limits_and_does_not_trust_numbers_that_are_none():
    assert widest(lambda width: 1.0 - width / 2, 0.01) == WIDEST
    assert widest(lambda width: 1.0 if width == 0 else 9.0, 0.01) == pytest.approx(NARROWEST)
    assert widest(lambda width: float("nan") if width > 0.1 else 1.0, 0.01) == pytest.approx(0.1, rel=0.004)


def weights_of(a, b):
    return {"layers": {"q_proj": {"a": jnp.asarray(a, jnp.float32), "b": jnp.asarray(b, jnp.float32)}}}


def test_the_precision_has_the_largest_evidence_on_a_grid(rng):
    a, b = rng.normal(size=(1, 6, 2)), rng.normal(size=(1, 2, 5)) / 3
    fisher = [rng.gamma(0.5, 4.0, one.shape) for one in (a, b)]
    weights, curvature = weights_of(a, b), weights_of(*fisher)
    found = float(prior_precision(weights, curvature, jax.tree.map(lambda leaf: leaf == leaf, weights)))
    theta, f = (np.concatenate([one.ravel() for one in pair]) for pair in ((a, b), fisher))

    def evidence(precision):
        return theta.size / 2 * np.log(precision) - precision / 2 * (theta**2).sum() - np.log(f + precision).sum() / 2

    grid = np.exp(np.linspace(-9, 9, 20001))
    assert found == pytest.approx(grid[np.argmax([evidence(one) for one in grid])], rel=2e-3)


def test_laplace_is_the_inverse_of_curvature_and_prior(rng):
    a, b = rng.normal(size=(2, 6, 2)), rng.normal(size=(2, 2, 5))
    a[1, :, 1], b[1, 1] = 0, 0  # the second layer has rank 1
    fisher = [rng.gamma(0.5, 4.0, one.shape) for one in (a, b)]
    fisher[0][1, :, 1], fisher[1][1, 1] = 0, 0
    adapter = Adapter(weights_of(a, b), {"layers": {"q_proj": {"scale": jnp.ones(2)}}})
    posterior = laplace(adapter, weights_of(*fisher))
    assert isinstance(posterior, GaussianPosterior)
    assert posterior.mean is adapter
    # Without what is not there, the precision is that of the rest alone.
    kept = [
        np.delete(one.reshape(-1), np.flatnonzero(part.reshape(-1) == 0))
        for one, part in zip((a, b), fisher, strict=True)
    ]
    rest = [part[part != 0] for part in fisher]
    precision = 1.0
    for _ in range(500):
        share = sum((part / (part + precision)).sum() for part in rest)
        precision = share / sum((one**2).sum() for one in kept)
    for factor, part in zip("ab", fisher, strict=True):
        got = np.asarray(posterior.deviation["layers"]["q_proj"][factor])
        np.testing.assert_allclose(got, np.where(part == 0, 0, (part + precision) ** -0.5), rtol=1e-4)


def test_the_fisher_diagonal_is_the_mean_square_over_what_the_model_says(rng, small_model, numpy_logits):
    """Of rows with one response token, by enumerating the vocabulary; slopes by differences, float64.

    The mean over n draws of a bounded square is within 6 standard errors, which come from the same enumeration.
    """
    adapter = random_adapter(rng, small_model.config, targets=("q_proj",), rank=1)
    row = TokenizedExample(rng.integers(0, 17, 5).astype(np.int32), 4)
    draws, step = 200, 1e-5
    got = fisher_diagonal(jax.random.key(0), small_model, adapter, [row] * draws, SHAPES)

    def log_probs(entry, by):
        weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64).copy(), dict(adapter.weights))
        weights["layers"]["q_proj"]["b"][1, 0, entry] += by
        logits = numpy_logits(small_model, Adapter(weights, adapter.scale), row.tokens)[3]
        return logits - np.log(np.exp(logits).sum())

    probs = np.exp(log_probs(0, 0.0))
    for entry in (0, 9):
        squares = ((log_probs(entry, step) - log_probs(entry, -step)) / (2 * step)) ** 2
        mean = (probs * squares).sum()
        spread = np.sqrt((probs * (squares - mean) ** 2).sum() / draws)
        found = float(got["layers"]["q_proj"]["b"][1, 0, entry]) / draws
        assert abs(found - mean) <= 6 * spread + 1e-3 * mean


def test_neither_batch_nor_order_changes_what_is_drawn_for_a_row(rng, small_model, small_adapter):
    lengths = [(5, 7), (1, 4), (4, 5), (2, 5)]
    rows = [TokenizedExample(rng.integers(0, 17, whole).astype(np.int32), prompt) for prompt, whole in lengths]
    seen = []
    whole, other = (
        fisher_diagonal(jax.random.key(4), small_model, small_adapter, rows, shapes, seen.append)
        for shapes in (SHAPES, [Shape(4, 8, 32)])
    )
    assert sum(seen) == 2 * len(rows)
    for one, two in zip(jax.tree.leaves(whole), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-5 * float(jnp.max(one)))
