"""The strategies that come with the package: each a function of the `acquisition` settings, a composition of pieces.

Settings replace a part where a strategy has it: the reduction of its measure, its scale, its schedule, how it takes a
batch. A control keeps the part that it is a control of.
"""

from __future__ import annotations

from typing import Literal

from jax import Array

from star_jax.acquisition import dynamic, selection
from star_jax.acquisition.epig import ByInformation
from star_jax.acquisition.hybrid import Balanced
from star_jax.acquisition.needs import Group, Measure, Which
from star_jax.acquisition.released import RELEASED, check_has_released_form, unscaled
from star_jax.acquisition.scores import Blend, ByScore, Difference, Power, Scaled, Score, Selector, TopK, Value
from star_jax.acquisition.strategy import Picks, PoolFeatures, Query, Strategy
from star_jax.acquisition.uncertainty import MEASURES
from star_jax.config import AcquisitionConfig

Scales = tuple[dynamic.Normaliser, dynamic.Normaliser]
"""Of the base model's measure and of the full model's."""

SCALES: dict[str, Scales] = {name: (scale, scale) for name, scale in dynamic.NORMALISERS.items()} | {
    RELEASED: (dynamic.minmax, unscaled)
}
"""`acquisition.normaliser` -> scales."""


def random(options: AcquisitionConfig) -> Strategy:
    """Uniformly at random."""
    return Strategy("random", "uniformly at random", (), _uniform)


def entropy(options: AcquisitionConfig) -> Strategy:
    """The paper's ME."""
    score = Value(_measure("token_entropy", options))
    return _by_score("entropy", "token entropy of the full model (the paper's ME)", score, options)


def pe(options: AcquisitionConfig) -> Strategy:
    """The paper's PE."""
    score = Value(_measure("sequence_nll", options))
    return _by_score("pe", "sequence NLL of the full model (the paper's PE)", score, options)


def base_only(options: AcquisitionConfig) -> Strategy:
    """λ ≡ 1."""
    score = Value(_measure("token_entropy", options, model="base"))
    return _by_score("base_only", "token entropy of the base model", score, options)


def bald(options: AcquisitionConfig) -> Strategy:
    """Houlsby et al. 2011, arXiv 1112.5745."""
    score = Value(_measure("bald", options, samples=True))
    return _by_score("bald", "mutual information between tokens and dropped-out adapters", score, options)


def epig(options: AcquisitionConfig) -> Strategy:
    """Bickford Smith et al. 2023, arXiv 2304.08151."""
    pick = ByInformation(_selector(options))
    said = "information that an answer of a closed set would give about the answers to the rest of the pool"
    return Strategy("epig", said, pick.needs, pick)


def least_confidence(options: AcquisitionConfig) -> Strategy:
    """Lewis & Gale 1994."""
    score = Value(_measure("least_confidence", options))
    return _by_score("least_confidence", "probability missing from the full model's best tokens", score, options)


def margin(options: AcquisitionConfig) -> Strategy:
    """Scheffer et al. 2001."""
    return _by_score(
        "margin", "closeness of the full model's best two tokens", Value(_measure("margin", options)), options
    )


def entropy_subtract(options: AcquisitionConfig) -> Strategy:
    """The paper's ablation of the blend."""
    said = "token entropy, full less base model"
    return _by_score("entropy_subtract", said, _difference("token_entropy", options), options)


def pe_subtract(options: AcquisitionConfig) -> Strategy:
    """As `entropy_subtract`, of the sequence NLL."""
    said = "sequence NLL, full less base model"
    return _by_score("pe_subtract", said, _difference("sequence_nll", options), options)


def entropy_dynamic(options: AcquisitionConfig) -> Strategy:
    """The paper's blend on a min-max scale, without samples."""
    score = _blend("token_entropy", "minmax", _schedule(options), options)
    return _by_score("entropy_dynamic", "token entropy, from base to full model as labels come in", score, options)


def pe_dynamic(options: AcquisitionConfig) -> Strategy:
    """As `entropy_dynamic`, of the sequence NLL."""
    score = _blend("sequence_nll", "minmax", _schedule(options), options)
    return _by_score("pe_dynamic", "sequence NLL, from base to full model as labels come in", score, options)


def star(options: AcquisitionConfig) -> Strategy:
    """STAR: ranks of base and full uncertainty, blended as labels come in, the full one's over dropout samples."""
    said = "STAR: token entropy of base and full model blended on ranks, the full model's averaged over dropout passes"
    return _star("star", said, _schedule(options), options)


def group_balanced(options: AcquisitionConfig) -> Strategy:
    """Token entropy, as many labels for each group that the data name."""
    return _balanced("group_balanced", "data", "each group of the data", options)


def class_balanced(options: AcquisitionConfig) -> Strategy:
    """Token entropy, as many picks of each answer that the full model gives."""
    return _balanced("class_balanced", "answer", "each answer of the full model", options)


def vote_entropy(options: AcquisitionConfig) -> Strategy:
    """Disagreement of self-consistency's votes, arXiv 2203.11171."""
    said = "entropy of the votes of several drawn answers of the full model"
    return _by_score("vote_entropy", said, Value(Measure("vote_entropy")), options)


def semantic_entropy(options: AcquisitionConfig) -> Strategy:
    """Kuhn, Gal & Farquhar 2023, arXiv 2302.09664, with answers clustered by the task's parser."""
    said = "entropy over kinds of drawn answers of the full model, weighted by their probability"
    return _by_score("semantic_entropy", said, Value(Measure("semantic_entropy")), options)


def pairwise_disagreement(options: AcquisitionConfig) -> Strategy:
    """As `vote_entropy`, by pairs."""
    said = "share of the pairs of drawn answers of the full model that differ"
    return _by_score("pairwise_disagreement", said, Value(Measure("pairwise_disagreement")), options)


def star_votes(options: AcquisitionConfig) -> Strategy:
    """STAR's blend of the vote entropies of base and full model."""
    check_has_released_form("star_votes", "rank", options.normaliser)
    said = "vote entropy of drawn answers of base and full model, blended on ranks as labels come in"
    return _by_score("star_votes", said, _blend("vote_entropy", "rank", _schedule(options), options), options)


def star_constant(options: AcquisitionConfig) -> Strategy:
    """Control: λ stays."""
    said = "control: star with a weight that stays at acquisition.constant"
    return _star("star_constant", said, dynamic.ConstantSchedule(options.constant), options)


def star_reversed(options: AcquisitionConfig) -> Strategy:
    """Control: λ rises."""
    said = "control: star with the same weights in the opposite order"
    return _star("star_reversed", said, dynamic.ReversedSchedule(_schedule(options)), options)


def _star(name: str, description: str, schedule: dynamic.Schedule, options: AcquisitionConfig) -> Strategy:
    check_has_released_form(name, "rank", options.normaliser)
    score = _blend("token_entropy", "rank", schedule, options, samples=True)
    return _by_score(name, description, score, options)


def _measure(name: str, options: AcquisitionConfig, *, model: Which = "full", samples: bool = False) -> Measure:
    """The measure with the reduction over tokens that is asked for, where it has one."""
    reduced = name if options.reduction == "sum" else f"{name}_{options.reduction}"
    return Measure(reduced if reduced in MEASURES else name, model, samples)


def _schedule(options: AcquisitionConfig) -> dynamic.Schedule:
    return dynamic.SCHEDULES[options.schedule or "released"](options.constant)


def _both(measure: str, scale: str, options: AcquisitionConfig, samples: bool) -> tuple[Score, Score]:
    """The measure of the base and of the full model, on the scales asked for, or else on `scale`."""
    of_base, of_full = SCALES[options.normaliser or scale]
    base = Scaled(of_base, Value(_measure(measure, options, model="base")))
    return base, Scaled(of_full, Value(_measure(measure, options, samples=samples)))


def _blend(
    measure: str, scale: str, schedule: dynamic.Schedule, options: AcquisitionConfig, *, samples: bool = False
) -> Score:
    return Blend(schedule, *_both(measure, scale, options, samples))


def _difference(measure: str, options: AcquisitionConfig) -> Score:
    return Difference(*_both(measure, "minmax", options, samples=False))


def _balanced(name: str, by: Literal["data", "answer"], each: str, options: AcquisitionConfig) -> Strategy:
    pick = Balanced(Value(_measure("token_entropy", options)), Group(by))
    return Strategy(name, f"the highest token entropies, as many of {each}", pick.needs, pick)


def _by_score(name: str, description: str, score: Score, options: AcquisitionConfig) -> Strategy:
    return Strategy(name, description, score.needs, ByScore(score, _selector(options)))


def _selector(options: AcquisitionConfig) -> Selector:
    return Power(options.power) if options.selection == "power" else TopK()


def _uniform(key: Array, pool: PoolFeatures, query: Query) -> Picks:
    return Picks(selection.uniform(key, pool.unlabelled, query.count))
