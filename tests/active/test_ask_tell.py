"""Ask and tell as pure functions: what a state holds is all that counts, and a call that fails changes none."""

import dataclasses
from contextlib import contextmanager

import jax
import numpy as np
import pytest

import star_jax as sj
from star_jax.acquisition.needs import Measure
from star_jax.acquisition.pool_scoring import score_pool
from star_jax.acquisition.strategy import get_strategy
from star_jax.active import ask_tell
from star_jax.active.ask_tell import ask, start, tell
from star_jax.active.pool import SKIPPED, UNLABELLED
from star_jax.active.state import Problem
from star_jax.annotators.annotator import Answer
from star_jax.annotators.oracle import SimulatedOracle
from star_jax.api.pool import tokenize
from star_jax.api.training import step_shapes
from star_jax.config import AcquisitionConfig, ExperimentConfig, LoopConfig, LoraConfig, TrainingConfig

SIZE = 9
CONFIG = ExperimentConfig(
    lora=LoraConfig(rank=2, targets=("q_proj",)),
    training=TrainingConfig(epochs=1, learning_rate=5e-3),
    loop=LoopConfig(rounds=3),
)
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def problem():
    rows = [{"id": f"q{number}", "question": f"rev {number} 3 1 ="} for number in range(SIZE)]
    model, pool = sj.load_model("embedded:skills"), sj.read_pool(rows, "skills")
    tokens = tokenize(model, pool)
    shapes = step_shapes(tokens, pool, CONFIG.training)
    oracle = SimulatedOracle({})
    return Problem(model.weights, tokens.encoder, pool.prompts, tokens.prompts, tokens.batches(pool), shapes, oracle)


def asked(problem, state, count, key=KEY, strategy="entropy", config=CONFIG):
    return ask(config, get_strategy(strategy), problem, state, key, count)


def told(problem, state, answers, key=KEY):
    """State and info; answers as id -> label, None for one that is skipped."""
    return tell(CONFIG, problem, state, [Answer(name, label) for name, label in answers.items()], key)


@pytest.fixture(scope="module")
def labelled(problem):
    """After a training on three labels, one of four requests being open still."""
    state, requests = asked(problem, start(SIZE), 4)
    state, _ = told(problem, state, {request.id: "1 3" for request in requests[:3]})
    return state


def bits(state):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state.loop.adapter)]


def places(state, value):
    return np.flatnonzero(np.asarray(state.loop.pool.labelled_in) == value).tolist()


def test_the_first_requests_may_be_what_the_base_model_is_least_sure_of(problem, labelled):
    """Before the first training, whatever the strategy; later it is the strategy that asks."""
    first = dataclasses.replace(CONFIG, loop=LoopConfig(rounds=3, initial="base_uncertainty"))
    entropy = np.asarray(score_pool(problem.model, None, problem.pool).measures["token_entropy"])
    order = sorted(range(SIZE), key=lambda place: -entropy[place])
    requests = asked(problem, start(SIZE), 4, strategy="random", config=first)[1]
    assert [request.id for request in requests] == [problem.prompts[place].id for place in order[:4]]
    assert [request.score for request in requests] == pytest.approx(entropy[order[:4]].tolist(), rel=1e-5)
    assert {(request.strategy, request.picked_by) for request in requests} == {("random", "base_only")}
    assert asked(problem, labelled, 3, strategy="random", config=first)[1][0].score is None
    assert asked(problem, start(SIZE), 1, strategy="entropy")[1][0].picked_by == "random"
    assert asked(problem, labelled, 1, strategy="entropy")[1][0].picked_by == "entropy"


@pytest.mark.parametrize("strategy", ["entropy", "random", "entropy_dynamic", "bald"])
def test_the_same_state_and_key_give_the_same_requests(problem, labelled, strategy):
    for state in (start(SIZE), labelled):
        (after, requests), (again, requests_again) = (asked(problem, state, 3, strategy=strategy) for _ in range(2))
        assert requests == requests_again
        assert after.asks == again.asks == state.asks + 1
        assert after.open == tuple(requests)


def test_chance_is_in_the_key_and_in_the_number_of_the_question(problem, labelled):
    for state in (start(SIZE), labelled):
        after, requests = asked(problem, state, 5, strategy="random")
        _, other = asked(problem, state, 5, jax.random.key(1), strategy="random")
        _, later = asked(problem, after, 5, strategy="random")
        assert [one.id for one in requests] != [one.id for one in other]
        assert [one.id for one in requests] != [one.id for one in later]


def test_the_same_answers_give_the_same_adapter(problem):
    one, info = told(problem, start(SIZE), {"q0": "1 3 0", "q4": "1 3 4"})
    other, info_again = told(problem, start(SIZE), {"q4": "1 3 4", "q0": "1 3 0"})
    assert bits(one) == bits(other)
    assert info.train_loss == info_again.train_loss
    assert bits(one) != bits(told(problem, start(SIZE), {"q0": "1 3 0", "q4": "1 3 4"}, jax.random.key(1))[0])


def test_a_request_without_an_answer_goes_back_to_the_pool(problem):
    state, requests = asked(problem, start(SIZE), 4)
    state, info = told(problem, state, {requests[0].id: "1 3", requests[2].id: None})
    assert (info.labelled, info.skipped, info.unanswered) == (1, 1, 2)
    assert state.open == ()
    _, rest = asked(problem, state, SIZE - 2)
    assert {requests[1].id, requests[3].id} < {request.id for request in rest}
    assert not {requests[0].id, requests[2].id} & {request.id for request in rest}


def test_asking_labels_nothing(problem, labelled):
    after, _ = asked(problem, labelled, 3)
    assert after.loop.labels == labelled.loop.labels
    assert places(after, UNLABELLED) == places(labelled, UNLABELLED)
    assert bits(after) == bits(labelled)


def test_what_is_skipped_is_never_asked_again_nor_trained_on(problem, monkeypatch):
    trained = []
    train = ask_tell.train
    monkeypatch.setattr(ask_tell, "train", lambda *given: trained.append(sorted(given[2])) or train(*given))
    state, info = told(problem, start(SIZE), {"q3": None})
    assert (info.labelled, info.train_loss, state.loop.adapter) == (0, None, None)
    for number in range(3):
        state, requests = asked(problem, state, 2)
        state, _ = told(problem, state, {requests[0].id: "1 3", requests[1].id: None})
        assert state.skipped == number + 2
    assert "q3" not in {problem.prompts[place].id for place in (*state.loop.labels, *places(state, UNLABELLED))}
    assert len(places(state, SKIPPED)) == 4
    assert not set(places(state, SKIPPED)) & {place for rows in trained for place in rows}
    assert [len(rows) for rows in trained] == [1, 2, 3]


def test_skipping_takes_a_label_back_and_a_label_a_skip(problem, labelled):
    name = problem.prompts[next(iter(labelled.loop.labels))].id
    state, info = told(problem, labelled, {name: None})
    assert (info.labelled, info.skipped) == (2, 1)
    assert info.train_loss is not None
    assert told(problem, state, {name: None})[1][:2] == (2, 1)
    state, info = told(problem, state, {name: "1"})
    assert (info.labelled, info.skipped) == (3, 0)


def test_without_labels_there_is_no_adapter(problem):
    state, _ = told(problem, start(SIZE), {"q0": "1 3 0"})
    assert state.loop.adapter is not None
    state, info = told(problem, state, {"q0": None})
    assert state.loop.adapter is None
    assert (info.labelled, info.train_loss) == (0, None)


def test_another_label_for_the_same_example_trains_anew(problem, labelled):
    place = next(iter(labelled.loop.labels))
    name = problem.prompts[place].id
    state, info = told(problem, labelled, {name: "9"})
    assert state.loop.labels[place] == "9"
    assert info.labelled == len(labelled.loop.labels)
    assert info.train_loss is not None
    assert state.loop.round == labelled.loop.round + 1
    assert bits(state) != bits(labelled)


def test_nothing_new_trains_nothing(problem, labelled):
    known = {problem.prompts[place].id: text for place, text in labelled.loop.labels.items()}
    for answers in ({}, known):
        state, info = told(problem, labelled, answers)
        assert state.loop.round == labelled.loop.round
        assert bits(state) == bits(labelled)
        assert (info.train_loss, info.labelled) == (None, 3)
    state, info = told(problem, start(SIZE), {})
    assert (state.loop.adapter, info.train_loss, info.labelled) == (None, None, 0)


def test_what_nobody_asked_for_may_be_told(problem):
    state, requests = asked(problem, start(SIZE), 2)
    other = next(prompt.id for prompt in problem.prompts if prompt.id not in {one.id for one in requests})
    _, info = told(problem, state, {other: "1 3"})
    assert (info.labelled, info.unanswered) == (1, 2)


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        ([Answer("q0", "1"), Answer("nobody", "1")], "'nobody', and no example of the pool has that id"),
        ([Answer("nobody", None)], "'nobody', and no example"),
        ([Answer("q0", "1"), Answer("q1", "1"), Answer("q0", "1")], "two answers for 'q0'"),
        ([Answer("q0", "1"), Answer("q0", None)], "two answers for 'q0'"),
    ],
)
def test_answers_that_cannot_be_told_change_nothing(problem, labelled, answers, sentence):
    before = (dict(labelled.loop.labels), np.asarray(labelled.loop.pool.labelled_in).tolist(), bits(labelled))
    with pytest.raises(sj.DataError, match=sentence):
        tell(CONFIG, problem, labelled, answers, KEY)
    assert before == (dict(labelled.loop.labels), np.asarray(labelled.loop.pool.labelled_in).tolist(), bits(labelled))


def test_an_earlier_state_has_the_same_future_whatever_came_after(problem, labelled):
    first, requests = asked(problem, labelled, 2)
    told(problem, first, {requests[0].id: "9 9", requests[1].id: None})
    again, requests_again = asked(problem, labelled, 2)
    assert requests == requests_again
    assert bits(again) == bits(first)


@pytest.mark.parametrize(("count", "sentence"), [(0, "ask for 1 to 6"), (-2, "ask for 1 to 6"), (7, "7 examples were")])
def test_a_count_out_of_range_is_refused(problem, labelled, count, sentence):
    with pytest.raises(sj.ConfigError, match=sentence):
        asked(problem, labelled, count)


def test_where_nothing_is_left_it_is_said(problem, labelled):
    skipped, _ = told(problem, labelled, {problem.prompts[place].id: None for place in places(labelled, UNLABELLED)})
    with pytest.raises(sj.ConfigError, match="nothing left to ask for"):
        asked(problem, skipped, 1)


def test_labels_from_the_beginning_are_trained_on_by_the_first_tell(problem):
    state = start(SIZE, {4: "1 3 4", 2: "1 3 2"})
    assert list(state.loop.labels) == [2, 4]
    assert places(state, 0) == [2, 4]
    state, info = told(problem, state, {})
    assert info.labelled == 2
    assert info.train_loss is not None
    one, requests = asked(problem, state, SIZE - 2)
    assert all(request.score is not None for request in requests)
    assert not {"q2", "q4"} & {request.id for request in requests}
    assert one.loop.labels == {2: "1 3 2", 4: "1 3 4"}


def test_measures_of_the_base_model_are_computed_once(problem, labelled):
    after, first = asked(problem, labelled, 3, strategy="entropy_dynamic")
    entropy = Measure("token_entropy", "base")
    assert entropy in after.loop.base
    poisoned = after._replace(loop=after.loop._replace(base={entropy: -after.loop.base[entropy]}))
    again, same = asked(problem, after, 3, strategy="entropy_dynamic")
    _, other = asked(problem, poisoned, 3, strategy="entropy_dynamic")
    assert [one.id for one in same] == [one.id for one in first]
    assert [one.id for one in other] != [one.id for one in first]
    np.testing.assert_array_equal(again.loop.base[entropy], after.loop.base[entropy])


def test_progress_is_told_by_phase(problem, labelled):
    phases = []

    class Watcher:
        @contextmanager
        def phase(self, name, total, unit):
            seen = []
            yield seen.append
            phases.append((name, total, sum(seen), unit))

    strategy = get_strategy("entropy")
    state, requests = ask(CONFIG, strategy, problem, labelled, KEY, 2, Watcher())
    tell(CONFIG, problem, state, [Answer(requests[0].id, "1 3")], KEY, Watcher())
    assert [(name, unit) for name, _, _, unit in phases] == [("score", "examples"), ("train", "examples")]
    assert all(total == done > 0 for _, total, done, _ in phases)


def test_more_than_a_query_scores_cannot_be_asked_for(problem, labelled):
    config = dataclasses.replace(CONFIG, acquisition=AcquisitionConfig(score_at_most=3))
    assert len(asked(problem, labelled, 3, config=config)[1]) == 3
    with pytest.raises(sj.ConfigError, match=r"^4 examples .* acquisition\.score_at_most is 3, .* ask for at most 3$"):
        asked(problem, labelled, 4, config=config)
    assert len(asked(problem, labelled, 4, strategy="random", config=config)[1]) == 4  # which scores nothing
