"""Rows in a file: what is written reads back, and nothing that is read is written over."""

import csv
import json
import os

import pytest

from star_jax.annotators.label_table import from_text
from star_jax.cli.output_file import check_output, write_rows
from star_jax.errors import ConfigError

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


def test_a_file_that_is_read_is_known_by_whatever_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    read = tmp_path / "in.csv"
    read.write_text("x")
    os.link(read, tmp_path / "hard.csv")
    (tmp_path / "soft.csv").symlink_to(read)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    for out in ("in.csv", str(read), "./folder/../in.csv", "hard.csv", "soft.csv"):
        with pytest.raises(ConfigError, match="which is read as well"):
            check_output("--out", out, [None, "OWNER/DATA", read])
    with pytest.raises(ConfigError, match="which is only read"):
        check_output("--out", "link/out.csv", [], [tmp_path / "folder"])
    assert check_output("--out", "out.csv", ["out.jsonl", None]) is not None
    assert check_output("--out", "-", [read]) is None


def test_what_cannot_be_written_is_said_before_anything_is_computed(tmp_path):
    (tmp_path / "out.csv").mkdir()
    for out, sentence in (
        (tmp_path / "out.csv", "which is a folder"),
        (tmp_path / "out.xlsx", "its ending must be .csv or .jsonl"),
        (tmp_path / "no" / "out.csv", "make it first"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            check_output("--out", str(out), [])


def test_a_number_in_a_table_stays_one(tmp_path):
    write_rows(tmp_path / "rows.csv", [{"id": "a", "answer": text} for text in ("-12", "+3.5", "1,000", "-x")])
    with (tmp_path / "rows.csv").open(encoding="utf-8-sig", newline="") as file:
        assert [row["answer"] for row in csv.DictReader(file)] == ["-12", "+3.5", "1,000", "'-x"]
