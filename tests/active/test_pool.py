import jax.numpy as jnp
import numpy as np

from star_jax.active.pool import SKIPPED, UNLABELLED, available, init_pool, label, skip


def test_labelling_moves_examples_and_remembers_the_round():
    pool = init_pool(6)
    assert np.asarray(available(pool)).all()
    pool = label(label(pool, jnp.array([1, 4]), 0), jnp.array([5]), 1)
    np.testing.assert_array_equal(pool.labelled_in, [UNLABELLED, 0, UNLABELLED, UNLABELLED, 0, 1])
    np.testing.assert_array_equal(available(pool), [True, False, True, True, False, False])


def test_what_is_skipped_is_neither_labelled_nor_available():
    pool = skip(label(init_pool(4), jnp.array([2, 0]), 3), jnp.array([0]))
    np.testing.assert_array_equal(pool.labelled_in, [SKIPPED, UNLABELLED, 3, UNLABELLED])
    np.testing.assert_array_equal(available(pool), [False, True, False, True])
