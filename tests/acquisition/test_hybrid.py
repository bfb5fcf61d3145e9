"""Uncertain and diverse batches, against plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.acquisition import hybrid
from star_jax.acquisition.clustering import Slots, k_means
from star_jax.acquisition.diversity import Points, k_center
from star_jax.acquisition.hybrid import STRATA, UncertainThenDiverse, by_task, huds
from star_jax.acquisition.needs import Embedding, Group, Measure
from star_jax.acquisition.scores import Value
from star_jax.acquisition.strategy import PoolFeatures, Query, get_strategy
from star_jax.testing import check_strategy

MEASURE, VECTOR = Measure("token_entropy"), Embedding(projection=4)


def pool(rng, size=60):
    vectors = rng.normal(size=(size, 4)).astype(np.float32)
    uncertainty = rng.random(size).astype(np.float32)
    free = rng.random(size) < 0.8
    uncertainty[~free] = np.nan
    return vectors, uncertainty, free


def test_uncertain_then_diverse_is_k_center_among_the_most_uncertain(rng):
    vectors, uncertainty, free = pool(rng)
    features = PoolFeatures(jnp.asarray(free), {MEASURE: jnp.asarray(uncertainty), VECTOR: jnp.asarray(vectors)})
    got = UncertainThenDiverse(Value(MEASURE), VECTOR, k_center, 3)(jax.random.key(0), features, Query(0, 1, 5))
    # A loop over pairs: the 15 most uncertain, and always the one farthest from what is labelled or picked.
    kept = sorted(np.flatnonzero(free), key=lambda place: -uncertainty[place])[:15]
    centres, want = np.flatnonzero(~free).tolist(), []
    for _ in range(5):
        gaps = {one: min(np.linalg.norm(vectors[one] - vectors[two]) for two in centres + want) for one in kept}
        want.append(max(kept, key=gaps.__getitem__))
    assert got.indices.tolist() == want
    np.testing.assert_array_equal(got.scores, np.where(free, uncertainty, 0))


def test_uncertain_then_diverse_takes_all_that_is_left(rng):
    vectors, uncertainty, free = pool(rng, 30)
    features = PoolFeatures(jnp.asarray(free), {MEASURE: jnp.asarray(uncertainty), VECTOR: jnp.asarray(vectors)})
    pick = UncertainThenDiverse(Value(MEASURE), VECTOR, k_center, 10)
    got = pick(jax.random.key(0), features, Query(0, 1, int(free.sum())))
    assert sorted(got.indices.tolist()) == np.flatnonzero(free).tolist()


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_huds_scores(rng, monkeypatch, weight):
    """Strata of equal size by uncertainty; k-means, which has its own test, in each; both parts on [0, 1]."""
    monkeypatch.setattr(hybrid, "MEMBERS", 5)
    jax.clear_caches()
    vectors, uncertainty, free = pool(rng)
    points = Points(jnp.asarray(vectors), jnp.asarray(~free), jnp.asarray(free))
    got = np.asarray(huds(jax.random.key(2), jnp.asarray(uncertainty), points, weight))
    # 1. Strata.
    order = sorted(np.flatnonzero(free), key=lambda place: -uncertainty[place])
    strata = np.full(60, STRATA)
    for rank, place in enumerate(order):
        strata[place] = rank * STRATA // len(order)
    # 2. Distances to the centres of the clusters of each.
    used = int(free.sum()) // (STRATA * 5)
    owners = [stratum if number < used else -1 for stratum in range(STRATA) for number in range(hybrid.CLUSTERS)]
    slots = Slots(jnp.asarray(strata, jnp.int32), jnp.asarray([*owners, STRATA], jnp.int32))
    assignment = np.asarray(k_means(jax.random.key(2), points.vectors, slots).assignment)
    distance = np.zeros(60)
    for place in order:
        distance[place] = np.linalg.norm(vectors[place] - vectors[assignment == assignment[place]].mean(axis=0))
    # 3. The blend.
    scaled = [(part - part[order].min()) / np.ptp(part[order]) for part in (uncertainty, distance)]
    want = weight * scaled[0] + (1 - weight) * scaled[1]
    np.testing.assert_allclose(got[order], want[order], rtol=1e-3, atol=1e-4)
    assert (got[~free] == 0).all()
    jax.clear_caches()


def test_tasks_get_labels_in_inverse_proportion_to_confidence(rng):
    """One label after the other, each to the task with the largest weight over its labels with it. Some of what is not
    free has no label either: a query may score a part of the pool."""
    tasks = np.repeat([0, 1, 2, 5], [30, 20, 4, 6])
    free, drawn = rng.random(60) < 0.7, rng.random(60) < 0.5
    taken = ~free & drawn
    confidence = np.where(free, rng.uniform(0.2, 0.9, 60), np.nan).astype(np.float32)
    points = Points(jnp.zeros((60, 1)), *map(jnp.asarray, (taken, free)))
    got = by_task(jax.random.key(0), *map(jnp.asarray, (confidence, tasks)), points, 12)
    weights = {task: 1 / confidence[(tasks == task) & free].mean() for task in set(tasks.tolist())}
    labels = {task: int(taken[tasks == task].sum()) for task in weights}
    left = {task: int(free[tasks == task].sum()) for task in weights}
    want = []
    for _ in range(12):
        task = max((task for task in weights if left[task]), key=lambda task: weights[task] / (labels[task] + 1))
        labels[task], left[task] = labels[task] + 1, left[task] - 1
        want.append(task)
    picks = np.asarray(got.indices)
    assert tasks[picks].tolist() == want
    assert free[picks].all()
    assert len(set(picks.tolist())) == 12


def test_within_a_task_picks_are_uniform():
    """Over many keys; each share is a binomial one, within 5 of its standard deviations."""
    free, draws = jnp.asarray([True, True, False, True, True]), 2000
    points = Points(jnp.zeros((5, 1)), ~free, free)

    def first(key):
        return by_task(key, jnp.full(5, 0.5), jnp.zeros(5, jnp.int32), points, 1).indices[0]

    drawn = np.asarray(jax.jit(jax.vmap(first))(jax.random.split(jax.random.key(0), draws)))
    found = np.bincount(drawn, minlength=5) / draws
    want = np.asarray(free) / 4
    assert (np.abs(found - want) <= 5 * np.sqrt(want * (1 - want) / draws)).all()


@pytest.mark.parametrize("by", ["data", "answer"])
def test_balanced_picks_are_dealt_out_one_by_one(rng, by):
    """Each label to the group with the fewest, of several the one whose best left scores highest."""
    size, count = 40, 15
    groups = rng.choice(5, size, p=[0.5, 0.2, 0.1, 0.1, 0.1]).astype(np.int32)
    scores, unlabelled = rng.permutation(size).astype(np.float32), rng.random(size) < 0.7
    strategy = get_strategy("group_balanced" if by == "data" else "class_balanced")
    measure, group = strategy.needs
    assert group == Group(by)
    features = {measure: jnp.asarray(scores), group: jnp.asarray(groups)}
    found = strategy.pick(None, PoolFeatures(jnp.asarray(unlabelled), features), Query(jnp.asarray(0), 9, count))
    have = [int((~unlabelled[groups == name]).sum()) if by == "data" else 0 for name in range(5)]
    left, want = set(np.flatnonzero(unlabelled).tolist()), []
    for _ in range(count):
        best = min(left, key=lambda place: (have[groups[place]], -scores[place]))
        want.append(best)
        left.remove(best)
        have[groups[best]] += 1
    assert np.asarray(found.indices).tolist() == want
    check_strategy(strategy)
