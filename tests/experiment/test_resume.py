"""What a run folder must be before a run goes on, and what becomes of labels that were corrected."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest

from star_jax.active.pool import SKIPPED, UNLABELLED, PoolState
from star_jax.active.state import LoopState
from star_jax.annotators.annotator import Answer
from star_jax.annotators.oracle import SimulatedOracle
from star_jax.config import DataConfig, ExperimentConfig, LoopConfig, LoraConfig, TrainingConfig
from star_jax.data.examples import Prompt
from star_jax.errors import ConfigError, DataError, LabelsNeeded
from star_jax.experiment import runner
from star_jax.experiment.resume import (
    Bought,
    check_state,
    corrected_state,
    corrections,
    drop_unfinished,
    labels_bought,
)
from star_jax.runs.run_folder import RunFolder
from star_jax.tracking.console import Progress

POOL = [Prompt(f"q{number}", f"text {number}") for number in range(9)]
CONFIG = ExperimentConfig(strategies=("star",)).to_dict()


@pytest.fixture
def folder(tmp_path):
    """Two rounds of three labels, one example having been skipped in the second."""
    with RunFolder.open(tmp_path, "star", 0, CONFIG, "cpu") as opened:
        for number, rows in enumerate((["q0", "q3", "q5"], ["q1", "q2", "q4", "q8"])):
            queried = [{"id": name, "response": None if name == "q2" else f"label of {name}"} for name in rows]
            opened.write_round(number, queried, [])
            skipped = {"skipped": 1} if number == 1 else {}
            opened.append_metrics({"round": number, "labelled": 3 * (number + 1), "accuracy": 0.5, **skipped})
        yield opened


def rewrite(file, change):
    rows = change([json.loads(line) for line in file.read_text().splitlines()])
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_labels_are_those_of_all_rounds(folder):
    found = labels_bought(folder, POOL, 2)
    assert found.labels == {index: f"label of q{index}" for index in (0, 1, 3, 4, 5, 8)}
    assert found.labelled_in.tolist() == [0, 1, SKIPPED, 0, 1, 0, UNLABELLED, UNLABELLED, 1]
    assert labels_bought(folder, POOL, 1).labels.keys() == {0, 3, 5}
    check_state(folder, found, PoolState(found.labelled_in))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda rows: rows[:2], r"hold 2 labels, and metrics.jsonl counts 3 after round 0"),
        (lambda rows: [], r"hold 0 labels, and metrics.jsonl counts 3"),
        (lambda rows: [*rows, {"id": "q7", "response": "more"}], r"hold 4 labels, and metrics.jsonl counts 3"),
        (lambda rows: [*rows[:2], rows[0]], r"holds 'q0', which was asked for before"),
        (lambda rows: [*rows[:2], {"id": "other", "response": "x"}], r"holds 'other', which the pool does not have"),
        (lambda rows: [*rows, {"id": "q7", "response": None}], r"holds 1 skipped examples, and metrics.jsonl counts 0"),
    ],
)
def test_records_that_do_not_add_up_are_refused(folder, change, sentence):
    file = folder.round_path(0) / "queried.jsonl"
    rewrite(file, change)
    with pytest.raises(ConfigError, match=rf"rounds/000/queried.jsonl (and those before it )?{sentence}.*; put back"):
        labels_bought(folder, POOL, 2)


@pytest.mark.parametrize("number", [0, 1])
def test_a_missing_record_is_refused(folder, number):
    (folder.round_path(number) / "queried.jsonl").unlink()
    with pytest.raises(ConfigError, match=rf"rounds/00{number}/queried.jsonl is missing; put back"):
        labels_bought(folder, POOL, 2)


def test_half_a_line_is_refused(folder):
    file = folder.round_path(0) / "queried.jsonl"
    file.write_text(file.read_text()[:-9])
    with pytest.raises(DataError, match=r"queried.jsonl, line 3 is not valid JSON"):
        labels_bought(folder, POOL, 2)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [({"id": "q5"}, "has no field 'response'"), ({"id": 5, "response": "x"}, "has 5 as 'id'; it must be a text")],
)
def test_a_row_that_is_none_is_named_with_its_line(folder, row, sentence):
    rewrite(folder.round_path(0) / "queried.jsonl", lambda rows: [*rows[:2], row])
    with pytest.raises(DataError, match=rf"rounds/000/queried.jsonl, line 3 {sentence}.*delete the run's folder"):
        labels_bought(folder, POOL, 2)


def test_a_state_of_other_examples_is_refused(folder):
    found = labels_bought(folder, POOL, 2)
    for other in (found.labelled_in[::-1].copy(), found.labelled_in[:-1]):
        with pytest.raises(ConfigError, match="do not name the same labelled examples"):
            check_state(folder, found, PoolState(other))


def test_metrics_and_state_must_be_of_the_same_rounds(folder):
    drop_unfinished(folder, 2)
    with pytest.raises(ConfigError, match=r"is the state after 3 rounds, and metrics.jsonl has 2"):
        drop_unfinished(folder, 3)
    with pytest.raises(ConfigError, match=r"has 2 finished rounds, and .*state the state after none"):
        drop_unfinished(folder, 0)
    rewrite(folder.path / "metrics.jsonl", lambda rows: rows[1:])
    with pytest.raises(ConfigError, match=r"must hold the rounds 0, 1, … in order, and holds \[1\]"):
        drop_unfinished(folder, 1)


def test_corrections_are_what_is_written_otherwise_now(folder):
    """A label that was changed, one that was taken back, and one for what had been skipped; what is gone stays."""
    found = labels_bought(folder, POOL, 2)
    now = {prompt.id: f"label of {prompt.id}" for prompt in POOL}
    assert [one.answer for one in corrections(SimulatedOracle(now), POOL, found)] == [Answer("q2", "label of q2")]
    del now["q4"], now["q5"]
    changed = corrections(SimulatedOracle(now | {"q1": "another"}, skipped=["q4"]), POOL, found)
    assert [(one.index, one.answer.response, one.before) for one in changed] == [
        (1, "another", "label of q1"),
        (2, "label of q2", None),
        (4, None, "label of q4"),
    ]
    state = corrected_state(LoopState(2, PoolState(found.labelled_in), found.labels), changed)
    assert state.labels == {index: f"label of q{index}" for index in (0, 2, 3, 5, 8)} | {1: "another"}
    assert list(state.labels) == sorted(state.labels)
    assert np.asarray(state.pool.labelled_in).tolist() == [0, 1, 2, 0, SKIPPED, 0, UNLABELLED, UNLABELLED, 1]
    assert found.labels[1] == "label of q1"
    # The records of the round that trains on them say so, and the next start finds the same.
    folder.write_round(2, [{"id": "q6", "response": "label of q6"}], [])
    folder.write_corrected(2, [one.row() for one in changed])
    folder.append_metrics({"round": 2, "labelled": 7})
    again = labels_bought(folder, POOL, 3)
    assert again.labels == state.labels | {6: "label of q6"}
    assert again.labelled_in.tolist() == [0, 1, 2, 0, SKIPPED, 0, 2, UNLABELLED, 1]
    assert corrections(SimulatedOracle(now | {"q1": "another"}, skipped=["q4"]), POOL, again) == []


def test_who_cannot_be_read_again_is_not_asked(folder):
    class Model:
        def annotate(self, requests):
            raise AssertionError(requests)

        def instructions(self, open_requests):
            raise AssertionError(open_requests)

    assert corrections(Model(), POOL, Bought({0: "x"}, np.zeros(9, np.int32))) == []


# A whole run


SMALL = ExperimentConfig(
    strategies=("random",),
    lora=LoraConfig(rank=2, alpha=4, targets=("q_proj",)),
    training=TrainingConfig(learning_rate=5e-3, epochs=1, batch_size=8),
    loop=LoopConfig(initial_labels=5, labels_per_round=3, rounds=3),
)


class Listening(Progress):
    """Shows nothing, and keeps what is said."""

    def __init__(self):
        super().__init__("silent")
        self.said = []

    def log(self, message):
        self.said.append(message)


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_label_corrected_between_rounds_counts_from_the_next_training_on(tmp_path):
    """And what each round was trained on stays written down; a lost record stops the run and touches nothing."""
    truth = {f"rev {a} {b} 4 =": f"4 {b} {a}" for a in range(1, 6) for b in range(1, 6)}
    pool, test = tmp_path / "pool.jsonl", tmp_path / "test.jsonl"
    pool.write_text("".join(json.dumps({"question": text}) + "\n" for text in truth))
    test.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in list(truth.items())[:6]))
    out = tmp_path / "out"
    data = DataConfig(train=str(pool), test=str(test), max_prompt_tokens=9, max_response_tokens=6)
    config = dataclasses.replace(SMALL, output_dir=str(out), data=data)
    table, folder = out / "labels.csv", out / "random" / "seed-0"

    def go(progress):
        runner.run_experiment(config, progress)

    def fill(corrected=()):
        with table.open(newline="", encoding="utf-8-sig") as file:
            header, *rows = csv.reader(file)
        rows = [[name, text, "9 9 9" if name in corrected else truth[text]] for name, text, _ in rows]
        with table.open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])

    for _ in range(2):
        with pytest.raises(LabelsNeeded):
            go(Listening())
        fill()
    first = rows_of(folder / "rounds" / "000" / "queried.jsonl")[0]["id"]
    # A record that is gone: nothing is trained, nothing is lost.
    lost = folder / "rounds" / "000" / "queried.jsonl"
    shutil.move(lost, tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=r"rounds/000/queried.jsonl is missing"):
        go(Listening())
    assert len(rows_of(folder / "metrics.jsonl")) == 1
    shutil.move(tmp_path / "elsewhere", lost)
    # A correction of a label of the first round, before the second training.
    fill(corrected=[first])
    heard = Listening()
    with pytest.raises(LabelsNeeded):
        go(heard)
    assert heard.said[0] == "asks for at most 11 labels altogether, for random (5 + 2 x 3 a run)"
    (said,) = [text for text in heard.said if "been corrected" in text]
    assert said == (
        f"random seed 0, round 1/2: 1 label has been corrected since the last training ({first}); they count from the "
        "next training on"
    )
    measured = rows_of(folder / "metrics.jsonl")
    assert [(row["labelled"], row.get("corrected")) for row in measured] == [(5, None), (8, 1)]
    assert rows_of(folder / "rounds" / "000" / "queried.jsonl")[0]["response"] != "9 9 9"
    (row,) = rows_of(folder / "rounds" / "001" / "corrected.jsonl")
    assert (row["id"], row["response"], row["before"]) == (first, "9 9 9", truth_of(first, pool, truth))
    # The rest of the run knows it, and asks for the same as before.
    fill(corrected=[first])
    heard = Listening()
    go(heard)
    assert not [text for text in heard.said if "been corrected" in text]
    assert not (folder / "rounds" / "002" / "corrected.jsonl").exists()
    assert json.loads((folder / "summary.json").read_text())["corrected"] == 1
    # Of a finished run a later correction is told.
    fill()
    heard = Listening()
    go(heard)
    assert f"random seed 0: 1 label has been corrected since the last training ({first}); delete {folder} to" in (
        " ".join(heard.said)
    )


def truth_of(name, pool, truth):
    number = int(name.rpartition("-")[2])
    return truth[json.loads(pool.read_text().splitlines()[number - 1])["question"]]


def test_a_label_corrected_in_the_pools_own_file_is_told(tmp_path):
    """Labels that were used alone; nothing is trained again, and the folder stays as it is."""
    lines = [{"question": f"rev {a} {b} 4 =", "answer": f"4 {b} {a}"} for a in range(1, 4) for b in range(1, 4)]
    pool, test, out = tmp_path / "pool.jsonl", tmp_path / "test.jsonl", tmp_path / "out"
    for file in (pool, test):
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = DataConfig(train=str(pool), test=str(test), max_prompt_tokens=9, max_response_tokens=6, test_limit=4)
    loop = LoopConfig(initial_labels=5, labels_per_round=3, rounds=1)
    config = dataclasses.replace(SMALL, output_dir=str(out), data=data, loop=loop)
    runner.run_experiment(config, Listening())
    folder = out / "random" / "seed-0"
    used = [int(row["id"].rpartition("-")[2]) - 1 for row in rows_of(folder / "rounds" / "000" / "queried.jsonl")]
    before = (folder / "metrics.jsonl").read_bytes()
    for place in [*used[:2], *({*range(9)} - {*used})]:
        lines[place]["answer"] = "9 9 9"
    pool.write_text("".join(json.dumps(line) + "\n" for line in lines))
    heard = Listening()
    runner.run_experiment(config, heard)
    assert any("2 labels have been corrected since the last training" in text for text in heard.said)
    assert (folder / "metrics.jsonl").read_bytes() == before
