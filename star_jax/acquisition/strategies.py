"""The registry of strategies. A strategy is data: what is measured, on which models, how combined, how picked.

Adding one is one entry in `STRATEGIES`; the contract test runs over every entry by itself. `acquire` is the one
function the loop calls. It sees measures and a mask, never a response.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from star_jax.acquisition import dynamic, selection
from star_jax.acquisition.uncertainty import MEASURES
from star_jax.config import AcquisitionConfig
from star_jax.errors import ConfigError, ScoreError

Combine = Literal["none", "base", "full", "dynamic", "subtract"]


@dataclass(frozen=True)
class Strategy:
    """How the next examples are chosen.

    Attributes:
      name: registry name.
      description: one sentence for people.
      measure: name in `MEASURES`, or None where nothing is measured.
      combine: which model's measure counts, or how the two are mixed.
      normaliser: scale both are brought to before they are mixed; None where they are not.
      schedule: λ(t) of a dynamic mix; None otherwise.
      reverse: run through the schedule backwards.
      selection: how a batch is taken from the scores.
      monte_carlo: whether the full model's measure is averaged over Monte-Carlo dropout passes.
    """

    name: str
    description: str
    measure: str | None
    combine: Combine
    normaliser: str | None = None
    schedule: str | None = None
    reverse: bool = False
    selection: Literal["top_k", "power", "uniform"] = "top_k"
    monte_carlo: bool = False

    def __post_init__(self) -> None:
        mixes = self.combine in ("dynamic", "subtract")
        if (
            (self.measure is None) != (self.combine == "none")
            or (self.normaliser is not None) != mixes
            or (self.schedule is not None) != (self.combine == "dynamic")
            or (self.selection == "uniform") != (self.combine == "none")
        ):
            raise ValueError(f"strategy {self.name} has parts that do not go with combine = {self.combine}")

    @property
    def needs_base(self) -> bool:
        """Whether the base model has to score the pool."""
        return self.combine in ("base", "dynamic", "subtract")

    @property
    def needs_full(self) -> bool:
        """Whether the fine-tuned model has to score the pool."""
        return self.combine in ("full", "dynamic", "subtract")


_STAR = Strategy(
    "star",
    "STAR: token entropy of base and full model blended on ranks, the full model's averaged over dropout passes",
    "token_entropy",
    "dynamic",
    normaliser="rank",
    schedule="released",
    monte_carlo=True,
)

_ENTRIES = (
    Strategy("random", "uniformly at random", None, "none", selection="uniform"),
    Strategy("entropy", "token entropy of the full model (the paper's ME)", "token_entropy", "full"),
    Strategy("pe", "sequence NLL of the full model (the paper's PE)", "sequence_nll", "full"),
    Strategy(
        "entropy_subtract", "token entropy, full less base model", "token_entropy", "subtract", normaliser="minmax"
    ),
    Strategy("pe_subtract", "sequence NLL, full less base model", "sequence_nll", "subtract", normaliser="minmax"),
    Strategy(
        "entropy_dynamic",
        "token entropy, from base to full model as labels come in",
        "token_entropy",
        "dynamic",
        normaliser="minmax",
        schedule="released",
    ),
    Strategy(
        "pe_dynamic",
        "sequence NLL, from base to full model as labels come in",
        "sequence_nll",
        "dynamic",
        normaliser="minmax",
        schedule="released",
    ),
    _STAR,
    dataclasses.replace(
        _STAR,
        name="star_constant",
        description="control: star with a weight that stays at acquisition.constant",
        schedule="constant",
    ),
    dataclasses.replace(
        _STAR,
        name="star_reversed",
        description="control: star with the same weights in the opposite order",
        reverse=True,
    ),
    Strategy("base_only", "token entropy of the base model", "token_entropy", "base"),
    Strategy("bald", "mutual information between tokens and dropped-out adapters", "bald", "full", monte_carlo=True),
    Strategy("least_confidence", "probability missing from the full model's best tokens", "least_confidence", "full"),
    Strategy("margin", "closeness of the full model's best two tokens", "margin", "full"),
)

STRATEGIES: dict[str, Strategy] = {entry.name: entry for entry in _ENTRIES}
"""Name -> strategy."""


def get_strategy(name: str) -> Strategy:
    """The registered strategy of that name.

    Raises:
      ConfigError: no such strategy; the message lists those there are.
    """
    if name not in STRATEGIES:
        raise ConfigError(f"strategies names {name}, which does not exist; choose from {', '.join(STRATEGIES)}")
    return STRATEGIES[name]


def resolve(strategy: Strategy, config: AcquisitionConfig) -> Strategy:
    """The strategy with the configuration's overrides applied, where it has the part they override.

    `star_constant` keeps its schedule, which is its point. Resolving twice is resolving once.

    Raises:
      ConfigError: a normaliser was asked for together with the released arithmetic, which fixes it.
    """
    if config.normaliser is not None and config.arithmetic == "released":
        raise ConfigError(
            f"acquisition.normaliser is {config.normaliser}, but acquisition.arithmetic released scales the base by "
            "min-max and the full model not at all; set one of the two"
        )
    suffix = "" if config.reduction == "sum" else f"_{config.reduction}"
    measure = strategy.measure
    if measure is not None and measure + suffix in MEASURES:
        measure += suffix
    fixed_schedule = strategy.schedule in (None, "constant")
    return dataclasses.replace(
        strategy,
        measure=measure,
        normaliser=strategy.normaliser and (config.normaliser or strategy.normaliser),
        schedule=strategy.schedule if fixed_schedule else config.schedule or strategy.schedule,
        selection=strategy.selection if strategy.selection == "uniform" else config.selection or strategy.selection,
    )


def acquire(
    strategy: Strategy,
    config: AcquisitionConfig,
    key: Array,
    base: Array | None,
    full: Array | None,
    available: Array,
    query_index: ArrayLike,
    queries: int,
    count: int,
) -> tuple[Array, Array]:
    """Pick the next examples. Pure; jit with `strategy`, `config`, `queries` and `count` static.

    Args:
      strategy: from `get_strategy`; overrides in `config` are applied here.
      config: overrides and constants.
      key: PRNG key, used by `power` and `uniform` selection.
      base: `N` measure of the base model, or None where `strategy.needs_base` is False.
      full: `N` measure of the full model, or None where `strategy.needs_full` is False.
      available: `N` bool, True for examples that are not labelled yet. At least `count` of them; values elsewhere have
        no influence, NaN included.
      query_index: t = 0, 1, …, the number of queries made before; may be traced.
      queries: T, how many the run makes altogether.
      count: examples to pick.

    Returns:
      `count` int32 indices, first pick first, and the `N` scores (0 where not available, and everywhere for a
      strategy that measures nothing). With `arithmetic="released"` the scores are those of the released code before
      its last min-max scaling. An available example whose measure is not finite gets NaN and leaves the others' scores
      alone; whether there is one is for `check_finite` to say.
    """
    strategy = resolve(strategy, config)
    finite = jnp.ones_like(available)
    for values, needed in ((base, strategy.needs_base), (full, strategy.needs_full)):
        if needed and values is not None:
            finite &= jnp.isfinite(values)
    scores = _combine(strategy, config, base, full, available & finite, query_index, queries)
    scores = jnp.where(available, jnp.where(finite, scores, jnp.nan), 0)
    if strategy.selection == "uniform":
        return selection.uniform(key, available, count), scores
    if strategy.selection == "power":
        return selection.power(key, scores, available, count, config.power), scores
    return selection.top_k(scores, available, count), scores


def check_finite(scores: np.ndarray | Array, ids: Sequence[str]) -> None:
    """Refuse scores that are not numbers, on the host.

    Args:
      scores: `N`, as `acquire` returns them.
      ids: the N names.

    Raises:
      ScoreError: naming the examples, ten at most.
    """
    bad = np.flatnonzero(~np.isfinite(np.asarray(scores)))
    if bad.size:
        named = ", ".join(ids[i] for i in bad[:10]) + (f" and {bad.size - 10} more" if bad.size > 10 else "")
        raise ScoreError(
            f"{bad.size} of {len(ids)} examples have a score that is not finite: {named}; "
            "training has diverged (try a lower training.learning_rate), or the model's weights are broken"
        )


def _combine(
    strategy: Strategy,
    config: AcquisitionConfig,
    base: Array | None,
    full: Array | None,
    available: Array,
    query_index: ArrayLike,
    queries: int,
) -> Array:
    """Scores `N` from the measures of the two models."""
    if strategy.combine == "none":
        return jnp.zeros(available.shape)
    if strategy.combine == "base":
        return _given(base, "base", strategy)
    full = _given(full, "full", strategy)
    if strategy.combine == "full":
        return full
    base = _given(base, "base", strategy)

    released = config.arithmetic == "released"
    assert strategy.normaliser is not None  # checked when the strategy was made, as is the schedule below
    normalise = dynamic.NORMALISERS[strategy.normaliser]
    if strategy.combine == "subtract":
        if released:
            return dynamic.released_subtract(base, full, available)
        return dynamic.subtract(normalise(base, available), normalise(full, available))

    assert strategy.schedule is not None
    schedule = dynamic.SCHEDULES[strategy.schedule](config.constant)
    lam = (dynamic.reversed_schedule(schedule) if strategy.reverse else schedule)(query_index, queries)
    if released:
        return dynamic.released_dynamic(lam, base, full, available)
    return dynamic.blend(lam, normalise(base, available), normalise(full, available))


def _given(values: Array | None, model: str, strategy: Strategy) -> Array:
    """The measure of a model, which the strategy cannot do without."""
    if values is None:
        raise ValueError(f"strategy {strategy.name} needs the measure of the {model} model")
    return values
