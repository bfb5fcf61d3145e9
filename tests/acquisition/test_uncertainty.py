"""Measures against sums written out token by token, from fresh random distributions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.acquisition.uncertainty import MEASURES, sequence_measures


class Statistics(NamedTuple):
    log_prob: jax.Array
    entropy: jax.Array
    max_log_prob: jax.Array
    margin: jax.Array
    mixture_entropy: jax.Array


def draw(seed: int, samples: int, batch: int = 4, width: int = 6, vocabulary: int = 5):
    """Token distributions `K×B×R×V`, tokens `B×R` and a mask with an empty row."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(vocabulary, 0.5), size=(samples, batch, width))
    tokens = rng.integers(vocabulary, size=(batch, width))
    lengths = np.array([width, 3, 1, 0])
    return probs, tokens, np.arange(width) < lengths[:, None]


def entropy_of(probs):
    return -sum(p * np.log(p) for p in probs if p > 0)


def statistics_of(probs, tokens, mask):
    samples, batch, width, _ = probs.shape
    fields = [np.zeros((samples, batch, width)) for _ in range(4)] + [np.zeros((batch, width))]
    for b, r in zip(*np.nonzero(mask), strict=True):
        for k in range(samples):
            best, second = sorted(probs[k, b, r])[::-1][:2]
            values = (np.log(probs[k, b, r, tokens[b, r]]), entropy_of(probs[k, b, r]), np.log(best), best - second)
            for field, value in zip(fields, values, strict=False):
                field[k, b, r] = value
        fields[4][b, r] = entropy_of(probs[:, b, r].mean(axis=0))
    return Statistics(*(jnp.asarray(field, jnp.float32) for field in fields))


def reference(probs, tokens, mask):
    """Every measure of one row at a time, over its response tokens only."""
    samples, batch = probs.shape[:2]
    names = {name: np.zeros(batch) for name in MEASURES}
    for b in range(batch):
        positions = np.flatnonzero(mask[b])
        names["response_tokens"][b] = len(positions)
        if not len(positions):
            continue
        reductions = (("", np.sum), ("_mean", np.mean), ("_max", np.max))
        for suffix, reduce in reductions:
            for k in range(samples):
                rows = [probs[k, b, r] for r in positions]
                chosen = [probs[k, b, r, tokens[b, r]] for r in positions]
                names["sequence_nll" + suffix][b] += reduce(-np.log(chosen)) / samples
                names["token_entropy" + suffix][b] += reduce([entropy_of(row) for row in rows]) / samples
                names["least_confidence" + suffix][b] += reduce([1 - max(row) for row in rows]) / samples
                gaps = [1 - (np.sort(row)[-1] - np.sort(row)[-2]) for row in rows]
                names["margin" + suffix][b] += reduce(gaps) / samples
            information = [
                entropy_of(probs[:, b, r].mean(axis=0)) - np.mean([entropy_of(probs[k, b, r]) for k in range(samples)])
                for r in positions
            ]
            names["bald" + suffix][b] = reduce(information)
        likelihood = [np.prod([probs[k, b, r, tokens[b, r]] for r in positions]) for k in range(samples)]
        names["jensen_gap"][b] = np.mean(-np.log(likelihood)) + np.log(np.mean(likelihood))
    return names


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_equal_sums_written_out(samples: int) -> None:
    drawn = draw(samples, samples)
    got = sequence_measures(statistics_of(*drawn), jnp.asarray(drawn[2]))
    want = reference(*drawn)
    assert tuple(got) == MEASURES
    for name in MEASURES:
        assert got[name].shape == (4,), name
        np.testing.assert_allclose(got[name], want[name], rtol=2e-5, atol=2e-6, err_msg=name)


def test_masked_positions_do_not_count() -> None:
    drawn = draw(7, 3)
    mask = jnp.asarray(drawn[2])
    clean = statistics_of(*drawn)
    dirty = jax.tree.map(lambda leaf: jnp.where(mask, leaf, jnp.nan), clean)
    for name, values in sequence_measures(dirty, mask).items():
        np.testing.assert_array_equal(values, sequence_measures(clean, mask)[name], err_msg=name)


def test_one_sample_has_no_disagreement_whatever_the_rounding() -> None:
    drawn = draw(11, 1)
    statistics = statistics_of(*drawn)
    statistics = statistics._replace(mixture_entropy=statistics.mixture_entropy + 1e-3)
    got = sequence_measures(statistics, jnp.asarray(drawn[2]))
    for name in ("bald", "bald_mean", "bald_max", "jensen_gap"):
        assert (np.asarray(got[name]) == 0).all()


def test_disagreement_is_never_negative() -> None:
    probs, tokens, mask = draw(13, 1)
    same = np.repeat(probs, 4, axis=0)
    statistics = statistics_of(same, tokens, mask)
    statistics = statistics._replace(mixture_entropy=statistics.mixture_entropy * (1 - 1e-6))
    got = sequence_measures(statistics, jnp.asarray(mask))
    for name in ("bald", "bald_mean", "bald_max", "jensen_gap"):
        assert (np.asarray(got[name]) >= 0).all()
        np.testing.assert_allclose(got[name], 0, atol=1e-5)


def test_long_responses_do_not_overflow_the_jensen_gap() -> None:
    log_prob = jnp.full((2, 1, 400), -5.0).at[1].add(-1.0)  # sequence probabilities far below float32
    zeros = jnp.zeros_like(log_prob)
    statistics = Statistics(log_prob, zeros, zeros, zeros, zeros[0])
    gap = sequence_measures(statistics, jnp.ones((1, 400), bool))["jensen_gap"]
    np.testing.assert_allclose(gap, 200 - np.log(2), rtol=1e-6)


def test_jit_changes_nothing() -> None:
    drawn = draw(17, 3)
    statistics, mask = statistics_of(*drawn), jnp.asarray(drawn[2])
    jitted = jax.jit(sequence_measures)(statistics, mask)
    for name, values in sequence_measures(statistics, mask).items():
        np.testing.assert_allclose(jitted[name], values, rtol=1e-6, atol=1e-6, err_msg=name)


def test_shapes_are_checked() -> None:
    drawn = draw(19, 2)
    statistics, mask = statistics_of(*drawn), jnp.asarray(drawn[2])
    with pytest.raises(AssertionError):
        sequence_measures(statistics, mask[:, :-1])
    with pytest.raises(AssertionError):
        sequence_measures(statistics._replace(margin=statistics.margin[:1]), mask)
    with pytest.raises(AssertionError):
        sequence_measures(statistics, mask.astype(jnp.float32))
