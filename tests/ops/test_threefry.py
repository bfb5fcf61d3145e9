"""Threefry as plain arithmetic against JAX's own."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32

from star_jax.ops.threefry import threefry


def test_words_are_those_of_jax(rng: np.random.Generator) -> None:
    keys, counters = rng.integers(0, 2**32, (2, 2, 40), dtype=np.uint32)
    got = jax.jit(threefry)(tuple(keys), tuple(counters))
    for place in range(40):
        want = threefry_2x32(jnp.asarray(keys[:, place]), jnp.asarray(counters[:, place]))
        assert [int(word[place]) for word in got] == np.asarray(want).tolist()


def test_keys_and_counters_broadcast(rng: np.random.Generator) -> None:
    keys = tuple(rng.integers(0, 2**32, (2, 3, 1), dtype=np.uint32))
    whole = threefry(keys, (np.uint32(7), jnp.arange(5, dtype=jnp.uint32)))
    for row in range(3):
        one = threefry(tuple(key[row] for key in keys), (np.uint32(7), jnp.arange(5, dtype=jnp.uint32)))
        np.testing.assert_array_equal([word[row] for word in whole], one)
