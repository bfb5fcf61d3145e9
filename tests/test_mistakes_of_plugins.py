"""What a user's own strategy, annotator or tracker can get wrong gets one sentence, early where it can be."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest

from star_jax.acquisition.needs import Measure
from star_jax.acquisition.settings import check_strategy_settings
from star_jax.acquisition.strategy import Strategy, get_strategy
from star_jax.annotators.annotator import Answer, Request, collect
from star_jax.config import ExperimentConfig, LoraConfig, ScoringConfig
from star_jax.data.examples import Prompt
from star_jax.data.tasks import get_task
from star_jax.errors import ConfigError, DataError
from star_jax.experiment.checks import check_experiment
from star_jax.registry import ANNOTATORS, STRATEGIES, TRACKERS, source_fingerprint
from star_jax.tracking.tracker import open_trackers

ENTROPY = Measure("token_entropy")


@pytest.fixture
def registered(monkeypatch):
    """What a test registers is forgotten after it."""
    for registry in (STRATEGIES, ANNOTATORS, TRACKERS):
        monkeypatch.setattr(registry, "_registered", dict(registry._registered))


def strategy(pick, needs=(ENTROPY,)):
    return Strategy("mine", "of a test", needs, pick)


def test_needs_that_are_no_features_are_named(registered):
    STRATEGIES.register("mine", strategy(lambda key, pool, query: None, ("token_entropy",)))
    with pytest.raises(ConfigError, match="strategy mine needs 'token_entropy', which is no feature"):
        get_strategy("mine")


def test_one_need_may_stand_alone(registered):
    STRATEGIES.register("mine", strategy(lambda key, pool, query: None, ENTROPY))
    assert get_strategy("mine").needs == (ENTROPY,)


def branches(key, pool, query):
    return jnp.arange(query.count) if pool[ENTROPY][0] > 1 else jnp.arange(query.count)[::-1]


def test_a_strategy_that_cannot_be_compiled_is_refused_with_its_line_before_a_run(registered):
    STRATEGIES.register("mine", strategy(branches))
    line = branches.__code__.co_firstlineno + 1
    with pytest.raises(ConfigError, match=rf"strategy mine fails \(.*{__name__}.py, line {line}\): Tracer"):
        check_experiment(ExperimentConfig(), [get_strategy("mine")], get_task("skills"))


def with_dropout(rate, **scoring):
    lora = LoraConfig(dropout=rate, training_dropout="off")
    return ExperimentConfig(lora=lora, scoring=ScoringConfig(**scoring))


def test_settings_that_leave_a_strategy_nothing_to_measure_are_refused():
    with pytest.raises(ConfigError, match=r"lora\.dropout is 0"):
        check_strategy_settings(get_strategy("star"), with_dropout(0.0))
    with pytest.raises(ConfigError, match=r"scoring\.mc_samples is 1"):
        check_strategy_settings(get_strategy("bald"), ExperimentConfig(scoring=ScoringConfig(mc_samples=1)))
    for wrong, said in (
        (ScoringConfig(posterior="none"), "measures how samples disagree and scoring.posterior is none"),
        (ScoringConfig(samples=1), "measures how drawn answers disagree and scoring.samples is 1"),
        (ScoringConfig(answers="candidates"), "scoring.answers is candidates, where none are drawn"),
    ):
        name = "bald" if wrong.posterior == "none" else "star_votes"
        with pytest.raises(ConfigError, match=said):
            check_strategy_settings(get_strategy(name), ExperimentConfig(scoring=wrong))
    check_strategy_settings(get_strategy("star"), with_dropout(0.0, posterior="laplace"))
    with pytest.raises(ConfigError, match=r"strategy sift looks .* acquisition\.target_file"):
        check_strategy_settings(get_strategy("sift"), ExperimentConfig())


class Gives:
    """An annotator with fixed answers."""

    def __init__(self, answers):
        self.answers = answers

    def annotate(self, requests):
        return self.answers

    def instructions(self, open_requests):
        return "wait"


@pytest.mark.parametrize("answers", [{"a": "x"}, ["x"], [Answer("a", 5)], [Answer("a", True)]])
def test_answers_of_an_annotator_must_be_answers(answers):
    with pytest.raises(DataError, match=r"the annotator gave .*; it must give an Answer whose response is a text"):
        collect(Gives(answers), [Request(Prompt("a", "text"))])


def test_two_different_answers_for_one_request_are_refused():
    request = Request(Prompt("a", "text"))
    with pytest.raises(DataError, match="two answers for 'a'"):
        collect(Gives([Answer("a", "x"), Answer("a", "y")]), [request])
    assert collect(Gives([Answer("a", "x"), Answer("a", "x")]), [request]) == [Answer("a", "x")]


def test_an_unknown_annotator_is_refused_before_a_model_is_loaded():
    with pytest.raises(ConfigError, match="annotator names nosuch, which does not exist"):
        check_experiment(ExperimentConfig(annotator="nosuch"), [], get_task("skills"))


def test_a_tracker_that_cannot_be_started_is_named_and_left_out(registered):
    def broken():
        raise RuntimeError("no network")

    TRACKERS.register("broken", broken)
    said = []
    open_trackers(["broken"], said.append).finish()
    assert said == ["tracker broken cannot be started and is left out: RuntimeError: no network"]


@pytest.mark.parametrize("name", ["..", "a/b", "a,b", "", " a", "a b", "-a"])
def test_names_that_could_be_no_folder_are_refused(registered, name):
    with pytest.raises(ConfigError, match="is no strategy's name"):
        STRATEGIES.register(name, branches)


def test_auto_is_no_annotator_of_ones_own(registered):
    with pytest.raises(ConfigError, match="'auto' is no annotator's name"):
        ANNOTATORS.register("auto", Gives)


def test_the_code_of_plugins_counts_and_that_of_the_package_does_not():
    assert source_fingerprint([get_strategy("star").pick, get_task("skills").prompt]) is None
    assert source_fingerprint([branches]) == source_fingerprint([test_one_need_may_stand_alone]) is not None


@pytest.mark.parametrize("wrap", [partial, jax.jit, lambda function: partial(jax.jit(function))])
def test_a_wrapped_function_counts_by_its_own_file(wrap):
    assert source_fingerprint([wrap(branches)]) == source_fingerprint([branches])
