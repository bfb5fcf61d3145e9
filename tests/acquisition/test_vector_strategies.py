"""The strategies that see vectors: the contract, what they need, and which function they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_distances import largest

from star_jax.acquisition import vector_strategies
from star_jax.acquisition.needs import Embedding, GradientSketch, Measure, Targets
from star_jax.acquisition.scores import ByScore, Length, Power
from star_jax.acquisition.settings import shape_of
from star_jax.acquisition.strategy import Query, get_strategy, pick
from star_jax.config import AcquisitionConfig
from star_jax.registry import STRATEGIES
from star_jax.testing import check_strategy

EMBEDDING, GRADIENT = Embedding(projection=256), GradientSketch(width=512)
WEIGHTED = Embedding(pooling="weighted", projection=256)
NEEDS = {
    "k_center": (EMBEDDING,),
    "typiclust": (EMBEDDING,),
    "facility_location": (EMBEDDING,),
    "log_det": (EMBEDDING,),
    "badge": (GRADIENT,),
    "expected_gradient_length": (GRADIENT,),
    "huds": (Measure("sequence_nll_mean"), EMBEDDING),
    "task_diversity": (Measure("least_confidence_mean", "base"), EMBEDDING),
    "uncertain_then_diverse": (Measure("token_entropy"), EMBEDDING),
    "rds_plus": (WEIGHTED, Targets(WEIGHTED)),
    "sift": (EMBEDDING, Targets(EMBEDDING)),
}
DRAWS = {"badge", "typiclust", "task_diversity"}
"""Those that draw from the key in a small pool."""

every_strategy = pytest.mark.parametrize("name", NEEDS)


def test_these_are_all_there_are():
    own = {name for name in STRATEGIES.names() if STRATEGIES.get(name).__module__ == vector_strategies.__name__}
    assert own == set(NEEDS)


@every_strategy
def test_the_contract(name):
    check_strategy(name, draws=name in DRAWS)


@every_strategy
def test_entries_hang_together(name):
    strategy = get_strategy(name)
    assert strategy.name == name
    assert strategy.description
    assert get_strategy(name) is strategy
    assert strategy.needs == NEEDS[name]


@every_strategy
def test_no_array_holds_all_pairs_of_a_large_pool(name):
    """The largest is the vectors, or the vectors with what fills up their last block."""
    size, strategy = 20_000, get_strategy(name)
    features = [jax.ShapeDtypeStruct(shape_of(need, size), jnp.float32) for need in strategy.needs]
    unlabelled = jax.ShapeDtypeStruct((size,), bool)

    def program(features, unlabelled):
        return pick(strategy, jax.random.key(0), features, unlabelled, Query(0, 1, 500))

    most = max(np.prod(feature.shape) for feature in features)
    assert most < size * size / 20
    assert largest(jax.make_jaxpr(program)(features, unlabelled).jaxpr) <= 1.1 * most


@pytest.mark.parametrize("name", ["k_center", "typiclust", "facility_location", "log_det"])
def test_where_the_embeddings_lie_does_not_matter(name, rng):
    """What all prompts have in common is taken away."""
    points = rng.normal(size=(40, 256)).astype(np.float32)
    unlabelled = jnp.asarray(rng.random(40) < 0.7)
    strategy, picks = get_strategy(name), []
    for moved in (points, points + np.float32(10)):
        picks.append(pick(strategy, jax.random.key(0), [jnp.asarray(moved)], unlabelled, Query(0, 1, 6))[0].tolist())
    assert picks[0] == picks[1]


def test_settings_replace_a_part_where_there_is_one(rng):
    options = AcquisitionConfig(selection="power", power=2.0, reduction="mean")
    assert get_strategy("expected_gradient_length", options).pick == ByScore(Length(GRADIENT), Power(2.0))
    assert get_strategy("uncertain_then_diverse", options).needs[0] == Measure("token_entropy_mean")
    assert get_strategy("k_center", options).pick == get_strategy("k_center").pick


def test_the_longest_gradients_come_first(rng):
    sketches = rng.normal(size=(20, 512)).astype(np.float32)
    sketches[3] = np.nan
    unlabelled = np.ones(20, bool)
    unlabelled[[3, 5]] = False
    strategy = get_strategy("expected_gradient_length")
    picks, scores = pick(strategy, jax.random.key(0), [jnp.asarray(sketches)], jnp.asarray(unlabelled), Query(0, 1, 4))
    left = np.flatnonzero(unlabelled)
    lengths = np.linalg.norm(sketches, axis=1)
    assert picks.tolist() == sorted(left, key=lambda place: -lengths[place])[:4]
    np.testing.assert_allclose(np.asarray(scores)[left], lengths[left], rtol=1e-5)


def test_what_a_query_does_not_offer_is_not_labelled(rng):
    """From a part of a pool, k-center picks as if there were nothing but that part and what is labelled."""
    strategy, query = get_strategy("k_center"), Query(jnp.asarray(1), 4, 5)
    vectors, labelled = rng.normal(size=(40, 256)).astype(np.float32), np.arange(40) < 4
    offered = ~labelled & (rng.random(40) < 0.6)

    def picks(places, taken):
        unlabelled, known = (jnp.asarray(mask[places]) for mask in (offered, taken))
        return np.asarray(pick(strategy, jax.random.key(0), [vectors[places]], unlabelled, query, known)[0])

    everything, part = np.arange(40), np.flatnonzero(offered | labelled)
    got = picks(everything, labelled)
    np.testing.assert_array_equal(got, part[picks(part, labelled)])
    assert set(got.tolist()) != set(picks(everything, ~offered).tolist())
