"""Votes of drawn answers, groups and targets on their way through the loop, on the shipped model."""

import dataclasses

import jax
import numpy as np
import pytest
from test_loop import CONFIG, examples, problem  # noqa: F401 - fixtures

from star_jax.acquisition.needs import Embedding, Group, Measure, Targets
from star_jax.acquisition.pool_sampling import sample_pool
from star_jax.acquisition.pool_scoring import generated_texts, score_pool
from star_jax.acquisition.strategy import get_strategy
from star_jax.acquisition.votes import voted
from star_jax.active import features
from star_jax.active.features import Offer, compute_features
from star_jax.active.loop import choose, init, step
from star_jax.active.pool import available
from star_jax.active.state import Unobserved
from star_jax.benchmarks.skills.task import SKILLS
from star_jax.errors import ConfigError
from star_jax.inference.features import Readout, embed_prompts
from star_jax.inference.sampling import Decoding

VOTES = dataclasses.replace(CONFIG, scoring=dataclasses.replace(CONFIG.scoring, samples=3, top_p=0.9))
KEY = jax.random.key(2)


@pytest.fixture(scope="module")
def known(problem):  # noqa: F811
    """With the task's parser and groups, and two targets."""
    return dataclasses.replace(problem, read=SKILLS.parse, group=SKILLS.group, targets=problem.tokens[:2])


@pytest.fixture(scope="module")
def trained(known):
    return step(VOTES, get_strategy("random"), known, init(len(known.prompts)), KEY)[0]


def test_star_votes_blends_the_votes_of_base_and_full_model(known, trained):
    counted = []

    class Counter(Unobserved):
        def phase(self, name, total, unit):
            counted.append(total)
            return super().phase(name, total, unit)

    choice = choose(VOTES, get_strategy("star_votes"), known, trained, KEY, Counter())
    rows = np.flatnonzero(np.asarray(available(trained.pool)))
    assert counted == [known.pool.size + len(rows)]  # one pass by each model
    decoding, everyone = Decoding(3, 1.0, 0.9), np.arange(known.pool.size)
    drawn = sample_pool(known.model, None, known.pool, key=jax.random.key(features._BASE_ANSWERS), decoding=decoding)
    base = voted(drawn, known.encoder.text, SKILLS.parse, everyone).measures["vote_entropy"]
    np.testing.assert_allclose(choice.base, base, atol=1e-6)
    assert np.asarray(base).max() > 0
    assert np.isnan(np.asarray(choice.full)[~np.asarray(available(trained.pool))]).all()
    assert choice.guesses is not None
    assert len(choice.guesses) == VOTES.loop.labels_per_round
    # What is known of the base model is not asked for again.
    counted.clear()
    again = choose(
        VOTES, get_strategy("star_votes"), known, trained._replace(base=choice.base_features), KEY, Counter()
    )
    assert counted == [len(rows)]
    np.testing.assert_array_equal(choice.picked, again.picked)


def test_answers_of_a_closed_set_are_not_drawn(known, trained):
    closed = dataclasses.replace(known, pool=object.__new__(type("Closed", (), {"size": known.pool.size})))
    with pytest.raises(ConfigError, match="answers of a closed set are not drawn"):
        choose(VOTES, get_strategy("vote_entropy"), closed, trained, KEY)


def arrays_of(problem, state, *needs):  # noqa: F811
    strategy = dataclasses.replace(get_strategy("entropy"), needs=needs)
    offer = Offer(available(state.pool), KEY)
    found = compute_features(CONFIG, strategy, problem, state, offer, Unobserved()).arrays
    return [np.asarray(found[need]) for need in needs], np.asarray(offer.mask)


def test_groups_are_those_of_the_data_or_of_the_models_answers(known, trained):
    (data, answers), mask = arrays_of(known, trained, Group("data"), Group("answer"))
    names = [SKILLS.group(prompt) for prompt in known.prompts]
    assert data.tolist() == [sorted(set(names)).index(name) for name in names]
    texts = generated_texts(score_pool(known.model, trained.adapter, known.pool), known.encoder)
    read = [SKILLS.parse(text) or text for text in texts]
    for one in np.flatnonzero(mask):
        for other in np.flatnonzero(mask):
            assert (answers[one] == answers[other]) == (read[one] == read[other])
    assert not answers[~mask].any()


def test_targets_are_embedded_as_the_pool_is(known, trained):
    vector = Embedding(pooling="weighted", projection=4)
    (pool, targets), _ = arrays_of(known, trained, vector, Targets(vector))
    assert targets.shape == (2, 4)
    np.testing.assert_allclose(targets, pool[:2], rtol=1e-4, atol=1e-5)
    want = embed_prompts(known.model, None, known.tokens, known.shapes.prompts, [Readout("weighted", 4)])[0]
    np.testing.assert_allclose(pool, want, rtol=1e-5)
    with pytest.raises(ConfigError, match=r"name a file of them in acquisition\.target_file"):
        arrays_of(dataclasses.replace(known, targets=()), trained, Targets(vector))


@pytest.mark.parametrize("name", ["rds_plus", "sift", "group_balanced", "class_balanced"])
def test_each_strategy_runs_through_the_loop(known, trained, name):
    picked = np.asarray(choose(CONFIG, get_strategy(name), known, trained, KEY).picked)
    assert len(set(picked.tolist())) == CONFIG.loop.labels_per_round
    assert np.asarray(available(trained.pool))[picked].all()
    assert Measure("token_entropy") in get_strategy(name).needs or get_strategy(name).targeted
