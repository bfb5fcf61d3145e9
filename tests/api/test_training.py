"""Fine-tuning, judging and answering from a notebook."""

import jax
import numpy as np
import pytest

import star_jax as sj
from star_jax.api.model import TunedAdapter
from star_jax.api.pool import ExamplePool
from star_jax.models.lora import Adapter

WRONG = [{"id": f"w{n}", "question": f"rev {n} 1 4 =", "answer": "9 9"} for n in range(4)]
"""What the model would not answer by itself."""
RIGHT = [
    {"id": "b", "question": "max 3 1 4 =", "answer": "4"},
    {"id": "a", "question": "rev 3 1 4 =", "answer": "4 1 3"},
    {"id": "c", "question": "rev 2 7 5 =", "answer": "5 7 2"},
]


def same(one: TunedAdapter, other: TunedAdapter) -> bool:
    leaves = zip(jax.tree.leaves(one.weights), jax.tree.leaves(other.weights), strict=True)
    return all(np.array_equal(a, b) for a, b in leaves)


@pytest.fixture(scope="module")
def taught(model):
    """Trained long enough to know its four examples."""
    training = sj.TrainingConfig(epochs=12, learning_rate=2e-2, decay_b=0.0)
    return sj.fit(model, sj.read_pool(WRONG, "skills"), lora=sj.LoraConfig(rank=8), training=training)


def test_what_was_trained_on_is_answered(model, taught):
    test = sj.read_pool(WRONG, "skills")
    before, after = sj.evaluate(model, test), sj.evaluate(model, test, taught)
    assert before.accuracy == 0.0
    assert after.accuracy == 1.0
    assert after.nll < before.nll
    assert taught.base_model == "embedded:skills"


def test_an_adapter_judges_the_same_after_it_was_saved(model, taught, tmp_path):
    test = sj.read_pool(RIGHT + WRONG, "skills")
    loaded = sj.load_adapter(taught.save(tmp_path / "adapter"), model)
    assert same(loaded, taught)
    assert sj.evaluate(model, test, loaded) == sj.evaluate(model, test, taught)


def test_a_fit_is_a_function_of_its_key_and_of_labelled_rows(model, quick):
    pool = sj.read_pool(WRONG, "skills")
    mixed = sj.read_pool([*WRONG, {"id": "z", "question": "max 1 2 ="}], "skills")
    steps = []
    one = sj.fit(model, pool, **quick, on_step=steps.append)
    assert sum(steps) == len(WRONG)
    assert same(one, sj.fit(model, pool, **quick))
    assert same(one, sj.fit(model, mixed, **quick))
    assert not same(one, sj.fit(model, pool, **quick, key=1))


def test_a_fit_goes_on_from_an_adapter(model, taught):
    pool = sj.read_pool(WRONG, "skills")
    start = TunedAdapter(taught.weights, model.name, rslora=True)
    further = sj.fit(model, pool, training=sj.TrainingConfig(epochs=1, learning_rate=1e-5), start=start)
    assert further.rslora
    shapes = [leaf.shape for leaf in jax.tree.leaves(taught.weights)]
    assert [leaf.shape for leaf in jax.tree.leaves(further.weights)] == shapes
    assert not same(further, taught)
    assert sj.evaluate(model, pool, further).accuracy == 1.0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"training": sj.TrainingConfig(replay="embedded:skills", replay_rows=2)}, "star-jax run alone reads"),
        ({"training": sj.TrainingConfig(validation_fraction=0.5)}, "fit trains on all labels"),
        ({"lora": sj.LoraConfig(targets=("nowhere",))}, "matches no module"),
    ],
)
def test_settings_without_an_effect_are_refused(model, options, sentence):
    with pytest.raises(sj.ConfigError, match=sentence):
        sj.fit(model, sj.read_pool(WRONG, "skills"), **options)


def test_there_must_be_something_to_train_on(model, pool):
    with pytest.raises(sj.DataError, match="no example of the pool has a label"):
        sj.fit(model, pool)


def test_a_training_that_diverges_is_named(model):
    training = sj.TrainingConfig(epochs=6, learning_rate=1e30)
    with pytest.raises(FloatingPointError, match=r"lower training\.learning_rate"):
        sj.fit(model, sj.read_pool(WRONG, "skills"), training=training)


def test_right_and_wrong_answers_are_told_apart(model):
    found = sj.evaluate(model, sj.read_pool(RIGHT + WRONG[:1], "skills"))
    assert found.accuracy == 0.75
    assert found.group_accuracy["max"] == 1.0
    assert found.group_accuracy["rev"] == pytest.approx(2 / 3)
    assert found.auroc is not None
    assert [one["id"] for one in found.predictions] == ["a", "b", "c", "w0"]
    assert [one["correct"] for one in found.predictions] == [True, True, True, False]
    assert found.predictions[3]["reference"] == "9 9"
    assert all(0 < one["confidence"] <= 1 for one in found.predictions)
    assert sj.evaluate(model, sj.read_pool(RIGHT, "skills")).auroc is None


def test_batches_do_not_change_a_judgement(model):
    test = sj.read_pool(RIGHT + WRONG, "skills")
    told = []
    small = sj.evaluate(model, test, batch_size=2, on_batch=told.append)
    assert sum(told) == 2 * len(test)
    assert small.accuracy == sj.evaluate(model, test).accuracy


def test_the_first_example_without_a_label_is_named(model):
    rows = [*RIGHT, {"id": "e", "question": "max 1 2 ="}, {"id": "d", "question": "max 1 2 ="}]
    with pytest.raises(sj.DataError, match="2 examples of the test set have no label, d among them"):
        sj.evaluate(model, sj.read_pool(rows, "skills"))


def test_answers_come_in_the_order_of_the_pool(model):
    labelled = sj.read_pool(RIGHT, "skills")
    unlabelled = sj.read_pool([{"id": row["id"], "question": row["question"]} for row in RIGHT], "skills")
    found = sj.predict(model, unlabelled)
    assert [one.id for one in found] == ["a", "b", "c"]
    assert [one.response for one in found] == ["4 1 3", "4", "5 7 2"]
    assert found == sj.predict(model, labelled)
    judged = sj.evaluate(model, labelled).predictions
    assert [one.response for one in found] == [one["prediction"] for one in judged]
    np.testing.assert_allclose([one.confidence for one in found], [one["confidence"] for one in judged], rtol=1e-5)


def test_an_answer_is_what_the_format_reads_or_none(model):
    format = sj.Format(prompt="{{ question }} ", answers=("4", "5"), match="choice")
    pool = sj.read_pool([{"question": "max 3 1 4 ="}, {"question": "rev 3 1 2 ="}], format)
    first, second = sj.predict(model, pool)
    assert (first.response.strip(), first.answer) == ("4", "4")
    assert second.answer is None


def test_nothing_is_answered_for_an_empty_pool(model, pool):
    assert sj.predict(model, ExamplePool((), pool.task, {})) == []


def test_an_adapter_of_zeros_is_the_base_model(model, taught):
    """What `predict` and `evaluate` do with an adapter is to add it."""
    zeros = Adapter(jax.tree.map(np.zeros_like, taught.weights.weights), taught.weights.scale)
    pool = sj.read_pool(RIGHT, "skills")
    bare = TunedAdapter(zeros, model.name)
    assert [one.response for one in sj.predict(model, pool, bare)] == [one.response for one in sj.predict(model, pool)]
