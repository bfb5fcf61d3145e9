"""`star-jax predict` as a person uses it: the rest of a run's pool, or a file, with a run or with an adapter alone."""

import csv
import json
import shutil

import numpy as np
import pytest

import star_jax as sj
from star_jax.benchmarks.skills import generator as skills
from star_jax.cli import main, predict
from star_jax.data.examples import Example, Prompt
from star_jax.data.splits import hold_out
from star_jax.evaluation import predictions
from star_jax.experiment import calibration_set
from star_jax.runs.files import read_json, read_jsonl

COLUMNS = ["id", "prompt", "answer", "confidence", "needs_person", "raw_confidence", "response"]

CROSS_FIT = np.linspace(0.1, 0.9, 13)
"""Confidences that no cross-fitting finds."""


def run_of(folder):
    return folder / "out" / "random" / "seed-0"


@pytest.fixture(scope="module")
def calibrated(labelled_run):
    """The run with the answers that its confidence is calibrated on, found once for all tests."""
    assert main.main(["predict", str(labelled_run / "out"), "--out", str(labelled_run / "first.csv")]) == 0
    assert (run_of(labelled_run) / calibration_set.KEPT).is_file()
    return labelled_run


@pytest.fixture
def own(calibrated, tmp_path):
    """A copy of the run folder, to be changed; its pool and test set stay where they are."""
    labelled_run = calibrated
    shutil.copytree(labelled_run / "out", tmp_path / "out")
    return run_of(tmp_path)


def called(capfd, *argv, code=0, out=None):
    """What the command says: on stdout, or where it fails on stderr."""
    capfd.readouterr()
    argv = [*argv] if out is None else [*argv, "--out", out]
    assert main.main(["predict", *map(str, argv)]) == code
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    return out if code == 0 else err


def queried(run):
    return [row for file in sorted(run.glob("rounds/*/queried.jsonl")) for row in read_jsonl(file)]


def pool_ids(labelled_run):
    return [json.loads(line)["id"] for line in (labelled_run / "pool.jsonl").read_text().splitlines()]


def test_the_rest_of_a_pool_is_answered_as_the_adapter_answers(own, labelled_run, tmp_path, capfd):
    """All but what was labelled or skipped, the answers and raw confidences those of the Python API, in UTF-8 CSV."""
    out = tmp_path / "rest.csv"
    said = called(capfd, own, "--threshold", "0.5", out=out)
    with out.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    done = {row["id"] for row in queried(own)}
    assert [*rows[0]] == COLUMNS
    assert len(done) == 14
    assert [row["id"] for row in rows] == sorted(set(pool_ids(labelled_run)) - done)
    model = sj.load_model("embedded:skills")
    pool = sj.read_pool([{"id": row["id"], "question": row["prompt"]} for row in rows], "skills")
    limits = sj.TokenLimits(prompt=9, response=6)
    expected = sj.predict(model, pool, sj.load_adapter(own / "adapter", model), limits=limits)
    assert [(row["id"], row["response"]) for row in rows] == [(one.id, one.response) for one in expected]
    for row, one in zip(rows, expected, strict=True):
        sure = float(row["confidence"])
        assert row["answer"] == (one.answer or "")
        assert float(row["raw_confidence"]) == pytest.approx(one.confidence if one.answer else 0, abs=1e-5)
        assert row["needs_person"] == ("true" if sure < 0.5 else "false")
    person = sum(row["needs_person"] == "true" for row in rows)
    assert said.startswith(f"26 prompts answered, {person} of them for a person (confidence below 0.5)")
    assert "calibrated on 13 labels of the run, each answered by an adapter that was trained without it" in said
    assert said.endswith(f" {out}\n")
    assert said.count("\n") == 1
    assert not list(tmp_path.glob(".*.partial"))


def test_no_label_is_answered_by_an_adapter_that_has_seen_it(own, capfd, monkeypatch):
    """Every label once, in one of three parts; what is found is kept, and belongs to this adapter."""
    trained, asked = [], []
    fit, answer = calibration_set.fit, calibration_set.answer_prompts

    def fitted(key, model, data, *args, **options):
        trained.append(data)
        return fit(key, model, data, *args, **options)

    def answered(answerer, adapter, prompts, *args, **options):
        asked.append((answerer, list(prompts)))
        return answer(answerer, adapter, prompts, *args, **options)

    monkeypatch.setattr(calibration_set, "fit", fitted)
    monkeypatch.setattr(calibration_set, "answer_prompts", answered)
    (own / calibration_set.KEPT).unlink()
    first = called(capfd, own)
    labels = {row["id"] for row in queried(own) if row["response"] is not None}
    parts = [{prompt.id for prompt in prompts} for _, prompts in asked]
    assert [len(part) for part in parts] == [5, 4, 4]
    assert set().union(*parts) == labels
    for data, (answerer, prompts) in zip(trained, asked, strict=True):
        tokens = [row.tokens[: row.prompt_length].tolist() for row in data.labelled]
        assert len(tokens) == 13 - len(prompts)
        assert not [one for one in answerer.encoder.prompts(prompts) if one.tolist() in tokens]
    # 1. The next call reads what was found, and gives the same.
    assert called(capfd, own) == first
    assert len(trained) == 3
    # 2. A damaged file, or one of another adapter, is made anew.
    kept = read_json(own / calibration_set.KEPT)
    assert [row["id"] for row in kept["answers"]] == sorted(labels)
    monkeypatch.setattr(calibration_set, "_cross_fit", lambda opened, examples, progress: (CROSS_FIT, CROSS_FIT > 0.5))
    for content in ("{", "[]", json.dumps(kept | {"origin": "0"}), json.dumps(kept | {"answers": [1]})):
        (own / calibration_set.KEPT).write_text(content)
        assert called(capfd, own) != first
        assert [row["confidence"] for row in read_json(own / calibration_set.KEPT)["answers"]] == CROSS_FIT.tolist()


def test_what_a_confidence_is_calibrated_on(own, labelled_run, capfd, monkeypatch):
    """The test set and nothing only where they are asked for; rows that training held out where there are enough."""
    tests = len((labelled_run / "test.jsonl").read_text().splitlines())
    for argv, expected in (
        ([], "calibrated on 13 labels of the run, each"),
        (["--calibrate-on", "test"], f"calibrated on {tests} labels of the test set"),
        (["--calibrate-on", labelled_run / "test.jsonl"], f"calibrated on {tests} labels of {labelled_run}"),
        (["--calibrate-on", "none"], "is not known, confidence is the model's own: it was asked for"),
    ):
        assert expected in called(capfd, own, *argv, out=own.parent / "rest.jsonl")
    config = own / "config.yaml"
    config.write_text(config.read_text().replace("validation_fraction: 0.0", "validation_fraction: 0.5"))
    labelled = [Example(Prompt(row["id"], ""), row["response"]) for row in queried(own) if row["response"] is not None]
    held = len(hold_out(labelled, 0.5)[1])
    monkeypatch.setattr(calibration_set, "LEAST_JUDGED", held)
    said = called(capfd, own, out=own.parent / "rest.jsonl")
    assert f"calibrated on {held} labels that were held out of training" in said


def test_labels_that_were_trained_on_calibrate_nothing(own, labelled_run, tmp_path, capfd, caplog):
    """Not those in a file either, whichever prompts are answered; where the pool is gone, that is said."""
    pool, answers = labelled_run / "pool.jsonl", tmp_path / "answers.jsonl"
    rows = [row | {"answer": skills.solve(row["question"])} for row in read_jsonl(pool)]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen = {row["id"] for row in queried(own) if row["response"] is not None}
    texts = {row["question"] for row in rows if row["id"] in seen}
    fresh = sum(row["question"] not in texts for row in rows)
    for argv in ((), ("--data", labelled_run / "test.jsonl")):
        said = called(capfd, own, *argv, "--calibrate-on", answers, out=tmp_path / "rest.csv")
        assert f"calibrated on {fresh} labels of {answers}" in said
        assert f"{len(rows) - fresh} rows were trained on and are left out" in caplog.text
    config = (own / "config.yaml").read_text()
    (own / "config.yaml").write_text(config.replace(str(pool), str(tmp_path / "gone.jsonl")))
    said = called(capfd, own, *argv, "--calibrate-on", answers, out=tmp_path / "rest.csv")
    assert f"calibrated on {len(rows)} labels" in said
    assert "were trained on is not known" in caplog.text


def test_with_too_few_labels_the_confidence_is_the_models_own_and_called_so(own, capfd, monkeypatch):
    monkeypatch.setattr(calibration_set, "LEAST_JUDGED", 14)
    out = own.parent / "rest.jsonl"
    said = called(capfd, own, out=out)
    assert "is not known, confidence is the model's own: the run has 13 labels, and 14 are needed" in said
    rows = read_jsonl(out)
    assert [*rows[0]] == [name for name in COLUMNS if name != "confidence"]
    assert all(row["needs_person"] == (row["raw_confidence"] < 0.8) for row in rows)
    for source in ("cross-fit", "validation"):
        assert f"--calibrate-on {source} has" in called(capfd, own, "--calibrate-on", source, code=2)


def test_an_adapter_alone_answers_a_file(own, labelled_run, tmp_path, capfd):
    """It brings the name of its model and nothing else; a file of settings or flags bring the rest."""
    adapter, out = tmp_path / "alone", tmp_path / "out.jsonl"
    shutil.copytree(own / "adapter", adapter)
    flags = ("--max-prompt-tokens", "9", "--max-response-tokens", "6", "--data", labelled_run / "pool.jsonl")
    said = called(capfd, adapter, *flags, "--task", "skills", out=out)
    assert said.startswith("40 prompts answered, ")
    assert "nothing tells which labels the adapter was not trained on" in said
    rows = read_jsonl(out)
    assert [row["id"] for row in rows] == pool_ids(labelled_run)
    assert "confidence" not in rows[0]
    called(capfd, adapter, "--data", labelled_run / "pool.jsonl", "--config", own / "config.yaml", out=out)
    assert read_jsonl(out) == rows
    called(capfd, own / "adapter", "--calibrate-on", "none", out=out)  # in its run's folder it is the run's
    assert read_jsonl(out) == [row for row in rows if row["id"] in {one["id"] for one in read_jsonl(out)}]
    for argv, sentence in (
        ((*flags[:4], "--task", "skills"), "name the file to answer with --data"),
        (flags, "pass --task"),
        ((*flags, "--task", "skills", "--calibrate-on", "test"), "needs a run folder"),
    ):
        assert sentence in called(capfd, adapter, *argv, code=2)


def test_rows_of_a_file_that_have_a_label_keep_it(own, tmp_path, capfd):
    """But for a file in which every row has one: its labels are not looked at."""
    rows = [{"id": f"q{i}", "question": f"max {i} 3 4 ="} for i in range(4)]
    some = [row | ({"answer": "4"} if row["id"] in ("q1", "q2") else {}) for row in rows]
    out = tmp_path / "out.jsonl"
    for name, written, expected in (
        ("none", rows, ["q0", "q1", "q2", "q3"]),
        ("some", some, ["q0", "q3"]),
        ("all", [row | {"answer": "9"} for row in rows], ["q0", "q1", "q2", "q3"]),
    ):
        data = tmp_path / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in written))
        called(capfd, own, "--data", data, "--calibrate-on", "test", out=out)
        assert [row["id"] for row in read_jsonl(out)] == expected


def test_an_interrupted_command_goes_on_where_it_stopped(own, tmp_path, capfd, monkeypatch):
    """Stopped in the third part of eight: two parts are not answered again, and the file is the same."""
    whole, out = tmp_path / "whole.csv", tmp_path / "rest.csv"
    flags = ("--batch-size", "4", "--calibrate-on", "test")
    monkeypatch.setattr(predict, "BATCHES_KEPT", 1)
    called(capfd, own, *flags, out=whole)
    asked, answer = [], predictions.answer_pool

    def interrupted(answerer, adapter, pool, prompts, *args):
        if len(asked) == 2:
            asked.clear()
            raise KeyboardInterrupt
        asked.append(len(prompts))
        return answer(answerer, adapter, pool, prompts, *args)

    monkeypatch.setattr(predictions, "answer_pool", interrupted)
    assert "with --out FILE, the same command goes on" in called(capfd, own, *flags, code=130, out=out)
    assert not out.exists()
    partial = tmp_path / ".rest.csv.partial"
    with partial.open("ab") as file:
        file.write(b'{"response": "cut')
    monkeypatch.setattr(predictions, "answer_pool", lambda *args: asked.append(len(args[3])) or answer(*args))
    called(capfd, own, *flags, out=out)
    assert asked == [4, 4, 4, 4, 2]
    assert out.read_bytes() == whole.read_bytes()
    assert not partial.exists()


def test_without_a_file_the_rows_go_to_stdout_and_the_sentence_to_stderr(own, capfd):
    capfd.readouterr()
    assert main.main(["predict", str(own), "--calibrate-on", "test"]) == 0
    out, err = capfd.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [*rows[0]] == COLUMNS
    assert len(rows) == 26
    assert "26 prompts answered" in err


def test_an_output_is_never_what_is_read(own, labelled_run, tmp_path, capfd):
    data, link = tmp_path / "data.jsonl", tmp_path / "link.jsonl"
    data.write_text('{"question": "max 1 2 ="}\n')
    link.symlink_to(data)
    table = own.parent.parent / "labels.csv"
    for out, flags in (
        (data, ("--data", data)),
        (link, ("--data", data)),
        (labelled_run / "pool.jsonl", ()),
        (labelled_run / "test.jsonl", ("--calibrate-on", "test")),
        (table, ()),
        (own / "rounds" / "mine.csv", ()),
        (own / "adapter" / "mine.csv", ()),
        (tmp_path / "nowhere" / "x.csv", ()),
        (tmp_path / "x.txt", ()),
        (tmp_path, ()),
    ):
        before = out.read_bytes() if out.is_file() else None
        assert "--out is" in called(capfd, own, *flags, code=2, out=out)
        assert (out.read_bytes() if out.is_file() else None) == before


def changed(own, labelled_run, tmp_path, what):
    """A run or a call that does not add up; what to call, and what is to be said."""
    if what == "nowhere":
        return [tmp_path / "nowhere"], "there is no folder"
    if what == "neither":
        (tmp_path / "empty").mkdir()
        return [tmp_path / "empty"], "is neither a run folder"
    if what == "two runs":
        shutil.copytree(own, own.with_name("seed-1"))
        return [own.parent.parent], "holds 2 runs; name one of them"
    if what == "no round":
        (own / "metrics.jsonl").unlink()
        return [own], "no round of it is finished"
    if what == "labels":
        (own / "rounds" / "000" / "queried.jsonl").unlink()
        return [own], "rounds/000/queried.jsonl is missing; put back what was changed"
    if what == "cut":
        (own / "rounds" / "000" / "queried.jsonl").write_text('{"id": 3}\n')
        return [own], "queried.jsonl, line 1 has no field 'response'"
    if what == "pool":
        text = (labelled_run / "pool.jsonl").read_text().splitlines()
        (tmp_path / "pool.jsonl").write_text("\n".join(text[1:]))
        config = (own / "config.yaml").read_text()
        (own / "config.yaml").write_text(config.replace(str(labelled_run / "pool"), str(tmp_path / "pool")))
        return [own], "ids or prompts of the pool have changed"
    if what == "settings":
        return [own, "--config", own / "config.yaml"], "--config is for an adapter that is no run's"
    flags = {
        "threshold": ("--threshold", "1.5"),
        "source": ("--calibrate-on", "crossfit"),
        "batch": ("--batch-size", 0),
    }
    return [own, *flags[what]], flags[what][0]


CHANGES = (
    *("nowhere", "neither", "two runs", "no round", "labels", "cut", "pool", "settings", "threshold", "source"),
    "batch",
)


@pytest.mark.parametrize("what", CHANGES)
def test_what_does_not_add_up_is_one_sentence(own, labelled_run, tmp_path, capfd, what):
    argv, sentence = changed(own, labelled_run, tmp_path, what)
    said = called(capfd, *argv, code=2, out=tmp_path / "rest.csv")
    assert sentence in said
    assert said.count("\n") == 1
    assert not (tmp_path / "rest.csv").exists()
