"""The protocol: what a strategy may return, what it is refused for, and how one of your own gets its name."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.acquisition.needs import Embedding, Measure
from star_jax.acquisition.strategy import (
    Picks,
    PoolFeatures,
    Query,
    Strategy,
    check_finite,
    check_picks,
    get_strategy,
    pick,
    register_strategy,
)
from star_jax.config import AcquisitionConfig
from star_jax.errors import ConfigError, ScoreError
from star_jax.registry import STRATEGIES

SIZE, COUNT = 12, 3
ENTROPY = Measure("token_entropy")
QUERY = Query(0, 4, COUNT)
UNLABELLED = np.arange(SIZE) % 4 > 0

pytestmark = pytest.mark.usefixtures("registries")


def choose(function, needs=(), features=(), jit=True):
    """What the driver gets from a strategy that is this function."""
    strategy = Strategy("mine", "of a test", tuple(needs), function)
    call = jax.jit(pick, static_argnums=(0, 4)) if jit else pick
    return call(strategy, jax.random.key(0), tuple(features), jnp.asarray(UNLABELLED), QUERY)


# What comes back


def first(key, pool, query):
    return jnp.argsort(~pool.unlabelled)[: query.count]


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    "function",
    [
        first,
        lambda *of: (first(*of), None),
        lambda *of: Picks(first(*of)),
        lambda *of: np.asarray([1, 2, 3]),
        lambda *of: np.asarray([1, 2, 3], np.int64),
        lambda *of: np.asarray([1, 2, 3], np.uint8),
        lambda *of: [1, 2, 3],
        lambda *of: (1, 2, 3),
    ],
)
def test_indices_alone_are_picks_without_scores(function, jit):
    indices, scores = choose(function, jit=jit)
    assert indices.tolist() == [1, 2, 3]
    assert indices.dtype == jnp.int32
    assert scores is None


def test_scores_come_with_the_picks():
    values = np.arange(SIZE, dtype=np.float32)

    def largest(key, pool, query):
        scores = jnp.where(pool.unlabelled, pool[ENTROPY], -1)
        return Picks(jnp.argsort(-scores)[: query.count], scores)

    indices, scores = choose(largest, [ENTROPY], [jnp.asarray(values)])
    assert indices.tolist() == [11, 10, 9]
    np.testing.assert_array_equal(scores, np.where(UNLABELLED, values, -1))


def test_features_are_read_by_what_they_are():
    """In the order of the needs, whatever the shape."""
    needs = [Embedding(), ENTROPY, dataclasses.replace(ENTROPY, model="base"), Embedding("full", projection=2)]
    arrays = [jnp.ones((SIZE, 5)), jnp.full(SIZE, 2.0), jnp.full(SIZE, 3.0), jnp.full((SIZE, 2), 4.0)]
    seen = {}

    def look(key, pool, query):
        seen.update({need: pool[need] for need in needs})
        assert pool.size == SIZE
        return first(key, pool, query)

    choose(look, needs, arrays, jit=False)
    assert all(seen[need] is array for need, array in zip(needs, arrays, strict=True))
    # A need is found by its value, not by the object that was named.
    assert Embedding() in seen
    assert Measure("token_entropy", "full", False) in seen


# What is refused


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda *of: jnp.arange(COUNT + 1), "returned int32[4]; it must return 3 whole numbers, query.count of them"),
        (lambda *of: jnp.arange(COUNT)[None], "returned int32[1, 3]; it must return 3 whole numbers"),
        (lambda *of: jnp.int32(1), "returned int32[]; it must return 3 whole numbers"),
        (lambda *of: jnp.arange(COUNT) * 1.0, "returned float32[3]; it must return 3 whole numbers"),
        (lambda key, pool, query: pool.unlabelled[:COUNT], "returned bool[3]; it must return 3 whole numbers"),
        (
            lambda *of: (jnp.arange(COUNT), jnp.zeros(COUNT)),
            "returned scores of shape [3]; there must be one for each of the 12 examples of the pool",
        ),
        (lambda *of: (jnp.arange(COUNT), jnp.zeros((SIZE, 1))), "returned scores of shape [12, 1]; there must be one"),
        (lambda *of: (jnp.arange(COUNT), 0.5), "returned scores of shape []; there must be one"),
        (lambda *of: None, "returned nothing; it must return 3 indices, or Picks"),
        (lambda key, pool, query: pool[ENTROPY], "reads Measure(name='token_entropy', model='full', samples=False), "),
        (lambda key, pool, query: pool[Embedding()], "which is not among its needs; add it there"),
    ],
)
@pytest.mark.parametrize("jit", [False, True])
def test_what_is_no_batch_of_the_pool_is_refused_with_a_sentence(wrong, said, jit):
    with pytest.raises(ConfigError, match=re.escape(said)):
        choose(wrong, jit=jit)


def test_a_need_of_the_base_model_is_not_one_of_the_full_model():
    with pytest.raises(ConfigError, match=r"model='base', samples=False\), which is not among its needs"):
        choose(lambda key, pool, query: pool[Measure("token_entropy", "base")], [ENTROPY], [jnp.zeros(SIZE)])


@pytest.mark.parametrize("arrays", [0, 2])
def test_every_need_gets_its_array(arrays):
    with pytest.raises(ValueError, match=f"strategy mine needs 1 features, not {arrays}"):
        choose(first, [ENTROPY], [jnp.zeros(SIZE)] * arrays)


@pytest.mark.parametrize(
    ("indices", "said"),
    [
        ([1, 2, 4], "strategy first picked an example that is not in the unlabelled pool"),
        ([1, 2, 12], "strategy first picked an example that is not in the unlabelled pool"),
        ([1, 2, -1], "strategy first picked an example that is not in the unlabelled pool"),
        ([1, 2, 2**31 - 1], "strategy first picked an example that is not in the unlabelled pool"),
        ([3, 2, 3], "strategy first picked an example twice"),
    ],
)
def test_picks_that_cannot_be_labelled_are_refused_by_the_strategys_name(indices, said):
    strategy = Strategy("first", "of a test", (), first)
    check_picks(strategy, np.asarray([11, 1, 5]), UNLABELLED)
    with pytest.raises(ConfigError, match=f"^{said}$"):
        check_picks(strategy, np.asarray(indices), UNLABELLED)


def test_check_finite_names_the_examples() -> None:
    ids = [f"example-{i}" for i in range(30)]
    scores = np.zeros(30)
    check_finite(scores, ids)
    check_finite(jnp.zeros(30), ids)
    scores[[3, 7]] = np.nan, np.inf
    with pytest.raises(ScoreError, match=r"^2 of 30 .*: example-3, example-7;"):
        check_finite(scores, ids)
    scores[:] = np.nan
    with pytest.raises(ScoreError, match=r"example-9 and 20 more"):
        check_finite(scores, ids)


def test_check_finite_looks_at_every_entry_of_a_vector() -> None:
    ids = [f"example-{i}" for i in range(6)]
    vectors = np.zeros((6, 4), np.float32)
    check_finite(vectors, ids)
    vectors[4, 3], vectors[1] = -np.inf, np.nan
    with pytest.raises(ScoreError, match=r"^2 of 6 .*: example-1, example-4;"):
        check_finite(vectors, ids)
    check_finite(np.zeros(0), [])
    check_finite(np.zeros((0, 4)), [])


# What is asked for


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Measure("pe"), "'pe' is no measure; choose from sequence_nll, "),
        (lambda: Measure("margin", "both"), "a measure of model 'both'; choose base or full"),
        (lambda: Measure("bald", "base", samples=True), "the base model has no samples; ask for the full model's"),
        (lambda: Embedding("adapter"), "an embedding of model 'adapter' with pooling 'mean'; choose base or full"),
        (lambda: Embedding(pooling="first"), "an embedding of model 'base' with pooling 'first'; choose base or full"),
        (lambda: Embedding(projection=0), "an embedding's projection is 0; it must be at least 1, or None"),
    ],
)
def test_features_that_there_are_not_are_refused_where_they_are_named(make, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        make()


def test_a_strategy_says_what_it_needs_of_each_model():
    needs = (Measure("margin"), Embedding(), Measure("token_entropy_max", "base"), Measure("bald"))
    strategy = Strategy("mine", "", needs, first)
    assert strategy.measures("full") == [Measure("margin"), Measure("bald")]
    assert strategy.measures("base") == [Measure("token_entropy_max", "base")]
    assert not strategy.sampled
    assert dataclasses.replace(strategy, needs=(*needs, Measure("bald", samples=True))).sampled
    assert not Strategy("nothing", "", (), first).sampled


# Names


def test_a_registered_function_is_a_strategy_with_its_docstring():
    @register_strategy("surest", needs=[ENTROPY])
    def surest(key, pool, query):
        """The prompts the model is surest of.

        And more that is not said in a line.
        """
        return jnp.argsort(jnp.where(pool.unlabelled, pool[ENTROPY], jnp.inf))[: query.count]

    strategy = get_strategy("surest")
    assert strategy == Strategy("surest", "The prompts the model is surest of.", (ENTROPY,), surest)
    assert get_strategy("surest", AcquisitionConfig(selection="power")) is strategy
    values = jnp.asarray(np.arange(SIZE)[::-1], jnp.float32)
    indices, scores = pick(strategy, jax.random.key(0), (values,), jnp.asarray(UNLABELLED), QUERY)
    assert (indices.tolist(), scores) == ([11, 10, 9], None)
    assert STRATEGIES.names()[-1] == "surest"


def test_a_description_may_be_given_or_left_out():
    register_strategy("told", description="what I say")(lambda key, pool, query: None)
    register_strategy("untold")(lambda key, pool, query: None)
    assert get_strategy("told").description == "what I say"
    assert get_strategy("untold").description == "no description"


def test_a_name_of_the_package_cannot_be_taken():
    for name in ("star", "random", "margin"):
        with pytest.raises(ConfigError, match=f"^the strategy {name} comes with the package; choose another name$"):
            register_strategy(name)(first)
    assert get_strategy("random").description == "uniformly at random"


def test_a_name_registered_again_is_the_later_one():
    """As in a notebook, whose cells are run over and over."""
    register_strategy("mine", description="one")(first)
    register_strategy("mine", description="two")(first)
    assert get_strategy("mine").description == "two"
    assert STRATEGIES.names().count("mine") == 1


def test_a_typo_is_told_what_was_meant():
    register_strategy("hardest_of_each_topic")(first)
    for typo, meant in (("entropi", "entropy"), ("STAR", None), ("hardest_of_each_topics", "hardest_of_each_topic")):
        hint = f" (did you mean {meant}?)" if meant else ""
        said = f"strategies names {typo}, which does not exist{hint}; choose from random, entropy, pe, "
        with pytest.raises(ConfigError, match=f"^{re.escape(said)}.*, hardest_of_each_topic$"):
            get_strategy(typo)


def test_a_factory_is_told_the_settings_and_makes_one_strategy_of_each():
    made = []

    def factory(options):
        made.append(options)
        return Strategy("whatever", f"coldness {options.power}", (), first)

    STRATEGIES.register("cold", factory)
    cold, warm = (get_strategy("cold", AcquisitionConfig(power=power)) for power in (4.0, 0.5))
    assert (cold.name, cold.description) == ("cold", "coldness 4.0")
    assert (warm.name, warm.description) == ("cold", "coldness 0.5")
    assert get_strategy("cold", AcquisitionConfig(power=4.0)) == cold
    assert get_strategy("cold") == dataclasses.replace(cold, description="coldness 1.0")
    assert made == [AcquisitionConfig(power=4.0), AcquisitionConfig(power=0.5), AcquisitionConfig()]


class Odd:
    """Made of the settings, as a strategy is, and none."""

    def __init__(self, options):
        pass


@pytest.mark.parametrize(
    ("value", "kind"), [("entropy", "str"), (3, "int"), (lambda options: options, "function"), (Odd, "type")]
)
def test_what_is_no_strategy_is_refused_when_it_is_looked_up(value, kind):
    STRATEGIES.register("odd", value)
    with pytest.raises(ConfigError, match=f"the strategy odd is a {kind}; register a Strategy, or a function"):
        get_strategy("odd")


def test_features_outside_of_a_pool_are_named():
    pool = PoolFeatures(jnp.asarray(UNLABELLED), {ENTROPY: jnp.zeros(SIZE)})
    assert pool[ENTROPY] is pool.features[ENTROPY]
    with pytest.raises(ConfigError, match="a strategy reads margin, which is not among its needs"):
        pool["margin"]
