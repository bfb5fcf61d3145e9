"""The table that a person labels in: it grows, keeps what was written, and says what is wrong by line."""

import csv
import re

import pytest

from star_jax.annotators.annotator import AnnotatorContext, Answer, Request, collect
from star_jax.annotators.csv_file import SKIP, FileAnnotator, csv_file
from star_jax.config import FormatConfig
from star_jax.data.examples import Prompt
from star_jax.data.tasks import get_task
from star_jax.errors import DataError, LabelsNeeded

PROMPTS = [Prompt("b", 'what, "now"?\nand then\rthat'), Prompt("a", "1 + 1"), Prompt("c", "known")]
IDS = ("a", "b", "c", "d", "001")


def annotator(table, task="gsm8k", known=None, **fields):
    return FileAnnotator(known or {}, IDS, table, get_task(task, FormatConfig(**fields)))


def ask(person, prompts):
    """An answer to every prompt, as the loop asks for them."""
    return collect(person, [Request(prompt, rank) for rank, prompt in enumerate(prompts)])


def rows(table):
    with table.open(newline="", encoding="utf-8-sig") as file:
        return [(row["id"], row["prompt"], row["response"]) for row in csv.DictReader(file)]


def write(table, lines, encoding="utf-8"):
    with table.open("w", newline="", encoding=encoding) as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("id", "prompt", "response"), *lines])


def test_what_is_asked_is_written_once_and_answers_are_kept(tmp_path):
    table = tmp_path / "labels.csv"
    person = annotator(table, known={"c": "3"})
    with pytest.raises(LabelsNeeded, match=r"2 examples need a label: .*labels.csv, save, and run the same command"):
        ask(person, PROMPTS)
    assert rows(table) == [("b", PROMPTS[0].text, ""), ("a", "1 + 1", "")]
    write(table, [("b", PROMPTS[0].text, "  7 apples "), ("a", "1 + 1", " ")])
    with pytest.raises(LabelsNeeded, match="1 examples need"):
        ask(person, PROMPTS)
    assert rows(table) == [("b", PROMPTS[0].text, "7 apples"), ("a", "1 + 1", "")]
    write(table, [("a", "1 + 1", "2"), ("b", PROMPTS[0].text, "7")])
    assert [(e.id, e.response) for e in ask(person, PROMPTS)] == [("b", "7"), ("a", "2"), ("c", "3")]
    with pytest.raises(LabelsNeeded, match="1 examples need"):
        ask(person, [PROMPTS[0], Prompt("d", "new")])
    assert rows(table)[2:] == [("d", "new", "")]


def test_runs_share_a_table_and_are_told_of_all_its_empty_cells(tmp_path):
    table = tmp_path / "labels.csv"
    for asked, empty in (([0, 1], 2), ([1, 2], 3), ([0], 3)):
        with pytest.raises(LabelsNeeded, match=f"^{empty} examples need a label"):
            ask(annotator(table), [PROMPTS[place] for place in asked])
    assert [name for name, _, _ in rows(table)] == ["b", "a", "c"]
    write(table, [("b", PROMPTS[0].text, "7"), ("a", PROMPTS[1].text, ""), ("c", PROMPTS[2].text, "")])
    assert ask(annotator(table), PROMPTS[:1])[0].response == "7"
    with pytest.raises(LabelsNeeded, match=r"^2 examples"):
        ask(annotator(table), PROMPTS[:2])


def test_nothing_is_written_where_all_is_known(tmp_path):
    assert ask(annotator(tmp_path / "labels.csv", known={"c": "3"}), PROMPTS[2:])[0].response == "3"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("task", "text", "fields", "response"),
    [
        ("gsm8k", "He has 4\n#### 4", {}, "He has 4\nThe final answer is 4"),
        ("openbookqa", "c", {}, " C"),
        ("boolq", "false", {}, "the correct answer is false"),
        ("generic", "42", {"prompt": "{{ q }} ", "response": "The answer is {{ label }}."}, " The answer is 42."),
        ("generic", "sound", {"answers": ("light", "sound"), "match": "choice"}, "sound"),
    ],
)
def test_what_a_person_writes_is_the_answer_of_a_row_and_stays_as_it_is_in_the_table(
    tmp_path, task, text, fields, response
):
    table = tmp_path / "labels.csv"
    write(table, [("a", "1 + 1", text)])
    for _ in range(2):
        assert ask(annotator(table, task, **fields), PROMPTS[1:2])[0].response == response
        with pytest.raises(LabelsNeeded, match=r"^1 examples"):
            ask(annotator(table, task, **fields), PROMPTS[:2])
        assert rows(table)[0] == ("a", "1 + 1", text)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_spreadsheets_are_told_the_encoding_and_may_leave_it_out(tmp_path, encoding):
    table = tmp_path / "labels.csv"
    with pytest.raises(LabelsNeeded):
        ask(annotator(table), [Prompt("a", "für 1 €?")])
    assert table.read_bytes().startswith(b"\xef\xbb\xbf")
    write(table, [("a", "für 1 €?", "7 €")], encoding)
    assert ask(annotator(table), [Prompt("a", "für 1 €?")])[0].response == "7 €"
    with pytest.raises(LabelsNeeded):
        ask(annotator(table), PROMPTS[:1])
    assert table.read_bytes().count(b"\xef\xbb\xbf") == 1
    assert rows(table)[0] == ("a", "für 1 €?", "7 €")


@pytest.mark.parametrize("content", ["", "id,prompt,response\n", "\ufeffid,prompt,response\r\n"])
def test_a_table_without_rows_is_an_empty_one(tmp_path, content):
    table = tmp_path / "labels.csv"
    table.write_text(content, "utf-8")
    with pytest.raises(LabelsNeeded, match=r"^1 examples"):
        ask(annotator(table), PROMPTS[1:2])
    assert rows(table) == [("a", "1 + 1", "")]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("id,response\na,2\n", "line 2: the column 'prompt' is missing (the table has id, response); restore it"),
        ("id|prompt|response\na|x|2\n", "line 2: the column 'id' is missing (the table has id|prompt|response)"),
        ("id,prompt,response\na,2\n", "line 2: has 2 cells where the header has 3"),
        ("id,prompt,response\na,x,no idea\n", "line 2: the response is 'no idea'; expected a solution"),
        ("id,prompt,response\na,x,2\n1,x,\n", "line 3: no row of the pool has the id '1'; restore it (spreadsheets"),
        ("id,prompt,response\na,x,2\nb,x,\na,x,\n", "line 4: id 'a' is already that of line 2; keep one"),
    ],
)
def test_what_cannot_be_used_is_named_by_its_line(tmp_path, content, sentence):
    table = tmp_path / "labels.csv"
    table.write_text(content)
    with pytest.raises(DataError, match=re.escape(f"{table}, {sentence}")):
        ask(annotator(table), [PROMPTS[1], Prompt("001", "with zeros")])
    assert table.read_text() == content


def test_a_label_of_another_text_is_not_taken(tmp_path):
    """Ids are line numbers where a file has none: a row put in before gives them to other prompts."""
    table = tmp_path / "labels.csv"
    write(table, [("a", "2 + 2", "4"), ("b", PROMPTS[0].text.replace("\n", "\r\n"), "7")])
    assert ask(annotator(table), PROMPTS[:1])[0].response == "7"
    with pytest.raises(
        DataError, match=r"labels.csv, line 2: the prompt of id 'a' is not the pool's; restore the pool"
    ):
        ask(annotator(table), PROMPTS[:2])


def test_rows_that_a_spreadsheet_leaves_empty_are_passed_over(tmp_path):
    table = tmp_path / "labels.csv"
    write(table, [("a", "1 + 1", "2"), ("", " ", ""), ("", "", "")])
    assert ask(annotator(table), PROMPTS[1:2])[0].response == "2"


def test_a_label_that_cannot_be_trained_on_is_named_by_its_line(tmp_path):
    def check(example):
        if len(example.response) > 3:
            raise DataError("the response is too long")

    table = tmp_path / "labels.csv"
    write(table, [("a", "1 + 1", "2"), ("c", PROMPTS[2].text, "12345")])
    strict = FileAnnotator({}, {"a", "b", "c"}, table, get_task("gsm8k"), check)
    assert ask(strict, PROMPTS[1:2])[0].response == "2"
    with pytest.raises(DataError, match=r"labels.csv, line 3: the response is too long"):
        ask(strict, PROMPTS[1:3])


def test_closed_answers_are_named_where_labels_are_asked_for(tmp_path):
    with pytest.raises(LabelsNeeded, match=r"1 examples need a label \(A, B, C, D\): write it"):
        ask(FileAnnotator({}, {"a"}, tmp_path / "labels.csv", get_task("openbookqa")), PROMPTS[1:2])


# What has come in so far


def table_of(path, header, *lines):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([header, *lines])


def raw(table):
    with table.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.reader(file))


def requests(*places):
    return [Request(PROMPTS[place], rank) for rank, place in enumerate(places)]


def test_answers_come_as_far_as_there_are_some(tmp_path):
    """Asking again for what is open changes nothing in the table."""
    table = tmp_path / "labels.csv"
    person = annotator(table, known={"c": "3"})
    assert person.annotate(requests(0, 2, 1)) == [Answer("c", "3")]
    write(table, [("b", PROMPTS[0].text, ""), ("a", "1 + 1", "2")])
    contents = []
    for _ in range(2):
        assert {answer.id: answer.response for answer in person.annotate(requests(0, 2, 1))} == {"c": "3", "a": "2"}
        contents.append(table.read_bytes())
    assert contents[0] == contents[1]
    assert raw(table)[1:] == [["b", PROMPTS[0].text, ""], ["a", "1 + 1", "2"]]
    with pytest.raises(LabelsNeeded, match=r"^1 examples need a label"):
        collect(person, requests(0, 1))
    assert person.instructions(requests(0)).startswith("1 examples need a label: write it into the empty cells of")


def test_an_example_that_is_skipped_has_an_answer_without_a_response(tmp_path):
    """The check and the task are not asked about it, and the cell stays as it is."""

    def check(example):
        raise AssertionError(example)

    table = tmp_path / "labels.csv"
    write(table, [("a", "1 + 1", f" {SKIP} "), ("b", PROMPTS[0].text, "")])
    person = FileAnnotator({}, IDS, table, get_task("openbookqa"), check)
    (answer,) = person.annotate(requests(1))
    assert answer == Answer("a", None)
    assert answer.skipped
    with pytest.raises(LabelsNeeded, match=r"^1 examples need a label \(A, B, C, D\)"):
        collect(person, requests(1, 0))
    person.annotate([*requests(1), Request(Prompt("d", "new"))])
    assert raw(table)[1] == ["a", "1 + 1", SKIP]
    assert [row[0] for row in raw(table)] == ["id", "a", "b", "d"]


def test_a_skipped_row_must_still_be_of_the_prompt(tmp_path):
    table = tmp_path / "labels.csv"
    write(table, [("a", "another text", SKIP)])
    with pytest.raises(DataError, match=r"line 2: the prompt of id 'a' is not the pool's"):
        annotator(table).annotate(requests(1))


def test_columns_that_a_person_adds_stay_and_say_who_and_when(tmp_path):
    table = tmp_path / "labels.csv"
    header = ("id", "notes", "prompt", "annotator", "response", "labelled_at")
    moment = "2026-02-03T04:05:06+00:00"
    table_of(
        table,
        header,
        ("a", "easy, \nor so", "1 + 1", "Ada", "2", moment),
        ("b", "asked twice", PROMPTS[0].text, "Bo", SKIP, ""),
        ("c", "", "known", "", "9", ""),
        ("d", "not yet", "new", "", "", ""),
    )
    person = annotator(table)
    want = [Answer("a", "2", "Ada", moment), Answer("b", None, "Bo", None), Answer("c", "9")]
    assert collect(person, requests(1, 0, 2)) == want
    # A rewrite, for another prompt, puts the three columns that must be there first and loses nothing.
    person.annotate([*requests(1), Request(Prompt("001", "later"))])
    assert raw(table) == [
        ["id", "prompt", "response", "notes", "annotator", "labelled_at"],
        ["a", "1 + 1", "2", "easy, \nor so", "Ada", moment],
        ["b", PROMPTS[0].text, SKIP, "asked twice", "Bo", ""],
        ["c", "known", "9", "", "", ""],
        ["d", "new", "", "not yet", "", ""],
        ["001", "later", "", "", "", ""],
    ]
    assert collect(person, requests(1, 0, 2)) == want


def test_the_annotator_of_a_run_has_its_table_in_the_experiments_folder(tmp_path):
    context = AnnotatorContext({"c": "3"}, IDS, tmp_path / "out", get_task("gsm8k"))
    person = csv_file(context)
    assert collect(person, requests(2)) == [Answer("c", "3")]
    assert not (tmp_path / "out").exists()
    with pytest.raises(LabelsNeeded, match=re.escape(str(tmp_path / "out" / "labels.csv"))):
        collect(person, requests(1))
    assert [row[0] for row in raw(tmp_path / "out" / "labels.csv")] == ["id", "a"]
