"""Attention against loops over rows, heads, queries and keys."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.models.attention import attend


def attend_by_loops(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    query_positions: np.ndarray,
    key_positions: np.ndarray,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> np.ndarray:
    batch, length, heads, width = query.shape
    out = np.full(query.shape, np.nan)
    for row in range(batch):
        for head in range(heads):
            group = head // (heads // key.shape[2])
            for i in range(length):
                here = query_positions[row, i]
                first = 0 if window is None else max(0, here - window + 1)
                seen = [j for j in range(key.shape[1]) if first <= key_positions[row, j] <= here]
                if not seen:
                    continue
                scores = np.asarray([query[row, i, head] @ key[row, j, group] for j in seen])
                scores = scores / np.sqrt(width) if scale is None else scores * scale
                scores = scores if softcap is None else softcap * np.tanh(scores / softcap)
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                out[row, i, head] = sum(weight * value[row, j, group] for weight, j in zip(weights, seen, strict=True))
    return out


def random_inputs(
    rng: np.random.Generator, groups: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    query = 3 * rng.normal(size=(3, 5, 4, 6))
    key, value = rng.normal(size=(2, 3, 8, groups, 6))
    key_positions = np.stack([rng.permutation([0, 1, 2, 3, 4, 5, -1, -1]) for _ in range(3)])
    query_positions = rng.integers(0, 7, (3, 5))
    query_positions[rng.random((3, 5)) < 0.2] = -1
    return query, key, value, query_positions, key_positions


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attention_equals_loops(rng: np.random.Generator, groups: int) -> None:
    inputs = random_inputs(rng, groups)
    want = attend_by_loops(*inputs)
    got = np.asarray(jax.jit(attend)(*(jnp.asarray(part) for part in inputs)))
    assert np.isfinite(got).all()
    blind = inputs[3] < 0
    assert (np.isnan(want).all((-1, -2)) == blind).all()
    np.testing.assert_allclose(got[~blind], want[~blind], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"scale": 0.7},
        {"window": 1},
        {"window": 3},
        {"softcap": 0.8},
        {"scale": 0.3, "window": 2, "softcap": 1.5},
    ],
)
def test_scale_window_and_softcap_equal_loops(rng: np.random.Generator, options: dict[str, float]) -> None:
    inputs = random_inputs(rng, 2)
    want = attend_by_loops(*inputs, **options)
    arrays = [jnp.asarray(part) for part in inputs]
    traced = {"window": jnp.asarray(options["window"])} if "window" in options else {}
    got = np.asarray(jax.jit(partial(attend, **options | traced))(*arrays))
    assert np.isfinite(got).all()
    # A window may leave nothing to see where the positions in it are held by no key.
    sighted = ~np.isnan(want).any((-1, -2))
    np.testing.assert_allclose(got[sighted], want[sighted], rtol=1e-4, atol=1e-5)
    without = attend_by_loops(*inputs)
    assert np.abs(want - without)[sighted].max() > 0.01


def test_a_window_as_long_as_the_sequence_changes_nothing(rng: np.random.Generator) -> None:
    arrays = [jnp.asarray(part) for part in random_inputs(rng, 2)]
    windows = (7, np.iinfo(np.int32).max)
    want = attend(*arrays)
    for window in windows:
        np.testing.assert_array_equal(attend(*arrays, window=jnp.asarray(window)), want)


def test_softmax_survives_large_scores(rng: np.random.Generator) -> None:
    query, key, value, query_positions, key_positions = random_inputs(rng, 2)
    inputs = (1e4 * query, key, value, query_positions, key_positions)
    got = np.asarray(jax.jit(attend)(*(jnp.asarray(part) for part in inputs)))
    seen = query_positions >= 0
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[seen], attend_by_loops(*inputs)[seen], rtol=1e-2, atol=1e-2)


def test_bfloat16_stays_bfloat16_and_close(rng: np.random.Generator) -> None:
    query, key, value, query_positions, key_positions = random_inputs(rng, 2)
    narrow = [jnp.asarray(part, jnp.bfloat16) for part in (query, key, value)]
    places = (jnp.asarray(query_positions), jnp.asarray(key_positions))
    got = jax.jit(attend)(*narrow, *places)
    assert got.dtype == jnp.bfloat16
    want = attend_by_loops(*(np.asarray(part, np.float64) for part in narrow), query_positions, key_positions)
    seen = query_positions >= 0
    np.testing.assert_allclose(np.asarray(got, np.float64)[seen], want[seen], atol=0.05)
