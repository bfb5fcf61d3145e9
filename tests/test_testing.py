"""`check_strategy` accepts what keeps the contract, and names the clause that a strategy breaks."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import star_jax as sj
from star_jax.acquisition.strategy import Picks, Strategy
from star_jax.registry import STRATEGIES
from star_jax.testing import COUNT, SIZE, StrategyError, check_strategy

ENTROPY, BASE, VECTOR = sj.Measure("token_entropy"), sj.Measure("token_entropy", model="base"), sj.Embedding()
BUILT_IN = [name for name in STRATEGIES.names() if name in STRATEGIES._built_in]


def first(pool, values, count=COUNT):
    """The unlabelled examples of the least values."""
    return jnp.argsort(jnp.where(pool.unlabelled, values, jnp.inf))[:count]


def made(function, *needs):
    return Strategy("mine", "of a test", needs or (ENTROPY,), function)


def correct(key, pool, query):
    return first(pool, -pool[ENTROPY], query.count)


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_strategy_of_the_package_keeps_the_contract(name):
    check_strategy(name)


@pytest.mark.parametrize("name", ["star", "bald", "entropy_subtract"])
@pytest.mark.parametrize(
    "options", [{"selection": "power"}, {"normaliser": "zscore", "schedule": "cosine", "reduction": "mean"}]
)
def test_their_parts_may_be_replaced(name, options):
    check_strategy(name, options=sj.AcquisitionConfig(**options), seed=1)


# Those that keep it.


def uniform(key, pool, query):
    return first(pool, jax.random.uniform(key, (pool.size,)), query.count)


def weighed_draw(key, pool, query):
    return first(pool, -jnp.log(pool[ENTROPY]) - jax.random.gumbel(key, (pool.size,)), query.count)


def product(key, pool, query):
    value = jnp.where(pool.unlabelled, pool[ENTROPY] * pool[BASE], 0.0)
    return Picks(first(pool, -value, query.count), value)


def spread(key, pool, query):
    """Each time the example that is farthest from all that were taken."""
    vectors = jnp.where(pool.unlabelled[:, None], pool[VECTOR], 0.0)

    def take(nearest, _):
        place = jnp.argmax(jnp.where(pool.unlabelled, nearest, -1.0))
        return jnp.minimum(nearest, ((vectors - vectors[place]) ** 2).sum(axis=1)).at[place].set(-1.0), place

    return jax.lax.scan(take, (vectors**2).sum(axis=1), length=query.count)[1]


def farthest_from_the_labelled(key, pool, query):
    centre = jnp.where(pool.unlabelled[:, None], 0.0, pool[VECTOR]).mean(axis=0)
    return first(pool, -((pool[VECTOR] - centre) ** 2).sum(axis=1), query.count)


def from_base_to_full(key, pool, query):
    weight = 1 - query.index / query.total
    return first(pool, -(weight * pool[BASE] + (1 - weight) * pool[ENTROPY]), query.count)


@pytest.mark.parametrize(
    "strategy",
    [
        made(correct),
        Strategy("mine", "uniform", (), uniform),
        made(weighed_draw),
        made(product, ENTROPY, BASE),
        made(spread, VECTOR),
        made(farthest_from_the_labelled, VECTOR),
        made(from_base_to_full, ENTROPY, BASE),
    ],
    ids=lambda strategy: strategy.pick.__name__,
)
def test_a_correct_strategy_passes(strategy):
    for seed in range(2):
        check_strategy(strategy, seed=seed)


@pytest.mark.usefixtures("registries")
def test_a_registered_one_is_checked_by_its_name():
    sj.register_strategy("hardest", needs=[ENTROPY])(correct)
    check_strategy("hardest")
    sj.register_strategy("clumsy", needs=[ENTROPY])(lambda key, pool, query: jnp.arange(query.count))
    with pytest.raises(StrategyError, match=r"^clumsy: "):
        check_strategy("clumsy")


# Those that do not: clause, strategy, what the message says.


def too_few(key, pool, query):
    return first(pool, -pool[ENTROPY], query.count - 1)


def labelled(key, pool, query):
    return jnp.argsort(jnp.where(pool.unlabelled, jnp.inf, pool[ENTROPY]))[: query.count]


def the_best_again_and_again(key, pool, query):
    return jnp.repeat(first(pool, -pool[ENTROPY], 1), query.count)


def out_of_the_pool(key, pool, query):
    return jnp.full(query.count, SIZE) + jnp.arange(query.count)


def from_the_end(key, pool, query):
    return -1 - correct(key, pool, query)


def not_whole(key, pool, query):
    return correct(key, pool, query).astype(jnp.float32)


def a_mask(key, pool, query):
    return jnp.zeros(pool.size, bool).at[correct(key, pool, query)].set(True)


def nothing(key, pool, query):
    correct(key, pool, query)


def fails(key, pool, query):
    return correct(key, pool, query) / 0 if pool[BASE] is None else None


def a_score_for_each_pick(key, pool, query):
    picked = correct(key, pool, query)
    return Picks(picked, pool[ENTROPY][picked])


def closest_to_the_mean_of_all(key, pool, query):
    return first(pool, jnp.abs(pool[ENTROPY] - pool[ENTROPY].mean()), query.count)


def below_the_largest_of_all(key, pool, query):
    return first(pool, jnp.abs(pool[BASE] - jnp.nanmax(pool[BASE]) / 2), query.count)


def not_a_number(key, pool, query):
    return Picks(correct(key, pool, query), jnp.full(pool.size, jnp.nan))


def endless_for_the_best(key, pool, query):
    picked = correct(key, pool, query)
    return Picks(picked, jnp.where(pool.unlabelled, pool[ENTROPY], 0.0).at[picked[0]].set(jnp.inf))


def remembers():
    calls = itertools.count()

    def one_further_each_time(key, pool, query):
        start = next(calls)
        return first(pool, -pool[ENTROPY], start + query.count)[start:]

    return one_further_each_time


def takes_turns():
    calls = itertools.count()

    def now_the_best_now_the_worst(key, pool, query):
        return first(pool, pool[ENTROPY] * (-1) ** next(calls), query.count)

    return now_the_best_now_the_worst


def draws_from_numpy():
    rng = np.random.default_rng(0)
    return lambda key, pool, query: first(pool, jnp.asarray(rng.random(pool.size)), query.count)


def remembers_the_last_query():
    seen = [0]

    def other_after_another(key, pool, query):
        last, seen[0] = seen[0], int(query.index)
        return first(pool, pool[ENTROPY] if last == 3 else -pool[ENTROPY], query.count)

    return other_after_another


def branches_on_a_value(key, pool, query):
    values = jnp.where(pool.unlabelled, pool[ENTROPY], 0.0)
    return first(pool, -values if values.max() > 0 else values, query.count)


def branches_on_the_query(key, pool, query):
    return first(pool, -pool[ENTROPY] if query.index < 2 else pool[ENTROPY], query.count)


def sorts_in_numpy(key, pool, query):
    return np.argsort(np.where(np.asarray(pool.unlabelled), -np.asarray(pool[ENTROPY]), np.inf))[: query.count]


def other_when_traced(key, pool, query):
    traced = isinstance(pool.unlabelled, jax.core.Tracer)
    return first(pool, pool[ENTROPY] if traced else -pool[ENTROPY], query.count)


def the_first(key, pool, query):
    return first(pool, jnp.arange(pool.size, dtype=jnp.float32), query.count)


def of_the_first_half(key, pool, query):
    late = jnp.arange(pool.size) >= pool.size // 2
    return first(pool, 1000.0 * late - pool[ENTROPY], query.count)


BROKEN = [
    ("picks", made(too_few), rf"returned int32\[{COUNT - 1}\]; it must return {COUNT}"),
    ("picks", made(labelled), "not in the unlabelled pool"),
    ("picks", made(the_best_again_and_again), "picked an example twice"),
    ("picks", made(out_of_the_pool), "not in the unlabelled pool"),
    ("picks", made(from_the_end), "not in the unlabelled pool"),
    ("picks", made(not_whole), "whole numbers"),
    ("picks", made(a_mask), "whole numbers"),
    ("picks", made(nothing), "returned nothing"),
    ("picks", made(fails), "it fails with ConfigError: .*not among its needs"),
    ("picks", made(a_score_for_each_pick), "scores of shape"),
    ("blind", made(closest_to_the_mean_of_all), r"measures of labelled examples become nan; .*pool\.unlabelled"),
    ("blind", made(below_the_largest_of_all, BASE), "measures of labelled examples become"),
    ("finite", made(not_a_number), "not numbers"),
    ("finite", made(endless_for_the_best), "not numbers"),
    ("deterministic", made(remembers()), "other picks the second time"),
    ("deterministic", made(takes_turns()), "other picks the second time"),
    ("deterministic", made(draws_from_numpy()), "other picks the second time"),
    ("deterministic", made(remembers_the_last_query()), "other picks the second time"),
    ("jit", made(branches_on_a_value), "cannot be compiled .*no Python branch"),
    ("jit", made(branches_on_the_query), "cannot be compiled"),
    ("jit", made(sorts_in_numpy), r"cannot be compiled .*use jax\.numpy"),
    ("jit", made(other_when_traced), r"compiled it picks \["),
    ("equivariant", made(the_first), "in a pool in another order"),
    ("equivariant", made(of_the_first_half), "in a pool in another order"),
]


@pytest.mark.parametrize(("clause", "strategy", "said"), BROKEN, ids=lambda value: getattr(value, "name", value))
def test_a_broken_strategy_is_refused_by_its_clause(clause, strategy, said):
    with pytest.raises(StrategyError, match=rf"^mine: {clause}: .*{said}"):
        check_strategy(strategy)


def test_every_clause_has_a_strategy_that_breaks_it():
    text = check_strategy.__doc__
    assert {clause for clause, _, _ in BROKEN} == {line.split("*")[1] for line in text.splitlines() if "- *" in line}


def test_one_that_is_not_meant_to_draw_must_not():
    for pick in (uniform, weighed_draw):
        check_strategy(made(pick), draws=True)
        with pytest.raises(StrategyError, match=r"^mine: deterministic: its picks depend on the key"):
            check_strategy(made(pick), draws=False)
    check_strategy(made(correct), draws=False)


def test_one_that_draws_by_place_is_left_out_of_the_last_clause():
    check_strategy(made(the_first), draws=True)


def test_what_is_no_strategy_is_refused():
    with pytest.raises(sj.ConfigError, match=r"did you mean entropy\?"):
        check_strategy("entrpy")
    for given in (correct, None, 3):
        with pytest.raises(sj.ConfigError, match="is no strategy; pass the name that it is registered under"):
            check_strategy(given)


def test_a_broken_contract_is_a_failed_assertion():
    """So that pytest shows it as a failure of the author's test."""
    assert issubclass(StrategyError, AssertionError)
