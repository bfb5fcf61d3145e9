"""The loop that a notebook drives: ask, tell, and go on after the kernel was restarted."""

import copy
import dataclasses
import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

import star_jax as sj
from star_jax.api.model import TunedAdapter
from star_jax.checkpoints.fingerprints import former_fingerprint

CLOSED = sj.Format(prompt="{{ question }} ", response="{{ label }}", answers=("1", "2"))


def label_of(request):
    """What a person says: the digits in descending order, whatever was asked."""
    return " ".join(sorted(request.text.split()[1:-1], reverse=True))


def ids(requests):
    return [request.id for request in requests]


def bits(adapter):
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(adapter.weights):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


@pytest.fixture
def make(model, pool, quick):
    """Makes loops of the same model, pool and settings, but for what is given."""

    def made(**changes):
        settings = {"model": model, "pool": pool, "strategy": "entropy", **quick} | changes
        return sj.ActiveLoop(settings.pop("model"), settings.pop("pool"), **settings)

    return made


@pytest.fixture(scope="module")
def told(model, pool, quick):
    """A loop after its first training, to copy."""
    loop = sj.ActiveLoop(model, pool, strategy="entropy", **quick)
    requests = loop.ask(4)
    loop.tell({request.id: label_of(request) for request in requests})
    return loop


@pytest.fixture
def trained(told):
    return copy.copy(told)


def known(loop):
    """What a call that fails must leave as it is."""
    return loop.labels, loop.unlabelled, ids(loop.requests)


def test_a_strategy_that_looks_at_groups_is_not_shown_labels(make):
    form = sj.Format(prompt="{{ question }} ", response="{{ label }}", answers=("1", "2"), group="label")
    labelled = sj.read_pool([{"question": "which", "label": "1"}], form)
    with pytest.raises(sj.ConfigError, match=r"format\.group is label, a column of labels"):
        make(pool=labelled, strategy="group_balanced")


def test_three_rounds_with_partial_answers_as_a_script(model, rows):
    rows = [row | {"group": "all"} for row in rows]
    pool = sj.read_pool(rows, "skills")
    loop = sj.ActiveLoop(
        model,
        pool,
        strategy="star",
        rounds=3,
        lora=sj.LoraConfig(rank=4),
        training=sj.TrainingConfig(epochs=2, learning_rate=5e-3),
        scoring=sj.ScoringConfig(mc_samples=2),
    )
    seen, reports = [], []
    for _ in range(3):
        requests = loop.ask(4)
        answers = {request.id: label_of(request) for request in requests}
        answers.pop(requests[1].id)
        answers[requests[2].id] = None
        answers[requests[3].id] = sj.SKIP
        reports.append(loop.tell(answers))
        seen.append(requests)
    test = sj.read_pool([{"question": "desc 3 1 4 =", "answer": "4 3 1"}], "skills")
    accuracy = loop.evaluate(test).accuracy

    assert [(info.labelled, info.skipped, info.unanswered) for info in reports] == [(1, 1, 2), (2, 2, 2), (3, 3, 2)]
    assert all(np.isfinite(info.train_loss) and len(info.step_losses) == 2 for info in reports)
    assert (loop.labelled, loop.unlabelled) == (3, 6)
    done = [request.id for requests in seen for request in (requests[0], requests[3])]
    assert len(set(done)) == 6
    assert [request.score is None for requests in seen for request in requests] == [True] * 4 + [False] * 8
    assert 0 <= accuracy <= 1


def test_the_first_question_is_random_and_repeats_by_key(make):
    first = ids(make().ask(5))
    assert first == ids(make().ask(5))
    assert first == ids(make(strategy="star").ask(5))
    assert first != ids(make(key=1).ask(5))
    assert [request.rank for request in make().ask(5)] == [0, 1, 2, 3, 4]


def test_the_first_question_may_ask_the_base_model(make, model, pool):
    asked = make(initial="base_uncertainty").ask(4)
    assert ids(asked) == sj.select_batch(sj.score_pool(model, pool), strategy="base_only", count=4)
    assert {request.picked_by for request in asked} == {"base_only"}
    with pytest.raises(sj.ConfigError, match="initial is 'first'; choose from random, typiclust"):
        make(initial="first")


def test_asking_again_without_an_answer_puts_what_was_asked_back(make, trained):
    loop = make()
    first = loop.ask(3)
    second = loop.ask(4)
    assert ids(loop.requests) == ids(second)
    assert ids(second) != ids(first)
    assert loop.unlabelled == 12
    # The strategy's own choice does not change as long as nothing is told.
    assert ids(trained.ask(3)) == ids(trained.ask(3))


def test_a_loop_is_a_function_of_what_was_asked_and_told(make):
    def play():
        loop = make()
        for _ in range(2):
            loop.tell({request.id: label_of(request) for request in loop.ask(3)})
        return loop

    one, other = play(), play()
    assert one.labels == other.labels
    assert bits(one.adapter) == bits(other.adapter)
    assert ids(one.ask(2)) == ids(other.ask(2))


def test_answers_of_every_form(make, pool):
    loop = make()
    info = loop.tell([sj.Answer("q00", "4 3 1", annotator="me"), sj.Answer("q01", None), sj.Answer("q02", sj.SKIP)])
    assert (info.labelled, info.skipped, info.unanswered) == (1, 2, 0)
    loop.tell({"q03": np.str_("1 3 4"), "q04": None})
    assert loop.labels == {"q00": "4 3 1", "q03": "1 3 4"}
    assert loop.unlabelled == len(pool) - 4


def test_telling_nothing_new_trains_nothing(trained):
    before = bits(trained.adapter)
    for answers in ({}, [], {"q00": None}, dict(trained.labels)):
        info = trained.tell(answers)
        assert info.train_loss is None
        assert len(info.step_losses) == 0
    assert bits(trained.adapter) == before
    name = next(iter(trained.labels))
    assert trained.tell({name: "1"}).train_loss is not None
    assert bits(trained.adapter) != before
    assert trained.labels[name] == "1"


def test_a_skip_counts_once_and_can_be_taken_back(make):
    loop = make()
    assert [loop.tell({"q00": text}).skipped for text in (sj.SKIP, " [Skip]\n")] == [1, 1]
    info = loop.tell({"q00": "4 3 1"})
    assert (info.labelled, info.skipped) == (1, 0)
    assert loop.adapter is not None
    info = loop.tell({"q00": sj.SKIP})
    assert (info.labelled, info.skipped) == (0, 1)
    with pytest.raises(sj.ConfigError, match="nothing has been trained yet"):
        loop.adapter  # noqa: B018
    assert "q00" not in ids(loop.ask(11))


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        ({"nobody": "1"}, "'nobody', and no example of the pool has that id"),
        ({3: "1"}, "for 3, and no example"),
        ({"q00": ""}, "label of 'q00' cannot be used: the response is empty"),
        ({"q00": "   "}, "label of 'q00' cannot be used: the response is empty"),
        ({"q00": 3}, "label of 'q00' is 3; it must be a text"),
        ({"q00": True}, "label of 'q00' is True; it must be a text"),
        ({"q00": float("nan")}, "label of 'q00' is nan; it must be a text"),
        ({"q00": "hello"}, "label of 'q00' cannot be used: the model's tokenizer cannot read"),
        ({"q00": "1 " * 70}, "label of 'q00' cannot be used: .*71 tokens, over the limit of 59"),
        ([sj.Answer("q00", "1"), sj.Answer("q00", "2")], "two answers for 'q00'"),
        ([sj.Answer("q00", 3)], "label of 'q00' is 3"),
        ([("q00", "1")], "answers must be a dictionary"),
        (["q00"], "answers must be a dictionary"),
        ("q00", "answers must be a dictionary"),
        (None, "answers must be a dictionary"),
        (pd.Series({"q00": "1"}), "answers must be a dictionary"),
    ],
)
def test_answers_that_cannot_be_used_are_named_and_none_is_taken_over(trained, answers, sentence):
    trained.ask(2)
    before, adapter = known(trained), trained.adapter
    if isinstance(answers, dict):
        answers = {"q11": "6 9 0", "q10": sj.SKIP} | answers
    with pytest.raises(sj.DataError, match=sentence):
        trained.tell(answers)
    assert known(trained) == before
    assert trained.adapter == adapter


def test_a_label_outside_of_a_closed_set_is_refused_by_id(make, rows):
    loop = make(pool=sj.read_pool(rows, CLOSED))
    before = known(loop)
    with pytest.raises(sj.DataError, match=r"label of 'q01' cannot be used: .*'3'; expected one of 1, 2"):
        loop.tell({"q00": "1", "q01": "3"})
    assert known(loop) == before
    loop.tell({"q00": " 1 ", "q01": "2"})
    assert loop.labels == {"q00": " 1", "q01": " 2"}
    assert all(0 <= request.score <= np.log(2) + 1e-6 for request in loop.ask(3))


def test_a_label_over_the_limit_is_refused_by_id(make):
    loop = make(limits=sj.TokenLimits(response=3))
    with pytest.raises(sj.DataError, match=r"label of 'q00' cannot be used: .*4 tokens, over the limit of 3"):
        loop.tell({"q00": "4 3 1"})
    assert loop.tell({"q00": "4 3"}).labelled == 1


@pytest.mark.parametrize(
    ("count", "sentence"),
    [
        (0, "0 examples were asked for and 8 are unlabelled; ask for 1 to 8"),
        (-1, "-1 examples"),
        (9, "9 examples were asked for and 8 are unlabelled"),
        (2.0, r"count is 2\.0; it must be a whole number"),
        ("2", "count is '2'"),
        (None, "count is None"),
        (True, "count is True"),
    ],
)
def test_a_count_that_cannot_be_asked_for_is_one_sentence(trained, count, sentence):
    before = known(trained)
    with pytest.raises(sj.ConfigError, match=sentence):
        trained.ask(count)
    assert known(trained) == before


def test_everything_can_be_asked_for_and_then_nothing_is_left(trained):
    requests = trained.ask(np.int64(8))
    assert len(set(ids(requests)) | set(trained.labels)) == 12
    trained.tell({request.id: label_of(request) for request in requests})
    assert trained.predict() == []
    with pytest.raises(sj.ConfigError, match="nothing left to ask for"):
        trained.ask(1)


def test_labels_that_the_pool_has_count_from_the_beginning(make, rows):
    labelled = [row | ({"answer": "1 2"} if row["id"] in ("q03", "q05") else {}) for row in rows]
    loop = make(pool=sj.read_pool(labelled, "skills"))
    assert loop.labels == {"q03": "1 2", "q05": "1 2"}
    with pytest.raises(sj.ConfigError, match="11 examples were asked for and 10"):
        loop.ask(11)
    with pytest.raises(sj.ConfigError, match="nothing has been trained yet"):
        loop.predict()
    requests = loop.ask(10)
    assert not {"q03", "q05"} & set(ids(requests))
    assert all(request.score is not None for request in requests)
    assert [request.score for request in requests] == sorted((request.score for request in requests), reverse=True)
    whole = make(pool=sj.read_pool([row | {"answer": "1 2"} for row in rows], "skills"))
    assert (whole.labelled, whole.unlabelled) == (12, 0)
    with pytest.raises(sj.ConfigError, match="nothing left to ask for"):
        whole.ask(1)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "released"])
@pytest.mark.parametrize("rounds", [1, 2])
def test_more_rounds_than_planned_have_finite_scores(told, make, schedule, rounds):
    loop = make(rounds=rounds, strategy="entropy_dynamic", acquisition=sj.AcquisitionConfig(schedule=schedule))
    loop._state = told._state
    assert all(np.isfinite(request.score) for request in loop.ask(3))


def test_predictions_and_judgement_are_those_of_the_last_adapter(trained, model, pool):
    test = sj.read_pool(
        [{"question": "desc 3 1 4 =", "answer": "4 3 1"}, {"question": "max 1 2 =", "answer": "2"}], "skills"
    )
    assert trained.evaluate(test) == sj.evaluate(model, test, trained.adapter)
    answers = trained.predict()
    assert [one.id for one in answers] == [name for name in pool.ids if name not in trained.labels]
    assert [one.id for one in trained.predict(pool)] == pool.ids
    assert trained.predict(test) == sj.predict(model, test, trained.adapter)


def test_nothing_can_be_judged_before_a_training(make, pool):
    for call in (lambda loop: loop.adapter, lambda loop: loop.predict(), lambda loop: loop.evaluate(pool)):
        with pytest.raises(sj.ConfigError, match="nothing has been trained yet"):
            call(make())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"strategy": "entrpy"}, r"did you mean entropy\?"),
        ({"strategy": "star", "lora": sj.LoraConfig(dropout=0.0)}, r"set lora\.dropout above 0"),
        ({"rounds": 0}, r"loop\.rounds is 0"),
        ({"rounds": 2.5}, r"rounds is 2\.5; it must be a whole number"),
        ({"key": -1}, "seeds must be from 0"),
        ({"key": "0"}, "key is '0'; it must be a whole number"),
        ({"scoring": sj.ScoringConfig(answers="reference")}, r"scoring\.answers is reference; leave it out"),
        ({"training": sj.TrainingConfig(replay="embedded:skills", replay_rows=1)}, "star-jax run alone reads"),
    ],
)
def test_settings_that_a_loop_cannot_follow_are_refused(make, changes, sentence):
    with pytest.raises(sj.ConfigError, match=sentence):
        make(**changes)


def test_a_copy_goes_its_own_way(told, trained):
    before = known(told)
    trained.tell({request.id: label_of(request) for request in trained.ask(2)})
    assert known(told) == before
    assert trained.labelled == told.labelled + 2


def test_a_loop_survives_a_pickle(told, trained):
    again = pickle.loads(pickle.dumps(trained))
    assert known(again) == known(told)
    assert bits(again.adapter) == bits(told.adapter)


def test_an_adapter_to_start_from_is_where_each_training_begins(make, adapter, model):
    start = TunedAdapter(adapter.weights, model.name, rslora=True)
    loop = make(start=start)
    loop.tell({"q00": "4 3 1"})
    assert loop.adapter.rslora
    assert set(loop.adapter.weights.weights["layers"]) == {"q_proj", "down_proj"}
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), loop.adapter.weights.weights, adapter.weights.weights)
    assert 0 < max(jax.tree.leaves(moved)) < 0.1


GO_ON = """
import json, sys
import jax
jax.config.update("jax_disable_most_optimizations", True)
import star_jax as sj
sys.path.insert(0, {tests!r})
import pytest
from api.test_loop import bits, ids, label_of
from shapes import have_one_shape
have_one_shape(pytest.MonkeyPatch())  # as in the first process
lora = sj.LoraConfig(rank=2, targets=("q_proj", "down_proj"))
training = sj.TrainingConfig(epochs=1, learning_rate=5e-3)
loop = sj.ActiveLoop(
    sj.load_model("embedded:skills"),
    sj.read_pool({file!r}, "skills"),
    strategy="entropy",
    lora=lora,
    training=training,
).load({folder!r})
found = {{"adapter": bits(loop.adapter), "open": ids(loop.requests), "labels": loop.labels}}
requests = loop.ask(3)
info = loop.tell({{request.id: label_of(request) for request in requests}})
found |= {{"asked": ids(requests), "info": info[:4], "next": bits(loop.adapter)}}
print(json.dumps(found))
"""


def test_a_new_process_goes_on_as_if_nothing_had_happened(trained, rows, tmp_path):
    open_requests = trained.ask(3)
    trained.tell({open_requests[0].id: sj.SKIP})
    open_requests = trained.ask(2)
    trained.save(tmp_path / "loop")
    file = tmp_path / "pool.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    script = GO_ON.format(tests=str(Path(__file__).parents[1]), file=str(file), folder=str(tmp_path / "loop"))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    want = {"adapter": bits(trained.adapter), "open": ids(open_requests), "labels": trained.labels}
    requests = trained.ask(3)
    info = trained.tell({request.id: label_of(request) for request in requests})
    want |= {"asked": ids(requests), "info": list(info[:4]), "next": bits(trained.adapter)}
    assert found == want


def test_loops_are_kept_at_every_stage(make, trained, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    fresh = make()
    assert fresh.save("~/loop") == tmp_path / "loop"
    assert ids(make().load("~/loop").ask(3)) == ids(fresh.ask(3))
    skipped = make()
    skipped.tell({"q00": sj.SKIP})
    skipped.save("~/loop")
    again = make().load("~/loop")
    assert (again.labelled, again.unlabelled) == (0, 11)
    assert again.tell({"q01": sj.SKIP}).skipped == 2
    requests = trained.ask(3)
    trained.save("~/loop")
    again = make().load("~/loop")
    assert again.requests == requests
    assert all(request.guess is not None and request.uncertainty is not None for request in requests)
    assert bits(again.adapter) == bits(trained.adapter)
    assert ids(again.ask(4)) == ids(trained.ask(4))
    assert [request.score for request in again.requests] == [request.score for request in trained.requests]


def test_measures_of_the_base_model_are_kept(make, trained, tmp_path):
    blended = make(strategy="entropy_dynamic")
    blended._state = trained._state
    blended.ask(2)
    assert set(blended._state.loop.base)
    blended.save(tmp_path / "loop")
    again = make(strategy="entropy_dynamic").load(tmp_path / "loop")
    for name, values in blended._state.loop.base.items():
        np.testing.assert_array_equal(again._state.loop.base[name], values)
    assert ids(again.ask(3)) == ids(blended.ask(3))


@pytest.fixture
def folder(trained, tmp_path):
    return trained.save(tmp_path / "loop")


def test_a_loop_that_an_earlier_version_saved_is_loaded(make, folder, model):
    state = folder / "loop.json"
    kept = json.loads(state.read_text())
    state.write_text(json.dumps(kept | {"model": former_fingerprint(model.folder.path)}))
    assert make().load(folder).labels == kept["labels"]


def test_a_loop_of_other_making_is_refused_and_what_differs_is_named(make, folder, rows, model, adapter, quick):
    other_model = dataclasses.replace(model, folder=dataclasses.replace(model.folder, fingerprint="other"))
    changes = {
        "pool": {"pool": sj.read_pool(rows[1:], "skills")},
        "model": {"model": other_model},
        "key": {"key": 1},
        "strategy": {"strategy": "margin"},
        r"lora\.rank": {"lora": dataclasses.replace(quick["lora"], rank=3)},
        r"training\.epochs": {"training": dataclasses.replace(quick["training"], epochs=2)},
        r"loop\.rounds": {"rounds": 3},
        "limits": {"limits": sj.TokenLimits(response=9)},
        "start": {"start": adapter},
        r"key, lora\.rank": {"key": 1, "lora": dataclasses.replace(quick["lora"], rank=3)},
    }
    for sentence, change in changes.items():
        loop = make(**change)
        before = known(loop)
        with pytest.raises(sj.ConfigError, match=rf"was saved by another loop \(not the same: {sentence}\);"):
            loop.load(folder)
        assert known(loop) == before
    texts = [{"id": row["id"], "prompt": row["question"]} for row in rows]
    closed = [sj.read_pool(texts, sj.Format(prompt="{{ prompt }} ", answers=answers)) for answers in ("12", "13")]
    place = make(pool=closed[0]).save(folder.parent / "closed")
    with pytest.raises(sj.ConfigError, match="not the same: format"):
        make(pool=closed[1]).load(place)


def test_other_targets_are_another_loop(make, told, tmp_path):
    """In a file of the same name; what was saved before targets were noted is taken up."""
    file = tmp_path / "targets.jsonl"
    settings = {"strategy": "rds_plus", "acquisition": sj.AcquisitionConfig(target_file=str(file))}
    file.write_text('{"question": "rev 1 2 ="}\n{"question": "rev 3 ="}\n')
    place = make(**settings).save(tmp_path / "loop")
    assert make(**settings).load(place).labelled == 0
    file.write_text('{"question": "rev 1 ="}\n{"question": "rev 2 3 ="}\n')
    with pytest.raises(sj.ConfigError, match="not the same: targets"):
        make(**settings).load(place)
    kept = json.loads((place / "loop.json").read_text())
    del kept["targets"]
    (place / "loop.json").write_text(json.dumps(kept))
    assert make(**settings).load(place).labelled == 0


def test_a_strategy_that_the_answers_do_not_allow_is_refused_at_once(make, rows):
    texts = [{"id": row["id"], "prompt": row["question"]} for row in rows]
    closed = sj.read_pool(texts, sj.Format(prompt="{{ prompt }} ", answers=("1", "2")))
    with pytest.raises(sj.ConfigError, match="strategy epig needs the probabilities of a closed answer set and task"):
        make(strategy="epig")
    with pytest.raises(sj.ConfigError, match="strategy vote_entropy draws answers, and those of a closed set are not"):
        make(strategy="vote_entropy", pool=closed)
    make(strategy="epig", pool=closed)


def test_how_many_examples_are_scored_at_once_may_differ(make, folder, trained):
    loop = make(scoring=sj.ScoringConfig(batch_size=4)).load(folder)
    assert loop.labels == trained.labels


def test_a_folder_without_a_loop_is_refused(make, tmp_path):
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(sj.ConfigError, match="holds no loop that was saved"):
            make().load(place)


@pytest.mark.parametrize("name", ["loop.npz", "loop.json"])
@pytest.mark.parametrize("damage", ["half", "empty", "list", "field", "id"])
def test_a_damaged_file_is_named(make, folder, name, damage):
    content = (folder / name).read_bytes()
    if damage == "half":
        (folder / name).write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        (folder / name).write_bytes(b"")
    elif damage == "list":
        (folder / name).write_text("[]")
    elif name == "loop.npz":
        (folder / name).unlink()
    else:
        kept = json.loads(content)
        if damage == "field":
            del kept["asks"]
        else:
            kept["labels"]["nobody"] = "1"
        (folder / name).write_text(json.dumps(kept))
    loop = make()
    before = known(loop)
    with pytest.raises(sj.DataError, match=f"{folder}.* is (damaged|not valid JSON|empty|a list)"):
        loop.load(folder)
    assert known(loop) == before


def test_nothing_of_somebody_elses_is_overwritten(make, trained, folder):
    loop = make()
    with pytest.raises(sj.ConfigError, match="is a file"):
        loop.save(folder / "loop.json")
    with pytest.raises(sj.ConfigError, match="holds loop, which would be lost"):
        loop.save(folder.parent)
    trained.adapter.save(folder / "adapter")
    with pytest.raises(sj.ConfigError, match="holds adapter, which would be lost"):
        loop.save(folder)
    assert make().load(folder).labels == trained.labels


def test_a_save_that_fails_leaves_the_last_one(make, trained, folder, monkeypatch):
    trained.ask(2)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        trained.save(folder)
    monkeypatch.undo()
    assert make().load(folder).requests == []
    assert [file.name for file in folder.parent.iterdir()] == ["loop"]
