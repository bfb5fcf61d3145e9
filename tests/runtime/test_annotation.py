"""The table that a person labels in: it grows, keeps what was written, and says what is wrong by line."""

import csv

import pytest

from star_jax.active.oracles import LabelsNeeded
from star_jax.data.examples import DataError, Prompt
from star_jax.data.tasks import get_task
from star_jax.runtime.annotation import FileAnnotator

PROMPTS = [Prompt("b", 'what, "now"?\nand then'), Prompt("a", "1 + 1"), Prompt("c", "known")]


def rows(table):
    with table.open(newline="") as file:
        return [(row["id"], row["prompt"], row["response"]) for row in csv.DictReader(file)]


def write(table, lines):
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("id", "prompt", "response"), *lines])


def test_what_is_asked_is_written_once_and_answers_are_kept(tmp_path):
    table = tmp_path / "labels.csv"
    annotator = FileAnnotator({"c": "3"}, table, get_task("gsm8k"))
    with pytest.raises(LabelsNeeded, match=r"2 examples need a label: .*labels.csv, save, and run the same command"):
        annotator.label(PROMPTS)
    assert rows(table) == [("b", PROMPTS[0].text, ""), ("a", "1 + 1", "")]
    write(table, [("b", PROMPTS[0].text, "  7 apples "), ("a", "1 + 1", " ")])
    with pytest.raises(LabelsNeeded, match="1 examples need"):
        annotator.label(PROMPTS)
    assert rows(table) == [("b", PROMPTS[0].text, "7 apples"), ("a", "1 + 1", "")]
    write(table, [("a", "1 + 1", "2"), ("b", PROMPTS[0].text, "7")])
    assert [(e.id, e.response) for e in annotator.label(PROMPTS)] == [("b", "7"), ("a", "2"), ("c", "3")]
    with pytest.raises(LabelsNeeded, match="1 examples need"):
        annotator.label([PROMPTS[0], Prompt("d", "new")])
    assert rows(table)[2:] == [("d", "new", "")]


def test_nothing_is_written_where_all_is_known(tmp_path):
    assert FileAnnotator({"c": "3"}, tmp_path / "labels.csv", get_task("gsm8k")).label(PROMPTS[2:])[0].response == "3"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("task", "response", "sentence"),
    [
        ("gsm8k", "no idea", "line 2: the response is 'no idea', and task gsm8k finds no answer in it"),
        ("openbookqa", "E", "line 2: the response is 'E'; expected one of 'A', 'B', 'C', 'D'"),
    ],
)
def test_a_response_of_another_task_is_named(tmp_path, task, response, sentence):
    write(tmp_path / "labels.csv", [("a", "1 + 1", response)])
    with pytest.raises(DataError, match=sentence):
        FileAnnotator({}, tmp_path / "labels.csv", get_task(task)).label(PROMPTS[1:2])


def test_a_closed_answer_becomes_the_response_of_the_task(tmp_path):
    write(tmp_path / "labels.csv", [("a", "1 + 1", "c")])
    (example,) = FileAnnotator({}, tmp_path / "labels.csv", get_task("openbookqa")).label(PROMPTS[1:2])
    assert example.response == " C"


def test_a_lost_column_and_a_broken_row_are_named(tmp_path):
    table = tmp_path / "labels.csv"
    annotator = FileAnnotator({}, table, get_task("gsm8k"))
    table.write_text("id,response\na,2\n")
    with pytest.raises(DataError, match="line 2: the column 'prompt' is missing; restore it"):
        annotator.label(PROMPTS[1:2])
    table.write_text("id,prompt,response\na,2\n")
    with pytest.raises(DataError, match="line 2: has 2 cells where the header has 3"):
        annotator.label(PROMPTS[1:2])
