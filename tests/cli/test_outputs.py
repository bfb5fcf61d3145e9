"""What flags name to be written: nothing that is read is lost, nothing is computed in vain, and rows read back."""

import csv
import json
import os
import shutil

import pytest

from star_jax.checkpoints.hub import resolve_folder
from star_jax.cli import export, run, score
from star_jax.cli.guard import guarded_main
from star_jax.cli.outputs import TABLES, check_output_file, check_output_folder, write_rows
from star_jax.config import FormatConfig
from star_jax.data.cells import PICKS, from_text
from star_jax.data.examples import Prompt
from star_jax.data.loading import load_prompts
from star_jax.data.tasks import get_task
from star_jax.errors import ConfigError
from star_jax.experiment import runner


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with inputs of every kind, in which the process works."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pool.jsonl").write_text('{"question": "max 3 9 ="}\n')
    (tmp_path / "link.jsonl").symlink_to("pool.jsonl")
    os.link(tmp_path / "pool.jsonl", tmp_path / "hard.jsonl")
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "folder").mkdir()
    shutil.copytree(resolve_folder("embedded:skills"), tmp_path / "model")
    (tmp_path / "other").symlink_to("model")
    (tmp_path / "config.yaml").write_text("data: {train: pool.jsonl, test: pool.jsonl}\n")
    (tmp_path / "plugin.py").write_text("X = 1\n")
    return tmp_path


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("pool.jsonl", "the file of --data, which would be lost"),
        ("./folder/../pool.jsonl", "the file of --data, which would be lost"),
        ("link.jsonl", "the file of --data, which would be lost"),
        ("hard.jsonl", "the file of --data, which would be lost"),
        ("config.yaml", "the file of --config, which would be lost"),
        ("plugin.py", "the file of --plugins plugin.py, which would be lost"),
        ("model/config.json", "inside the folder of --model, which is only read"),
        ("other/new.jsonl", "inside the folder of --model, which is only read"),
        ("folder", "which is a folder; name a file in it"),
        ("nowhere/out.jsonl", "there is no folder nowhere, make it first"),
        ("circle", "which cannot be written (Too many levels of symbolic links)"),
        ("/proc/out.jsonl", "which cannot be written"),
        ("", "--out is empty"),
    ],
)
def test_scores_never_go_over_what_is_read_nor_are_computed_in_vain(place, capfd, monkeypatch, out, said):
    monkeypatch.setattr(score, "score_file", lambda *arguments: pytest.fail("nothing may be computed"))
    before = contents(place)
    flags = ["--config", "config.yaml", "--model", "model", "--plugins", "plugin.py", "--out", out]
    assert guarded_main(score.main, flags) == 2
    error = capfd.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert contents(place) == before


def test_scores_go_where_a_link_leads_and_spare_devices(place, monkeypatch):
    monkeypatch.setattr(score, "score_file", lambda *arguments: [{"id": "a"}])
    (place / "earlier.jsonl").write_text("old\n")
    (place / "scores").symlink_to("earlier.jsonl")
    os.mkfifo(place / "pipe")
    reader = os.open(place / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    for out in ("scores", "pipe"):
        assert score.main(["--config", "config.yaml", "--out", out]) == 0
    assert (place / "scores").is_symlink()
    assert json.loads((place / "earlier.jsonl").read_text()) == {"id": "a"}
    assert json.loads(os.read(reader, 1000)) == {"id": "a"}
    os.close(reader)


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("", "--out is empty; name a folder"),
        ("model", "something is already"),
        ("adapter/merged", "inside the folder of --adapter, which is only read"),
    ],
)
def test_a_merged_model_goes_nowhere_near_its_parts(place, capfd, out, said):
    shutil.copytree(place / "model", place / "adapter")
    before = contents(place)
    assert guarded_main(export.main, ["--adapter", "adapter", "--model", "model", "--out", out]) == 2
    assert said in capfd.readouterr().err
    assert contents(place) == before


def test_a_disk_without_room_for_the_weights_is_found_before_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**12, 10**12, 10**9))
    export._check_room(tmp_path / "deep" / "out", 10**9)
    with pytest.raises(ConfigError, match=r"where 1\.0 GB are free, and the merged weights have 2\.0 GB; make room"):
        export._check_room(tmp_path / "deep" / "out", 2 * 10**9)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--output-dir", ""), "output_dir is empty; name a folder"),
        (("--output-dir", " "), "output_dir is empty; name a folder"),
        (("--output-dir", "pool.jsonl"), "is no folder; choose another --output-dir"),
        (("--output-dir", "pool.jsonl/deep"), "is no folder; choose another --output-dir"),
        (("--output-dir", "other/runs"), "inside the folder of model.path, which is only read"),
        (("--output-dir", "mine", "--data.train", "mine/labels.csv"), "data.train is mine/labels.csv, which a run"),
        (("--output-dir", "mine", "--data.test", "mine/star/seed-0/a.jsonl"), "data.test is mine/star/seed-0/a.jsonl"),
        (("--output-dir", "mine", "--model.adapter", "mine/star/seed-0"), "model.adapter is mine/star/seed-0, which"),
        (("--output-dir", "foreign"), "report.html is there and no report of star_jax, and would be lost"),
        (("--profile", ""), "--profile is empty"),
        (("--profile", "model/trace"), "--profile is model/trace, inside the folder of model.path"),
    ],
)
def test_a_run_never_goes_over_what_it_reads(place, capfd, monkeypatch, flags, said):
    monkeypatch.setattr(runner, "open_experiment", lambda *arguments: pytest.fail("nothing may be loaded"))
    for folder in ("mine/star/seed-0", "foreign"):
        (place / folder).mkdir(parents=True)
    for file in ("mine/labels.csv", "mine/star/seed-0/a.jsonl", "foreign/report.html"):
        (place / file).write_text("mine")
    before = contents(place)
    assert guarded_main(run.main, ["--config", "config.yaml", "--model.path", "model", *flags]) == 2
    assert said in capfd.readouterr().err
    assert contents(place) == before


def test_a_place_beside_what_is_read_is_fine(place):
    out = str(place / "scores.jsonl")
    assert check_output_file("--out", out, {"--data": "pool.jsonl"}, {"--model": "model"}) == place / "scores.jsonl"
    known = {"--data": "openai/gsm8k", "--config": None}
    assert check_output_file("--out", "pool.jsonl", known, {"--model": "owner/model"}) is not None
    assert check_output_file("--out", "-", {"--data": "-"}, {}) is None
    check_output_folder("--profile", "model-trace", {"--model": "model"})
    assert not (place / "scores.jsonl").exists()


@pytest.mark.parametrize("out", ["rows.xlsx", "rows"])
def test_a_table_has_an_ending_that_is_known(place, out):
    with pytest.raises(ConfigError, match=r"its ending must be \.csv or \.jsonl"):
        check_output_file("--out", out, {}, {}, TABLES)
    assert check_output_file("--out", "rows.CSV", {}, {}, TABLES) is not None


ROWS = [
    {"id": "a", "prompt": 'two\nlines, "quoted"; äöü \u2028', "answer": None, "needs_person": True, "confidence": 0.25},
    {"id": "0012", "prompt": "\r x \t", "answer": "=1+1", "needs_person": False, "confidence": 1e-05},
]


def test_both_formats_read_back(tmp_path, capsys):
    write_rows(tmp_path / "rows.jsonl", ROWS)
    write_rows(None, ROWS)
    for text in ((tmp_path / "rows.jsonl").read_text(encoding="utf-8"), capsys.readouterr().out):
        assert [json.loads(line) for line in text.split("\n") if line] == ROWS
    write_rows(tmp_path / "rows.CSV", ROWS)
    with (tmp_path / "rows.CSV").open(encoding="utf-8-sig", newline="") as file:
        found = list(csv.DictReader(file))
    assert [(row["id"], from_text(row["prompt"]), from_text(row["answer"])) for row in found] == [
        (row["id"], row["prompt"], row["answer"] or "") for row in ROWS
    ]
    assert found[1]["answer"] == "'=1+1"  # which a spreadsheet would compute
    assert [row["needs_person"] for row in found] == ["true", "false"]
    assert [float(row["confidence"]) for row in found] == [0.25, 1e-05]


def test_a_table_of_picks_is_read_as_what_was_picked(tmp_path):
    """What was written against spreadsheets is neither trained on nor part of an id, in a table of these columns."""
    texts = {"-a": "-3 + 5 =", "b": "'tis =", "+3": "''=1", "=c": "\t@x", "-4": "5"}
    rows = [dict(zip(PICKS, (name, text, None, 0, None), strict=True)) for name, text in texts.items()]
    write_rows(tmp_path / "picks.csv", rows)
    write_rows(tmp_path / "picks.jsonl", rows)
    other = [{name: value for name, value in row.items() if name != "rank"} for row in rows]
    write_rows(tmp_path / "other.csv", other)
    task = get_task("generic", FormatConfig(prompt="{{ prompt }}|", response="{{ response }}"))
    for name in ("picks.csv", "picks.jsonl"):
        found = {one.id: one.text for one in load_prompts(task, str(tmp_path / name), "train")}
        assert found == {name: f"{text}|" for name, text in texts.items()}
    assert load_prompts(task, str(tmp_path / "other.csv"), "train")[0] == Prompt("'-a", "'-3 + 5 =|")


def test_a_number_in_a_table_stays_one(tmp_path):
    write_rows(tmp_path / "rows.csv", [{"id": "a", "answer": text} for text in ("-12", "+3.5", "1,000", "-x")])
    with (tmp_path / "rows.csv").open(encoding="utf-8-sig", newline="") as file:
        assert [row["answer"] for row in csv.DictReader(file)] == ["-12", "+3.5", "1,000", "'-x"]
