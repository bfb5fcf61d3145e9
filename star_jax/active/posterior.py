"""What the samples of a query are drawn from: dropout masks, or a posterior over the weights that labels determine."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.acquisition.pool_scoring import AnySampling, score_pool
from star_jax.acquisition.pools import proposed_pool
from star_jax.active.state import LoopState, Observer, Problem
from star_jax.config import ExperimentConfig
from star_jax.data.examples import Example
from star_jax.data.tokenization import TokenizedExample
from star_jax.inference.gradients import fisher_diagonal
from star_jax.inference.mc_dropout import Sampling
from star_jax.inference.posterior import (
    LOSSES,
    GaussianPosterior,
    WeightSampling,
    isotropic_family,
    laplace,
    widest,
)
from star_jax.models.lora import Adapter

Array = jax.Array

ANCHORS = 256
"""Labelled examples, drawn at random, on which TFB's search measures the loss: each of its steps scores them all."""

_POSTERIOR = 7
"""Number of the key that a posterior is found with, folded into that of the samples."""


def sampling_of(
    config: ExperimentConfig, problem: Problem, state: LoopState, key: Array, observer: Observer
) -> AnySampling:
    """How the samples of the full model are drawn, as `scoring.posterior` says.

    Args:
      config: the experiment.
      problem: model and pool.
      state: with an adapter, and the labels that it was trained on.
      key: PRNG key of the samples.
      observer: told how far the passes over labelled examples are.
    """
    scoring = config.scoring
    find = _POSTERIORS.get(scoring.posterior)
    if find is None:
        return Sampling(scoring.mc_samples, config.lora.dropout, scoring.dropout)
    assert state.adapter is not None
    labelled = [Example(problem.prompts[index], response) for index, response in state.labels.items()]
    rows = problem.encoder.examples(labelled, counted=True)
    return WeightSampling(
        scoring.mc_samples, find(config, problem, state.adapter, rows, jax.random.fold_in(key, _POSTERIOR), observer)
    )


def _tfb(
    config: ExperimentConfig,
    problem: Problem,
    adapter: Adapter,
    rows: list[TokenizedExample],
    key: Array,
    observer: Observer,
) -> GaussianPosterior:
    """The widest noise that the loss on labelled examples allows, all widths with the same draws."""
    anchor_key, draw_key = jax.random.split(key)
    chosen = np.asarray(jax.random.permutation(anchor_key, len(rows)))[:ANCHORS]
    anchors = proposed_pool([rows[place] for place in chosen.tolist()], problem.shapes.sequences)
    family = isotropic_family(adapter)

    with observer.phase("score", LOSSES * len(chosen), "examples") as tick:

        def loss(width: float) -> float:
            """Nats a token, under the mean over samples of the probability of a whole response."""
            sampling = WeightSampling(config.scoring.mc_samples, family.scaled(width))
            found = score_pool(problem.model, adapter, anchors, key=draw_key, sampling=sampling, on_batch=tick).measures
            return float((found["sequence_nll"] - found["jensen_gap"]).sum() / jnp.sum(found["response_tokens"]))

        return family.scaled(widest(loss, config.scoring.tfb_tolerance))


def _laplace(
    config: ExperimentConfig,
    problem: Problem,
    adapter: Adapter,
    rows: list[TokenizedExample],
    key: Array,
    observer: Observer,
) -> GaussianPosterior:
    """Laplace's approximation on all labelled examples."""
    with observer.phase("score", len(rows), "examples") as tick:
        return laplace(adapter, fisher_diagonal(key, problem.model, adapter, rows, problem.shapes.sequences, tick))


_POSTERIORS: dict[str, Callable[..., GaussianPosterior]] = {"tfb": _tfb, "laplace": _laplace}
"""`scoring.posterior` -> how it is found; dropout masks need no labels."""
