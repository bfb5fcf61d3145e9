"""The strategies of the package that see vectors: embeddings of prompts, sketches of gradients, or both with a measure.

Each is a function of the `acquisition` settings, as those of `strategies`. Embeddings are the base model's, which are
computed once a run. They all point in much the same direction (Ethayarajh 2019, arXiv 1909.00512), so that their mean
is taken away before angles and lengths are looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

from jax import Array

from star_jax.acquisition import diversity, typicality
from star_jax.acquisition.diversity import Points
from star_jax.acquisition.hybrid import BySpread, Huds, Spread, TaskDiversity, UncertainThenDiverse
from star_jax.acquisition.needs import Embedding, GradientSketch, Measure
from star_jax.acquisition.scores import ByScore, Length, Power, Selector, TopK, Value
from star_jax.acquisition.strategy import Picks, Strategy
from star_jax.acquisition.targeted import Informative, RoundRobin
from star_jax.acquisition.uncertainty import MEASURES
from star_jax.config import AcquisitionConfig

EMBEDDING = Embedding(projection=256)
GRADIENT = GradientSketch(width=512)


@dataclass(frozen=True)
class Centred:
    """A spread on vectors less their mean."""

    spread: Spread

    def __call__(self, key: Array, points: Points, count: int) -> Picks:
        """The picks of the spread."""
        return self.spread(key, points._replace(vectors=points.vectors - points.vectors.mean(axis=0)), count)


def k_center(options: AcquisitionConfig) -> Strategy:
    """Sener & Savarese 2018, arXiv 1708.00489."""
    return _spread("k_center", "always the prompt farthest from all that are labelled or picked", diversity.k_center)


def typiclust(options: AcquisitionConfig) -> Strategy:
    """Hacohen et al. 2022, arXiv 2202.02794."""
    return _spread(
        "typiclust", "the most typical prompt of each cluster that has no label yet", Centred(typicality.typiclust)
    )


def facility_location(options: AcquisitionConfig) -> Strategy:
    """Wei, Iyer & Bilmes 2015."""
    said = "prompts that the whole pool is most alike to, each in its own way"
    return _spread("facility_location", said, Centred(diversity.facility_location))


def log_det(options: AcquisitionConfig) -> Strategy:
    """FisherSFT, Deb et al. 2025, arXiv 2505.14826."""
    said = "prompts that tell a linear layer on their embeddings the most (FisherSFT)"
    return _spread("log_det", said, Centred(diversity.log_det))


def rds_plus(options: AcquisitionConfig) -> Strategy:
    """Ivison et al. 2025, arXiv 2503.01807."""
    pick = RoundRobin(Embedding(pooling="weighted", projection=EMBEDDING.projection))
    return Strategy("rds_plus", "what is most like the target prompts, which choose in turn", pick.needs, pick)


def sift(options: AcquisitionConfig) -> Strategy:
    """Hübotter et al. 2025, arXiv 2410.08020."""
    pick = Informative(EMBEDDING)
    return Strategy("sift", "what leaves the least unknown about the target prompts", pick.needs, pick)


def badge(options: AcquisitionConfig) -> Strategy:
    """Ash et al. 2020, arXiv 1906.03671."""
    pick = BySpread(GRADIENT, diversity.k_means_plus_plus)
    return Strategy("badge", "k-means++ on gradients of the model's own answers", pick.needs, pick)


def expected_gradient_length(options: AcquisitionConfig) -> Strategy:
    """Settles & Craven 2008, section 3.3; the likeliest answer stands for the expectation (arXiv 1612.03226)."""
    select: Selector = Power(options.power) if options.selection == "power" else TopK()
    pick = ByScore(Length(GRADIENT), select)
    said = "length of the gradient that the model's own answer would give the adapter"
    return Strategy("expected_gradient_length", said, pick.score.needs, pick)


def huds(options: AcquisitionConfig) -> Strategy:
    """Azeemi, Qazi & Raza 2024, arXiv 2403.09259."""
    pick = Huds(Value(_mean("sequence_nll")), EMBEDDING)
    said = "mean NLL and distance to the centre of a cluster of equally uncertain prompts, half and half"
    return Strategy("huds", said, pick.needs, pick)


def task_diversity(options: AcquisitionConfig) -> Strategy:
    """Arabelly et al. 2025, arXiv 2507.21482, with clusters for tasks."""
    pick = TaskDiversity(Value(_mean("least_confidence", base=True)), EMBEDDING)
    said = "at random within clusters of prompts, more where the base model is less confident"
    return Strategy("task_diversity", said, pick.needs, pick)


def uncertain_then_diverse(options: AcquisitionConfig) -> Strategy:
    """Zhdanov 2019, arXiv 1901.05954, with k-center."""
    reduced = "token_entropy" if options.reduction == "sum" else f"token_entropy_{options.reduction}"
    pick = UncertainThenDiverse(Value(Measure(reduced)), EMBEDDING, diversity.k_center)
    said = f"k_center among the {pick.factor} times as many prompts with the highest token entropy"
    return Strategy("uncertain_then_diverse", said, pick.needs, pick)


def _spread(name: str, description: str, spread: Spread) -> Strategy:
    pick = BySpread(EMBEDDING, spread)
    return Strategy(name, description, pick.needs, pick)


def _mean(name: str, base: bool = False) -> Measure:
    """The measure over the mean of an answer's tokens."""
    assert f"{name}_mean" in MEASURES
    return Measure(f"{name}_mean", "base" if base else "full")
