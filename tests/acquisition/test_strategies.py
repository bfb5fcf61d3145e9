"""The contract every strategy of the package keeps, and what sets each apart."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.acquisition import strategies
from star_jax.acquisition.dynamic import (
    ConstantSchedule,
    ReversedSchedule,
    cosine_schedule,
    minmax,
    rank,
    released_schedule,
    zscore,
)
from star_jax.acquisition.needs import Measure
from star_jax.acquisition.scores import Blend, ByScore, Power, Scaled, TopK, Value
from star_jax.acquisition.strategy import PickFunction, PoolFeatures, Query, check_finite, get_strategy, pick
from star_jax.acquisition.uncertainty import MEASURES
from star_jax.config import AcquisitionConfig
from star_jax.errors import ConfigError, ScoreError
from star_jax.registry import STRATEGIES

SIZE, COUNT, QUERIES = 32, 7, 9
NAMES = (
    *("random", "entropy", "pe", "entropy_subtract", "pe_subtract", "entropy_dynamic", "pe_dynamic"),
    *("star", "star_constant", "star_reversed", "base_only", "bald", "least_confidence", "margin"),
)
CONFIGS = {
    "default": AcquisitionConfig(),
    "zscore": AcquisitionConfig(normaliser="zscore", schedule="cosine", reduction="mean"),
    "power": AcquisitionConfig(selection="power", power=2.0),
    "released": AcquisitionConfig(normaliser="released"),
}

TRACED = []


def traced(strategy, key, features, unlabelled, t, queries, count):
    TRACED.append(strategy)
    return pick(strategy, key, features, unlabelled, Query(t, queries, count))


def eager(strategy, key, features, unlabelled, t, queries, count):
    return pick(strategy, key, features, unlabelled, Query(t, queries, count))


JITTED = jax.jit(traced, static_argnums=(0, 5, 6))

every_strategy = pytest.mark.parametrize("name", NAMES)
CASES = [(name, "default") for name in NAMES]
CASES += [(name, config) for name in ("star", "pe_subtract", "bald") for config in ("zscore", "power")]
CASES += [(name, "released") for name in ("entropy_dynamic", "pe_subtract", "bald")]
every_case = pytest.mark.parametrize(("name", "config"), CASES)


def pool(seed: int):
    """Base and full measure with distinct values, and availability."""
    rng = np.random.default_rng(seed)
    base, full = (rng.permutation(SIZE) + rng.random(SIZE) / 2 for _ in range(2))
    return base.astype(np.float32), (3 * full).astype(np.float32), rng.random(SIZE) < 0.6


def call(name: str, config: str, key, base, full, available, t=2, function=JITTED):
    """Picks and scores; 0 for the scores of a strategy that has none."""
    strategy = get_strategy(name, CONFIGS[config])
    features = tuple(jnp.asarray(base if need.model == "base" else full) for need in strategy.needs)
    picks, scores = function(strategy, key, features, jnp.asarray(available), t, QUERIES, COUNT)
    assert (scores is None) == (name == "random")
    return picks, np.zeros(SIZE, np.float32) if scores is None else scores


def test_these_are_all_there_are() -> None:
    assert tuple(name for name in STRATEGIES.names() if name in NAMES) == NAMES
    assert STRATEGIES.names()[: len(NAMES)] == list(NAMES)


@every_case
def test_picks_are_exact_finite_and_repeatable(name: str, config: str) -> None:
    base, full, available = pool(0)
    key = jax.random.key(1)
    picks, scores = call(name, config, key, base, full, available)
    assert picks.shape == (COUNT,)
    assert picks.dtype == jnp.int32
    assert len(set(picks.tolist())) == COUNT
    assert available[np.asarray(picks)].all()
    assert scores.shape == (SIZE,)
    assert np.isfinite(scores).all()
    again, scores_again = call(name, config, key, base, full, available)
    np.testing.assert_array_equal(again, picks)
    np.testing.assert_array_equal(scores_again, scores)


@every_case
def test_jit_equals_eager_and_compiles_once_a_run(name: str, config: str) -> None:
    base, full, available = pool(1)
    key = jax.random.key(1)
    want_picks, want_scores = call(name, config, key, base, full, available, 0, eager)
    picks, scores = call(name, config, key, base, full, available, 0)
    np.testing.assert_allclose(scores, want_scores, rtol=1e-5, atol=1e-6)
    strategy = get_strategy(name, CONFIGS[config])
    # Ranks blended at λ = 0.5 can be equal but for rounding, which compilation may change.
    if np.diff(np.sort(np.asarray(scores)[available])).min() > 1e-5 or not strategy.measures("full"):
        np.testing.assert_array_equal(picks, want_picks)

    for t in range(1, 4):
        available[np.asarray(picks)[:3]] = False
        picks, _ = call(name, config, key, base, full, available, t)
    assert TRACED.count(strategy) == 1


@every_case
def test_unavailable_entries_have_no_influence(name: str, config: str) -> None:
    base, full, available = pool(2)
    key = jax.random.key(2)
    picks, scores = call(name, config, key, base, full, available)
    for value in (np.nan, np.inf, -np.inf, 1e30):
        spoilt = [np.where(available, values, np.float32(value)) for values in (base, full)]
        got_picks, got_scores = call(name, config, key, *spoilt, available)
        np.testing.assert_array_equal(got_picks, picks)
        np.testing.assert_array_equal(got_scores, scores)


@every_case
def test_permuting_the_pool_permutes_scores_and_picks(name: str, config: str) -> None:
    base, full, available = pool(3)
    key = jax.random.key(3)
    order = np.random.default_rng(3).permutation(SIZE)
    picks, scores = call(name, config, key, base, full, available)
    moved_picks, moved_scores = call(name, config, key, base[order], full[order], available[order])
    np.testing.assert_allclose(moved_scores, np.asarray(scores)[order], rtol=1e-5, atol=1e-6)
    distinct = len(set(np.asarray(scores)[available].tolist())) == available.sum()
    function = get_strategy(name, CONFIGS[config]).pick
    if isinstance(function, ByScore) and function.select == TopK() and distinct:
        np.testing.assert_array_equal(order[np.asarray(moved_picks)], picks)


@every_strategy
def test_key_matters_only_where_chance_does(name: str) -> None:
    base, full, available = pool(4)
    draws = [call(name, "default", jax.random.key(k), base, full, available)[0].tolist() for k in range(5)]
    assert (len({tuple(draw) for draw in draws}) > 1) == (name == "random")


def test_nothing_is_told_of_responses() -> None:
    """A strategy is called with a key, two masks with arrays of numbers, and which query it is."""
    told = ["strategy", "key", "features", "unlabelled", "query", "labelled"]
    assert list(inspect.signature(pick).parameters) == told
    assert [field.name for field in dataclasses.fields(PoolFeatures)] == ["unlabelled", "features", "settled"]
    assert [field.name for field in dataclasses.fields(Query)] == ["index", "total", "count"]
    assert PickFunction.__args__[:-1] == (jax.Array, PoolFeatures, Query)


@every_strategy
def test_entries_hang_together(name: str) -> None:
    _, full, available = pool(5)
    for config in CONFIGS.values():
        if name.startswith("star") and config.normaliser == "released":
            continue
        strategy = get_strategy(name, config)
        assert strategy.name == name
        assert strategy.description
        assert get_strategy(name, config) is strategy
        assert all(isinstance(need, Measure) and need.name in MEASURES for need in strategy.needs)
        if isinstance(strategy.pick, ByScore):
            assert strategy.pick.score.needs == strategy.needs
        for given in ((), (jnp.asarray(full),) * (len(strategy.needs) + 1)):
            if len(given) != len(strategy.needs):
                with pytest.raises(ValueError, match=rf"needs {len(strategy.needs)} features, not {len(given)}$"):
                    pick(strategy, jax.random.key(0), given, jnp.asarray(available), Query(0, QUERIES, COUNT))


def test_single_model_strategies_rank_by_their_measure() -> None:
    base, full, available = pool(6)
    for values, names in ((full, ["entropy", "pe", "bald", "least_confidence", "margin"]), (base, ["base_only"])):
        want = sorted(np.flatnonzero(available), key=lambda i: -values[i])[:COUNT]
        for name in names:
            assert call(name, "default", jax.random.key(0), base, full, available)[0].tolist() == want


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("random", ()),
        ("entropy", ("token_entropy",)),
        ("pe", ("sequence_nll",)),
        ("least_confidence", ("least_confidence",)),
        ("margin", ("margin",)),
        ("bald", ("bald sampled",)),
        ("base_only", ("token_entropy of base",)),
        ("entropy_subtract", ("token_entropy of base", "token_entropy")),
        ("pe_subtract", ("sequence_nll of base", "sequence_nll")),
        ("entropy_dynamic", ("token_entropy of base", "token_entropy")),
        ("pe_dynamic", ("sequence_nll of base", "sequence_nll")),
        *((name, ("token_entropy of base", "token_entropy sampled")) for name in NAMES[7:10]),
    ],
)
def test_every_strategy_needs_what_its_description_says(name: str, needs: tuple[str, ...]) -> None:
    found = get_strategy(name).needs
    said = [f"{need.name}{' of base' * (need.model == 'base')}{' sampled' * need.samples}" for need in found]
    assert tuple(said) == needs


@pytest.mark.parametrize(
    ("name", "scale", "weights"),
    [
        ("star", rank, [0.9, 0.5, 0.1]),
        ("star_constant", rank, [0.5, 0.5, 0.5]),
        ("star_reversed", rank, [0.1, 0.5, 0.9]),
        ("pe_dynamic", minmax, [0.9, 0.5, 0.1]),
        ("entropy_dynamic", minmax, [0.9, 0.5, 0.1]),
    ],
)
def test_blends_follow_their_schedule(name: str, scale, weights: list[float]) -> None:
    base, full, available = pool(7)
    scaled = [np.asarray(scale(jnp.asarray(values), jnp.asarray(available))) for values in (base, full)]
    for t, weight in zip((0, 4, 8), weights, strict=True):
        _, scores = call(name, "default", jax.random.key(0), base, full, available, t)
        np.testing.assert_allclose(scores, weight * scaled[0] + (1 - weight) * scaled[1], rtol=1e-5, atol=1e-6)


def test_subtract_is_full_less_base_on_one_scale() -> None:
    base, full, available = pool(8)
    _, scores = call("pe_subtract", "default", jax.random.key(0), base, full, available)
    scaled = [(v - v[available].min()) / np.ptp(v[available]) for v in (base, full)]
    np.testing.assert_allclose(np.asarray(scores)[available], (scaled[1] - scaled[0])[available], atol=1e-6)


def test_the_released_scale_leaves_the_full_model_unscaled() -> None:
    base, full, available = pool(9)
    scaled = (base - base[available].min()) / np.ptp(base[available])
    _, blended = call("entropy_dynamic", "released", jax.random.key(0), base, full, available, 3)
    np.testing.assert_allclose(np.asarray(blended)[available], (0.6 * scaled + 0.4 * full)[available], rtol=1e-6)
    _, subtracted = call("entropy_subtract", "released", jax.random.key(0), base, full, available)
    np.testing.assert_allclose(np.asarray(subtracted)[available], (full - scaled)[available], rtol=1e-6)


def test_overrides_apply_where_there_is_something_to_override() -> None:
    config = AcquisitionConfig(reduction="max", normaliser="zscore", schedule="cosine", selection="power", power=3.0)
    base, full = (Value(Measure("token_entropy_max", model, model == "full")) for model in ("base", "full"))
    scaled = Scaled(zscore, base), Scaled(zscore, full)
    for name, schedule in (
        ("star", cosine_schedule),
        ("star_constant", ConstantSchedule(0.5)),
        ("star_reversed", ReversedSchedule(cosine_schedule)),
    ):
        star = get_strategy(name, config)
        assert star.pick == ByScore(Blend(schedule, *scaled), Power(3.0))
        assert star.needs == (base.measure, full.measure)
    assert get_strategy("random", config) == get_strategy("random")
    entropy = get_strategy("entropy", config)
    assert entropy.pick == ByScore(Value(Measure("token_entropy_max")), Power(3.0))
    # There is no largest Jensen gap of a token.
    assert strategies._measure("jensen_gap", config) == Measure("jensen_gap")
    assert all(get_strategy(name, AcquisitionConfig()) == get_strategy(name) for name in NAMES)
    constant = AcquisitionConfig(schedule="constant", constant=0.25)
    for name in ("star", "star_constant"):
        assert get_strategy(name, constant).pick.score.schedule == ConstantSchedule(0.25)
    assert get_strategy("star_reversed", constant).pick.score.schedule == ReversedSchedule(ConstantSchedule(0.25))


def test_star_is_the_composition_that_the_paper_describes() -> None:
    base, full = Value(Measure("token_entropy", "base")), Value(Measure("token_entropy", "full", samples=True))
    star = ByScore(Blend(released_schedule, Scaled(rank, base), Scaled(rank, full)), TopK())
    assert get_strategy("star").pick == star


def test_monte_carlo_entries() -> None:
    sampled = {name for name in NAMES if get_strategy(name).sampled}
    assert sampled == {"star", "star_constant", "star_reversed", "bald"}


def test_mistakes_get_a_sentence() -> None:
    said = r"strategies names stars, which does not exist \(did you mean star\?\); choose from random, .*star"
    with pytest.raises(ConfigError, match=said):
        get_strategy("stars")
    for name in ("star", "star_constant", "star_reversed"):
        with pytest.raises(ConfigError, match=f"strategy {name} blends on a rank scale, which the released code does"):
            get_strategy(name, CONFIGS["released"])


@every_case
def test_a_score_that_is_not_finite_is_pinned_to_its_example(name: str, config: str) -> None:
    base, full, available = pool(10)
    bad = np.flatnonzero(available)[[1, 4]]
    without = available.copy()
    without[bad] = False
    key = jax.random.key(10)
    for value in (np.nan, np.inf, -np.inf):
        spoilt = [values.copy() for values in (base, full)]
        for values in spoilt:
            values[bad] = value
        _, scores = call(name, config, key, *spoilt, available)
        if name == "random":
            assert np.isfinite(scores).all()
            continue
        assert np.flatnonzero(~np.isfinite(scores)).tolist() == bad.tolist()
        _, want = call(name, config, key, base, full, without)
        np.testing.assert_array_equal(np.asarray(scores)[without], np.asarray(want)[without])
        with pytest.raises(ScoreError, match=f"^2 of {SIZE} .*: id-{bad[0]}, id-{bad[1]};"):
            check_finite(scores, [f"id-{i}" for i in range(SIZE)])
