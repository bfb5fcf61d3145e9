"""`star-jax evaluate` as a person uses it: figures that are those of the run, intervals, files."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from star_jax.benchmarks.skills import generator as skills
from star_jax.cli import main
from star_jax.evaluation.accuracy import grouped_accuracy
from star_jax.runs.files import read_json, read_jsonl


@pytest.fixture(scope="module")
def run(labelled_run):
    return labelled_run / "out" / "random" / "seed-0"


def called(capfd, *argv, code=0):
    capfd.readouterr()
    assert main.main(["evaluate", *map(str, argv)]) == code
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    return (out, err) if code == 0 else err


def test_the_figures_on_the_test_set_are_those_of_the_run(run, tmp_path, capfd):
    """From its own settings; every prediction is written with its prompt, and what is printed fits 80 columns."""
    metrics, out = tmp_path / "metrics.json", tmp_path / "predictions.csv"
    said, _ = called(capfd, run, "--metrics", metrics, "--out", out)
    found, row = read_json(metrics), read_jsonl(run / "metrics.jsonl")[-1]
    for name in ("accuracy", "nll", "brier", "ece"):
        assert found[name]["value"] == pytest.approx(row[name], rel=1e-4, abs=1e-6)
        assert found[name]["low"] <= found[name]["high"]
    assert found["auroc"] == pytest.approx(row["auroc"], abs=1e-6)
    predictions = read_jsonl(run / "rounds" / "000" / "predictions.jsonl")
    assert found["examples"] == len(predictions)
    with out.open(encoding="utf-8-sig", newline="") as file:
        written = list(csv.DictReader(file))
    for ours, theirs in zip(written, predictions, strict=True):
        assert (ours["id"], ours["prediction"], ours["reference"]) == tuple(
            theirs[name] for name in ("id", "prediction", "reference")
        )
        assert ours["correct"] == str(theirs["correct"]).lower()
        assert skills.solve(ours["prompt"]) == ours["reference"].strip()
    groups = grouped_accuracy([one["correct"] for one in predictions], [one["group"] for one in predictions])
    assert {name: group["accuracy"]["value"] for name, group in found["groups"].items()} == groups
    assert all(name in said for name in groups)
    assert max(map(len, said.replace(str(tmp_path), "").replace(str(run), "").splitlines())) <= 80


def test_an_adapter_alone_is_judged_on_a_file_as_in_its_run(run, labelled_run, tmp_path, capfd):
    alone = tmp_path / "alone"
    shutil.copytree(run / "adapter", alone)
    flags = ("--task", "skills", "--max-prompt-tokens", "9", "--max-response-tokens", "6")
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    said, _ = called(capfd, alone, *flags, "--data", labelled_run / "test.jsonl", "--metrics", first)
    assert f"examples of {labelled_run / 'test.jsonl'}" in said
    called(capfd, run, "--metrics", second)
    assert read_json(first)["nll"]["value"] == pytest.approx(read_json(second)["nll"]["value"], rel=1e-5)
    assert read_json(first)["accuracy"] == read_json(second)["accuracy"]


def test_rows_that_were_trained_on_are_warned_of(run, tmp_path, capfd, caplog):
    """A labelled copy of the pool, named by the run's settings as its pool."""
    queried = [row for file in sorted(run.glob("rounds/*/queried.jsonl")) for row in read_jsonl(file)]
    own, pool = tmp_path / "seed-0", tmp_path / "pool.jsonl"
    shutil.copytree(run, own)
    config = (own / "config.yaml").read_text()
    old = next(line for line in config.splitlines() if line.strip().startswith("train:"))
    rows = read_jsonl(Path(old.partition(": ")[2]))
    pool.write_text(
        "".join(json.dumps(row | {"answer": skills.solve(row["question"])}) + "\n" for row in rows), encoding="utf-8"
    )
    (own / "config.yaml").write_text(config.replace(old, f"  train: {pool}"))
    called(capfd, own, "--data", pool)
    labelled = sum(row["response"] is not None for row in queried)
    assert f"{labelled} of {len(rows)} examples were trained on" in caplog.text


def test_what_cannot_be_judged_is_one_sentence_and_nothing_is_written(run, labelled_run, tmp_path, capfd):
    alone, open_rows = tmp_path / "alone", labelled_run / "pool.jsonl"
    shutil.copytree(run / "adapter", alone)
    test = tmp_path / "test.jsonl"
    shutil.copyfile(labelled_run / "test.jsonl", test)
    before = test.read_bytes()
    out = tmp_path / "out.csv"
    for argv, sentence in (
        ((run, "--data", open_rows, "--out", out), "line 1: the row has no response"),
        ((alone, "--task", "skills", "--out", out), "name a labelled file with --data"),
        ((run, "--data", test, "--metrics", test), "its ending must be .json"),
        ((run, "--data", test, "--out", test), "--out is"),
        ((run, "--metrics", run / "summary.json"), "which is only read"),
        ((tmp_path / "nowhere", "--data", test), "there is no folder"),
        ((run, "--data", tmp_path / "no.jsonl", "--out", out), "no.jsonl"),
        ((run, "--task", "boolq", "--format.prompt", "{{ question }} "), "format is the section of data.task generic"),
    ):
        said = called(capfd, *argv, code=2)
        assert sentence in said
        assert said.count("\n") == 1
        assert not out.exists()
    assert test.read_bytes() == before


def test_a_budget_of_labels_is_asked_for_judged_and_raised(run, labelled_run, tmp_path, capfd):
    """Of prompts without labels; with a label for each, the accuracy is that of all."""
    answers = {one.prompt.text: one.response for one in skills.test_examples()[::40]}
    data, table, metrics = tmp_path / "unlabelled.jsonl", tmp_path / "labels.csv", tmp_path / "metrics.json"
    data.write_text("".join(json.dumps({"id": f"u{n}", "question": text}) + "\n" for n, text in enumerate(answers)))
    argv = (run, "--data", data, "--labels", table, "--metrics", metrics, "--label-budget")

    def fill():
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        with table.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(row | {"response": skills.solve(row["prompt"])} for row in rows)
        return [row["id"] for row in rows]

    capfd.readouterr()
    assert main.main(["evaluate", *map(str, (*argv, 5))]) == 3
    assert (
        f"5 examples need a label: write it into the empty cells of column 'response' in {table}"
        in capfd.readouterr()[0]
    )
    few = fill()
    called(capfd, *argv, 5)
    found = read_json(metrics)
    assert (found["examples"], found["labels"]) == (len(answers), 5)
    assert found["accuracy"]["low"] <= found["accuracy"]["value"] <= found["accuracy"]["high"]
    assert main.main(["evaluate", *map(str, (*argv, len(answers)))]) == 3
    assert fill()[:5] == few
    said, shown = called(capfd, *argv, len(answers))
    assert "answer:" not in shown  # the model was asked once
    predictions = read_jsonl(run / "rounds" / "000" / "predictions.jsonl")
    truth = sum(row["correct"] for row in predictions) / len(predictions)
    assert read_json(metrics)["accuracy"] == {name: pytest.approx(truth) for name in ("value", "low", "high")}
    assert f"accuracy {truth:.3f} on the {len(answers)} prompts of {data}" in said
    table.write_text(table.read_text().replace(skills.solve(next(iter(answers))), "[skip]", 1))
    assert "is skipped, and leaving drawn examples out would bias" in called(capfd, *argv, len(answers), code=2)
    data.write_text(data.read_text() + json.dumps({"id": "new", "question": "max 1 2 ="}) + "\n")
    assert "was drawn for another adapter, other data or other settings" in called(capfd, *argv, 5, code=2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--labels", "x.csv"), "--labels is for --label-budget"),
        (("--label-budget", "1"), "--label-budget is 1; it must be at least 2"),
        (("--label-budget", "5"), "--label-budget needs --data"),
        (("--label-budget", "5", "--data", "x.csv"), "--label-budget needs --labels"),
        (("--label-budget", "5", "--label-seed", "-1"), "--label-seed is -1"),
    ],
)
def test_flags_of_a_budget_that_contradict_each_other_are_refused(run, capfd, flags, message):
    assert message in called(capfd, run, *flags, code=2)
