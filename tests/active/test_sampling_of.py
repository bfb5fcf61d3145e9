"""The samples of a query, as `scoring.posterior` says: the same measures from all."""

import dataclasses

import jax
import numpy as np
import pytest
from test_loop import CONFIG, examples, problem  # noqa: F401 - fixtures

from star_jax.acquisition.needs import Measure
from star_jax.acquisition.pool_scoring import score_pool
from star_jax.acquisition.pools import proposed_pool
from star_jax.acquisition.strategy import get_strategy
from star_jax.active import posterior
from star_jax.active.features import Offer, compute_features
from star_jax.active.loop import init, step
from star_jax.active.pool import available
from star_jax.active.posterior import sampling_of
from star_jax.active.state import Unobserved
from star_jax.data.examples import Example
from star_jax.inference.mc_dropout import Sampling
from star_jax.inference.posterior import LOSSES, WeightSampling, isotropic_family

ENTROPY, DISAGREEMENT = Measure("token_entropy", samples=True), Measure("bald", samples=True)


@pytest.fixture(scope="module")
def trained(problem):  # noqa: F811
    return step(CONFIG, get_strategy("random"), problem, init(len(problem.prompts)), jax.random.key(0))[0]


def with_posterior(name):
    return dataclasses.replace(CONFIG, scoring=dataclasses.replace(CONFIG.scoring, posterior=name))


def features_of(problem, state, name, needs, seed=0):  # noqa: F811
    strategy = dataclasses.replace(get_strategy("bald"), needs=needs)
    offer = Offer(available(state.pool), jax.random.key(seed))
    arrays = compute_features(with_posterior(name), strategy, problem, state, offer, Unobserved()).arrays
    return [np.asarray(arrays[need])[np.asarray(offer.mask)] for need in needs]


@pytest.mark.parametrize("name", ["tfb", "laplace"])
def test_drawn_weights_give_the_same_measures_and_disagree(problem, trained, name):  # noqa: F811
    entropy, bald = features_of(problem, trained, name, (ENTROPY, DISAGREEMENT))
    assert (entropy > 0).all()
    assert bald.max() > 1e-4
    again, _ = features_of(problem, trained, name, (ENTROPY, DISAGREEMENT))
    np.testing.assert_array_equal(entropy, again)
    other, _ = features_of(problem, trained, name, (ENTROPY, DISAGREEMENT), seed=1)
    assert not np.array_equal(entropy, other)


def test_none_is_one_pass_without_noise(problem, trained):  # noqa: F811
    plain = np.asarray(score_pool(problem.model, trained.adapter, problem.pool).measures["token_entropy"])
    mask = np.asarray(available(trained.pool))
    both = features_of(problem, trained, "none", (ENTROPY, Measure("token_entropy")))
    np.testing.assert_array_equal(both[0], both[1])
    np.testing.assert_allclose(both[0], plain[mask], rtol=1e-4, atol=1e-5)


def test_dropout_stays_as_it_was(problem, trained):  # noqa: F811
    scoring = CONFIG.scoring
    found = sampling_of(CONFIG, problem, trained, jax.random.key(0), Unobserved())
    assert found == Sampling(scoring.mc_samples, CONFIG.lora.dropout, scoring.dropout)


def test_tfb_looks_for_the_width_on_the_loss_of_the_labels(monkeypatch, problem, trained):  # noqa: F811
    """Without noise it is the adapter's own negative log-likelihood a token, and with noise another."""
    config, seen, searched = with_posterior("tfb"), [], []

    class Counter(Unobserved):
        def phase(self, name, total, unit):
            seen.append((name, total))
            return super().phase(name, total, unit)

    def widest(loss, tolerance):
        searched.append((tolerance, loss(0.0), loss(0.3), loss(0.3)))
        return 0.3

    monkeypatch.setattr(posterior, "widest", widest)
    sampling = sampling_of(config, problem, trained, jax.random.key(3), Counter())
    assert isinstance(sampling, WeightSampling)
    assert sampling.samples == config.scoring.mc_samples
    assert seen == [("score", LOSSES * len(trained.labels))]
    want = isotropic_family(trained.adapter).scaled(0.3)
    jax.tree.map(np.testing.assert_array_equal, sampling.posterior, want)

    labelled = [Example(problem.prompts[place], response) for place, response in trained.labels.items()]
    pool = proposed_pool(problem.encoder.examples(labelled), problem.shapes.sequences)
    plain = score_pool(problem.model, trained.adapter, pool).measures
    [(tolerance, without, noisy, again)] = searched
    assert tolerance == config.scoring.tfb_tolerance
    np.testing.assert_allclose(without, plain["sequence_nll"].sum() / plain["response_tokens"].sum(), rtol=1e-4)
    assert noisy == again != without
