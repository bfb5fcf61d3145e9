"""Attention against loops over rows, heads, queries and keys; rotary positions against complex numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.models.attention import attend, rotary_angles, rotate


def attend_by_loops(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, query_positions: np.ndarray, key_positions: np.ndarray
) -> np.ndarray:
    batch, length, heads, width = query.shape
    out = np.full(query.shape, np.nan)
    for row in range(batch):
        for head in range(heads):
            group = head // (heads // key.shape[2])
            for i in range(length):
                seen = [j for j in range(key.shape[1]) if 0 <= key_positions[row, j] <= query_positions[row, i]]
                if not seen:
                    continue
                scores = np.asarray([query[row, i, head] @ key[row, j, group] for j in seen]) / np.sqrt(width)
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


def test_rotation_is_a_product_of_complex_numbers(rng: np.random.Generator) -> None:
    width, theta = 10, float(rng.uniform(50, 20000))
    x = rng.normal(size=(2, 7, 3, width))
    positions = rng.integers(0, 200, (2, 7))
    got = rotate(jnp.asarray(x), rotary_angles(jnp.asarray(positions), width, theta))
    for i in range(width // 2):
        turn = np.exp(1j * positions * theta ** (-2 * i / width))
        want = (x[..., i] + 1j * x[..., i + width // 2]) * turn[..., None]
        np.testing.assert_allclose(got[..., i], want.real, atol=1e-4)
        np.testing.assert_allclose(got[..., i + width // 2], want.imag, atol=1e-4)


def test_rotated_products_depend_on_the_distance_alone(rng: np.random.Generator) -> None:
    query, key = rng.normal(size=(2, 1, 1, 1, 8))
    here, there, shift = rng.integers(0, 50, 3)

    def product(i: int, j: int) -> float:
        angles = [rotary_angles(jnp.full((1, 1), place), 8, 100.0) for place in (i, j)]
        return float(jnp.sum(rotate(jnp.asarray(query), angles[0]) * rotate(jnp.asarray(key), angles[1])))

    assert product(here, there) == pytest.approx(product(here + shift, there + shift), abs=1e-4)


def test_rotation_keeps_the_type() -> None:
    angles = rotary_angles(jnp.arange(3)[None], 4, 100.0)
    assert angles[0].dtype == jnp.float32
    assert rotate(jnp.ones((1, 3, 2, 4), jnp.bfloat16), angles).dtype == jnp.bfloat16
