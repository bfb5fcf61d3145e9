"""Selection against sorting by hand, and its noise against the distribution it claims."""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.acquisition.selection import power, top_k, uniform


@pytest.mark.parametrize("seed", range(5))
def test_top_k_breaks_ties_by_index(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(-3, 4, 30).astype(np.float32)
    available = rng.random(30) < 0.6
    count = int(available.sum())
    want = sorted(np.flatnonzero(available), key=lambda i: (-scores[i], i))
    for size in (0, 1, count // 2, count):
        got = top_k(jnp.asarray(scores), jnp.asarray(available), size)
        assert got.dtype == jnp.int32
        assert got.tolist() == want[:size]


def test_top_k_puts_no_score_before_availability() -> None:
    scores = jnp.asarray([jnp.inf, -jnp.inf, jnp.nan, 1.0, -0.0, 0.0])
    available = jnp.asarray([False, True, False, True, True, True])
    assert top_k(scores, available, 4).tolist() == [3, 4, 5, 1]


def test_count_is_checked() -> None:
    with pytest.raises(ValueError, match="cannot pick 4 of 3"):
        top_k(jnp.zeros(3), jnp.ones(3, bool), 4)
    with pytest.raises(AssertionError):
        top_k(jnp.zeros(3), jnp.ones(4, bool), 1)


def plackett_luce(weights: np.ndarray, count: int) -> dict[tuple[int, ...], float]:
    """Probability of every ordered draw without replacement."""
    table = {}
    for order in itertools.permutations(range(len(weights)), count):
        left, probability = weights.sum(), 1.0
        for i in order:
            probability *= weights[i] / left
            left -= weights[i]
        table[order] = probability
    return table


def draw_each(draw: Callable[[jax.Array], jax.Array], keys: jax.Array) -> np.ndarray:
    """What every key draws, as one program."""
    return np.asarray(jax.jit(jax.vmap(draw))(keys))


def frequencies(draws: np.ndarray) -> dict[tuple[int, ...], float]:
    rows, counts = np.unique(draws, axis=0, return_counts=True)
    return {tuple(row): count / len(draws) for row, count in zip(rows.tolist(), counts, strict=True)}


def assert_same_distribution(draws: np.ndarray, table: dict[tuple[int, ...], float]) -> None:
    seen = frequencies(draws)
    assert set(seen) <= {order for order, probability in table.items() if probability > 0}
    for order, probability in table.items():
        error = np.sqrt(probability * (1 - probability) / len(draws))
        assert abs(seen.get(order, 0) - probability) < 5 * error + 1e-9


@pytest.mark.parametrize(
    ("scores", "coldness", "weights"),
    [
        ([1.0, 2.0, 5.0], 1.0, [1, 2, 5]),
        ([1.0, 2.0, 5.0], 2.0, [1, 4, 25]),
        ([-1.0, 0.0, 2.0], 1.0, [0, 1, 3]),  # shifted so that the least is 0
    ],
)
def test_power_draws_in_proportion(scores: list[float], coldness: float, weights: list[float]) -> None:
    available = jnp.asarray([True, False, True, True])
    padded = jnp.asarray([scores[0], -100.0, *scores[1:]])
    keys = jax.random.split(jax.random.key(3), 8000)
    draws = draw_each(lambda key: power(key, padded, available, 2, coldness), keys)
    table = plackett_luce(np.asarray(weights, float), 2)
    places = (0, 2, 3)
    assert_same_distribution(draws, {(places[i], places[j]): p for (i, j), p in table.items()})


def test_power_gets_colder_and_warmer() -> None:
    scores = jnp.asarray(np.random.default_rng(0).permutation(20) + 1.0)
    available = jnp.ones(20, bool)
    key = jax.random.key(0)
    for coldness in (1e4, 1e30):
        assert power(key, scores, available, 20, coldness).tolist() == top_k(scores, available, 20).tolist()
    nothing = jnp.zeros(20)
    keys = jax.random.split(key, 6000)
    draws = draw_each(lambda key: power(key, nothing[:3], available[:3], 3, 2.0), keys)
    assert_same_distribution(draws, plackett_luce(np.ones(3), 3))


@pytest.mark.parametrize("coldness", [0.01, 1.0, 100.0, 1e7])
def test_power_leaves_zeros_for_last(coldness: float) -> None:
    scores = jnp.asarray([0.0, 1e-3, 0.0, 1.0, 50.0, 0.0])
    keys = jax.random.split(jax.random.key(1), 200)
    draws = draw_each(lambda key: power(key, scores, jnp.ones(6, bool), 6, coldness), keys)
    assert (np.sort(draws[:, :3]) == [1, 3, 4]).all()
    assert len(np.unique(draws[:, 3:], axis=0)) == 6


def test_uniform_is_uniform() -> None:
    available = jnp.asarray([True, True, False, True])
    keys = jax.random.split(jax.random.key(5), 6000)
    draws = draw_each(lambda key: uniform(key, available, 2), keys)
    places = (0, 1, 3)
    table = plackett_luce(np.ones(3), 2)
    assert_same_distribution(draws, {(places[i], places[j]): p for (i, j), p in table.items()})


def test_noise_does_not_depend_on_the_size_of_the_pool() -> None:
    key = jax.random.key(9)
    scores = jnp.asarray(np.random.default_rng(1).random(25), jnp.float32)
    few, many = jnp.ones(25, bool), jnp.pad(jnp.ones(25, bool), (0, 40))
    padded = jnp.pad(scores, (0, 40), constant_values=jnp.nan)
    assert uniform(key, few, 10).tolist() == uniform(key, many, 10).tolist()
    assert power(key, scores, few, 10, 1.0).tolist() == power(key, padded, many, 10, 1.0).tolist()
