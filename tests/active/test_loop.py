"""The loop on the shipped model and a small pool, without files."""

import dataclasses
from contextlib import contextmanager

import jax
import numpy as np
import pytest

from star_jax.acquisition.pool_scoring import BatchSizes, choose_shapes, generated_pool
from star_jax.acquisition.strategies import get_strategy
from star_jax.active.loop import Problem, init, step
from star_jax.active.pool import available
from star_jax.annotators.oracle import SimulatedOracle
from star_jax.benchmarks.skills import generator as skills
from star_jax.checkpoints.hub import load_tokenizer
from star_jax.checkpoints.huggingface import load_model
from star_jax.config import (
    DataConfig,
    ExperimentConfig,
    LoopConfig,
    LoraConfig,
    ScoringConfig,
    TrainingConfig,
)
from star_jax.data.examples import Prompt
from star_jax.data.tasks import get_task
from star_jax.data.tokenization import Encoder, Limits
from star_jax.errors import ScoreError
from star_jax.training.trainer import training_shapes

CONFIG = ExperimentConfig(
    lora=LoraConfig(rank=2, alpha=4, dropout=0.1, training_dropout="tied", targets=("q_proj",)),
    training=TrainingConfig(learning_rate=5e-3, epochs=1, batch_size=8),
    scoring=ScoringConfig(mc_samples=2, batch_size=32),
    loop=LoopConfig(initial_labels=8, labels_per_round=4, rounds=3),
    data=DataConfig(task="skills"),
)


@pytest.fixture(scope="module")
def examples():
    return skills.pool_examples("R0", 3, 30)


@pytest.fixture(scope="module")
def problem(examples):
    encoder = Encoder(
        load_tokenizer("embedded:skills"),
        get_task("skills"),
        Limits(skills.MAX_PROMPT_TOKENS, skills.MAX_RESPONSE_TOKENS),
    )
    prompts = [example.prompt for example in examples]
    tokens = encoder.prompts(prompts)
    known = [len(row.tokens) for row in encoder.examples(skills.test_examples()[::20])]
    longest = encoder.limits.prompt + encoder.limits.response
    pool = generated_pool(encoder, tokens, choose_shapes([*map(len, tokens)], known, longest, BatchSizes(32, 32)))
    shapes = training_shapes(known, [], longest, CONFIG.training)
    return Problem(load_model("embedded:skills"), encoder, prompts, pool, shapes, SimulatedOracle(examples))


def play(problem, strategy, rounds=3, key=None):
    key = jax.random.key(0) if key is None else key
    state, infos = init(len(problem.prompts)), []
    for _ in range(rounds):
        state, info = step(CONFIG, get_strategy(strategy), problem, state, key)
        infos.append(info)
    return state, infos


@pytest.fixture(scope="module")
def played(problem):
    return play(problem, "star")


def test_budget_is_exact_and_picks_never_repeat(played):
    state, infos = played
    assert [len(info.picked) for info in infos] == [8, 4, 4]
    assert [info.labelled for info in infos] == [8, 12, 16]
    assert len(set(np.concatenate([info.picked for info in infos]).tolist())) == 16
    assert int(np.sum(~np.asarray(available(state.pool)))) == 16
    for number, info in enumerate(infos):
        np.testing.assert_array_equal(np.asarray(state.pool.labelled_in)[info.picked], number)


def test_the_annotator_is_asked_for_what_is_picked_and_once(problem, examples):
    oracle = SimulatedOracle(examples)
    _, infos = play(dataclasses.replace(problem, annotator=oracle), "entropy", rounds=2)
    assert oracle.asked == [examples[i].id for info in infos for i in info.picked]


def test_base_scores_are_computed_once_and_handed_on(problem, played):
    state, infos = played
    np.testing.assert_array_equal(infos[1].base, infos[2].base)
    np.testing.assert_array_equal(infos[1].base, np.asarray(state.base))
    again = init(len(problem.prompts))._replace(base=state.base)
    again, _ = step(CONFIG, get_strategy("star"), problem, again, jax.random.key(0))
    _, info = step(CONFIG, get_strategy("star"), problem, again, jax.random.key(0))
    np.testing.assert_array_equal(info.picked, infos[1].picked)


def test_a_step_depends_on_its_state_and_key_alone(problem, played):
    """Going back to an earlier state gives the same future: what resuming relies on."""
    _, infos = played
    state, _ = play(problem, "star", rounds=2)
    state, info = step(CONFIG, get_strategy("star"), problem, state, jax.random.key(0))
    np.testing.assert_array_equal(info.picked, infos[2].picked)
    for ours, theirs in zip(jax.tree.leaves(state.adapter), jax.tree.leaves(played[0].adapter), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_another_key_gives_another_run(problem, played):
    _, infos = play(problem, "star", rounds=1, key=jax.random.key(1))
    assert set(infos[0].picked.tolist()) != set(played[1][0].picked.tolist())


def test_progress_ends_at_its_total(problem):
    """Of every phase, whatever is scored how often: star asks the base model, for answers, and for samples of them."""
    phases = []

    class Counter:
        @contextmanager
        def phase(self, name, total, unit):
            done = []
            yield done.append
            phases.append((name, total, sum(done)))

    for strategy in ("star", "entropy", "base_only", "random"):
        state = init(len(problem.prompts))
        for _ in range(2):
            state, _ = step(CONFIG, get_strategy(strategy), problem, state, jax.random.key(0), Counter())
    assert all(done == total for _, total, done in phases)
    scored = [total for name, total, _ in phases if name == "score"]
    assert scored == [3 * 30, 30, 30, 0]


def test_random_scores_nothing(problem):
    _, infos = play(problem, "random", rounds=2)
    assert infos[1].scores is infos[1].base is infos[1].full is None


def test_broken_scores_are_named(problem):
    state, _ = play(problem, "base_only", rounds=1)
    broken = np.ones(len(problem.prompts), np.float32)
    place = int(np.flatnonzero(np.asarray(available(state.pool)))[0])
    broken[place] = np.nan
    with pytest.raises(ScoreError, match=problem.prompts[place].id):
        step(
            CONFIG,
            get_strategy("base_only"),
            problem,
            state._replace(base=jax.numpy.asarray(broken)),
            jax.random.key(0),
        )


def test_broken_weights_are_noticed_by_the_default_strategy(problem, played):
    """NaN must reach the check: an entropy of 0 · log 0 = 0 may not swallow it."""
    state = played[0]._replace(round=1)
    broken = jax.tree.map(lambda leaf: leaf * jax.numpy.nan, state.adapter.weights)
    state = state._replace(adapter=state.adapter._replace(weights=broken))
    with pytest.raises(ScoreError, match="not finite"):
        step(CONFIG, get_strategy("star"), problem, state, jax.random.key(0))


def test_a_prompt_has_no_place_for_a_gold_response():
    with pytest.raises(TypeError):
        Prompt("id", "text", response="gold")
    with pytest.raises((AttributeError, TypeError)):
        Prompt("id", "text").response = "gold"
