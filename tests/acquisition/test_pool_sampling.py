"""Drawn answers of a whole pool: their order, and that batches do not matter."""

import jax
import numpy as np
from random_models import TINY, random_model

from star_jax.acquisition.pool_sampling import sample_pool
from star_jax.acquisition.pools import GeneratedPool
from star_jax.acquisition.uncertainty import MEASURES
from star_jax.data.batching import Shape
from star_jax.inference.sampling import Decoding

SIZE, WIDTH, SAMPLES, END = 7, 3, 4, 1


def test_answers_depend_on_their_prompt_and_its_number_alone(rng):
    model, key, decoding = random_model(rng, TINY), jax.random.key(3), Decoding(SAMPLES, 1.2, 0.95)
    prompts = [rng.integers(2, 11, 1 + number % 4).astype(np.int32) for number in range(SIZE)]
    whole = GeneratedPool(prompts, (Shape(4, 4, 16),), WIDTH, (END,), ())
    found = sample_pool(model, None, whole, key=key, decoding=decoding)
    assert found.responses.shape == (SIZE, SAMPLES, WIDTH)
    assert found.lengths.shape == (SIZE, SAMPLES)
    assert found.measures.keys() == set(MEASURES)
    assert len({row.tobytes() for row in np.asarray(found.responses).reshape(-1, WIDTH)}) > SAMPLES
    tokens = np.asarray(found.measures["response_tokens"])
    np.testing.assert_array_equal(tokens, found.lengths)

    some = sample_pool(model, None, whole, key=key, decoding=decoding, rows=[5, 2])
    np.testing.assert_array_equal(some.responses[np.array([5, 2])], found.responses[np.array([5, 2])])
    np.testing.assert_allclose(some.measures["sequence_nll"][2], found.measures["sequence_nll"][2], atol=1e-5)
    assert np.isnan(np.asarray(some.measures["sequence_nll"])[[0, 1, 3, 4, 6]]).all()
