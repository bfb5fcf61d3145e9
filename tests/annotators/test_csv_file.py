"""The table that a person labels in: it grows, keeps what was written, and says what is wrong by line."""

import csv
import io
import json
import re

import pytest

from star_jax.annotators import label_table
from star_jax.annotators.annotator import AnnotatorContext, Answer, Request, collect
from star_jax.annotators.csv_file import SKIP, FileAnnotator, TableOptions, csv_file
from star_jax.annotators.label_table import COLUMNS, LabelTable
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


# What spreadsheets and people do to a table


def asked_table(tmp_path, prompts=PROMPTS[:2], strategy=None, **options):
    """A table in which some prompts have been asked for, and who has asked."""
    table = tmp_path / "labels.csv"
    person = FileAnnotator({}, IDS, table, get_task("gsm8k"), options=TableOptions(**options))
    person.annotate([Request(prompt, rank, None, strategy) for rank, prompt in enumerate(prompts)])
    return table, person


def saved(table, delimiter, encoding, end="\r\n"):
    """The table as a spreadsheet saves it that was told to."""
    lines = raw(table)
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator=end).writerows(lines)
    table.write_bytes(text.getvalue().encode(encoding))


def filled(table, answers):
    """What a person writes, by id."""
    header, *lines = raw(table)
    table_of(table, header, *[[name, text, answers.get(name, answer), *more] for name, text, answer, *more in lines])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_is_read_as_it_was_saved_and_keeps_its_delimiter(tmp_path, delimiter, encoding):
    table, person = asked_table(tmp_path, [Prompt("a", "für 1 €?"), Prompt("d", "one; two, three")])
    filled(table, {"a": "7 €"})
    saved(table, delimiter, encoding)
    assert person.annotate([Request(Prompt("a", "für 1 €?"))]) == [Answer("a", "7 €")]
    person.annotate([Request(Prompt("b", "多少; now"))])
    content = table.read_bytes().decode("utf-16" if encoding == "utf-16" else "utf-8-sig")
    assert list(csv.reader(io.StringIO(content), delimiter=delimiter)) == [
        list(COLUMNS),
        ["a", "für 1 €?", "7 €"],
        ["d", "one; two, three", ""],
        ["b", "多少; now", ""],
    ]


def test_a_line_that_names_the_delimiter_and_empty_columns_do_no_harm(tmp_path):
    table, person = asked_table(tmp_path)
    lines = [[*row, "", ""] for row in raw(table)]
    lines[2][2] = "2"
    text = io.StringIO()
    csv.writer(text, delimiter=";").writerows([[""] * 5, *lines])
    table.write_text("sep=;\r\n" + text.getvalue(), "utf-8")
    assert person.annotate(requests(0, 1)) == [Answer("a", "2")]
    assert table.read_text("utf-8-sig").startswith('sep=;\n"id";"prompt";"response"\n')
    assert person.annotate(requests(0, 1)) == [Answer("a", "2")]


def test_a_prompt_that_a_spreadsheet_made_over_is_still_the_one_of_its_id(tmp_path):
    """Dates, numbers with exponents, lost zeros: what was asked for under the id counts."""
    prompts = [Prompt("a", "3-4"), Prompt("b", "1.50"), Prompt("c", "12345678901234567890")]
    table, person = asked_table(tmp_path, prompts)
    made_over = [("a", "03. Apr", "7"), ("b", "1.5", "8"), ("c", "1.23457E+19", "9")]
    table_of(table, COLUMNS, *made_over)
    assert {answer.id: answer.response for answer in person.annotate([*map(Request, prompts)])} == {
        "a": "7",
        "b": "8",
        "c": "9",
    }
    with pytest.raises(DataError, match=r"line 2: the prompt of id 'a' is not the pool's"):
        person.annotate([Request(Prompt("a", "another text"))])


def test_columns_that_were_sorted_apart_are_noticed(tmp_path):
    table, person = asked_table(tmp_path, PROMPTS)
    (header, *lines) = raw(table)
    texts = [line[1] for line in lines]
    table_of(table, header, *[[name, text, "7"] for (name, *_), text in zip(lines, texts[1:] + texts[:1], strict=True)])
    with pytest.raises(
        DataError, match=r"line 2: id 'b' stands beside the prompt of id 'a'; undo .*; line 3: id 'a' .*; line 4"
    ):
        person.annotate(requests(0, 1, 2))


def test_two_rows_of_the_same_text_are_not_taken_for_each_other(tmp_path):
    table, person = asked_table(tmp_path, [Prompt("a", "same"), Prompt("b", "same")])
    filled(table, {"a": "1", "b": "2"})
    assert {one.id: one.response for one in person.annotate([Request(Prompt(name, "same")) for name in "ab"])} == {
        "a": "1",
        "b": "2",
    }


def test_a_table_without_its_record_is_read_as_before(tmp_path):
    """One of an earlier release, or whose record was lost or spoilt: then the cells count."""
    table, person = asked_table(tmp_path)
    filled(table, {"a": "2", "b": "7"})
    (record,) = tmp_path.glob(".labels.csv.asked.json")
    for spoilt in (None, "{", "[1]", '{"a": 3}'):
        record.unlink() if spoilt is None else record.write_text(spoilt)
        assert len(person.annotate(requests(0, 1))) == 2
    with pytest.raises(DataError, match="the prompt of id 'a' is not the pool's"):
        person.annotate([Request(Prompt("a", "2 + 2"))])


@pytest.mark.parametrize(
    "text", ["=1+1", "+49 30", "-5 + 3", "@sum", "\ttab", "'=1", "''+1", "\uff1d1", "'quoted'", "=\n1"]
)
def test_what_looks_like_a_formula_stays_text_and_reads_back_the_same(tmp_path, text):
    prompt = Prompt("a", text)
    table, person = asked_table(tmp_path, [prompt])
    cell = raw(table)[1][1]
    assert cell[0] not in "=+-@\t\r\uff1d\uff0b\uff0d\uff20"
    assert label_table.from_text(cell) == text
    filled(table, {"a": "=2"})
    assert person.annotate([Request(prompt)]) == [Answer("a", "=2")]
    # Some programs take the apostrophe away, and then the text is the prompt's own.
    table_of(table, COLUMNS, ("a", text, "3"))
    (tmp_path / ".labels.csv.asked.json").unlink()
    assert person.annotate([Request(prompt)]) == [Answer("a", "3")]


def test_ids_that_look_like_formulas_come_back_too(tmp_path):
    table = tmp_path / "labels.csv"
    person = FileAnnotator({}, ["=a", "@b", "'=c"], table, get_task("gsm8k"))
    asked = [Request(Prompt(name, "what?")) for name in ("=a", "@b", "'=c")]
    person.annotate(asked)
    assert [row[0] for row in raw(table)[1:]] == ["'=a", "'@b", "''=c"]
    filled(table, {"'=a": "1", "'@b": "2", "''=c": "3"})
    assert [answer.id for answer in person.annotate(asked)] == ["=a", "@b", "'=c"]


def test_a_person_reads_their_own_text_without_the_marks_of_a_chat(tmp_path):
    marked = Prompt("a", "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant", shown="Why?")
    table, person = asked_table(tmp_path, [marked])
    assert raw(table)[1] == ["a", "Why?", ""]
    filled(table, {"a": "7"})
    assert person.annotate([Request(marked)]) == [Answer("a", "7")]
    # A table of an earlier release shows the marks, and is gone on with.
    (tmp_path / ".labels.csv.asked.json").unlink()
    table_of(table, COLUMNS, ("a", marked.text, "7"))
    assert person.annotate([Request(marked)]) == [Answer("a", "7")]


def test_columns_of_the_pool_are_shown_where_that_is_asked_for(tmp_path):
    columns = {"a": {"topic": "sums", "id": "not this", "note": "=1"}, "b": {"topic": "words"}, "d": {"topic": "late"}}
    table, person = asked_table(tmp_path, columns=columns)
    want = [["b", PROMPTS[0].text, "", "words", ""], ["a", "1 + 1", "", "sums", "'=1"]]
    assert raw(table) == [[*COLUMNS, "topic", "note"], *want]
    want[1][3] = "my own"
    table_of(table, [*COLUMNS, "topic", "note"], *want)
    person.annotate([Request(Prompt("d", "new"))])
    assert raw(table)[1:] == [*want, ["d", "new", "", "late", ""]]


def test_why_each_was_asked_for_is_kept_beside_the_table(tmp_path):
    table = tmp_path / "labels.csv"
    person = annotator(table, "generic", answers=("yes", "no"))
    person.annotate([Request(PROMPTS[1], 3, 0.5, "star", 2.5, "yes"), Request(PROMPTS[0], 0, float("-inf"))])
    why = {"rank": 3, "score": 0.5, "uncertainty": 2.5, "guess": "yes", "answers": ["yes", "no"]}
    assert LabelTable(table).asked()["a"].why == why
    assert LabelTable(table).asked()["b"].why == {"rank": 0, "answers": ["yes", "no"]}
    person.annotate([Request(PROMPTS[1], 9, 0.1, "random", 7.0, "no")])
    asked = LabelTable(table).asked()["a"]
    assert (asked.why, asked.strategies) == (why, ("star", "random"))  # the reasons of the first
    person.annotate([Request(PROMPTS[1], 4, 0.6, "star", 2.6, "no")])
    assert LabelTable(table).asked()["a"].why == why | {"rank": 4, "score": 0.6, "uncertainty": 2.6, "guess": "no"}


def test_a_record_of_a_former_release_has_no_reasons_and_gets_them(tmp_path):
    table, person = asked_table(tmp_path, strategy="star")
    record = tmp_path / ".labels.csv.asked.json"
    record.write_text(json.dumps({name: one[:3] for name, one in json.loads(record.read_text()).items()}))
    assert [one.why for one in LabelTable(table).asked().values()] == [{}, {}]
    person.annotate([Request(PROMPTS[1], 1, None, "star")])
    assert LabelTable(table).asked()["a"].why == {"rank": 1}


def test_it_is_said_which_strategies_ask(tmp_path):
    table, person = asked_table(tmp_path, strategy="star")
    assert person.instructions([]).startswith("2 examples need a label, for star: write it")
    assert raw(table)[0] == list(COLUMNS)
    person.annotate([Request(PROMPTS[1], 0, None, "random"), Request(Prompt("d", "new"), 1, None, "random")])
    assert person.instructions([]).startswith("3 examples need a label, for star and random: write it")
    assert [(row[0], row[3]) for row in raw(table)] == [
        ("id", "strategy"),
        ("b", "star"),
        ("a", "star, random"),
        ("d", "random"),
    ]


def test_empty_cells_that_were_not_saved_are_empty(tmp_path):
    """Some spreadsheets leave out the empty cells at the end of some rows."""
    table, person = asked_table(tmp_path, [PROMPTS[1], Prompt("d", "new")])
    table.write_text("id,prompt,response,notes\nd,new,4\na,1 + 1\n")
    assert person.annotate([*requests(1), Request(Prompt("d", "new"))]) == [Answer("d", "4")]
    table.write_text("id,prompt,response\na,2\n")
    with pytest.raises(DataError, match="has 2 cells where the header has 3"):
        person.annotate(requests(1))


def test_names_of_columns_may_have_capitals_and_blanks(tmp_path):
    table, person = asked_table(tmp_path, [PROMPTS[1]])
    table.write_text("ID; Prompt ;RESPONSE;Response?\na;1 + 1;2;no\n")
    assert person.annotate(requests(1)) == [Answer("a", "2")]
    person.annotate(requests(0))
    assert raw_cells(table, ";")[:2] == [[*COLUMNS, "Response?"], ["a", "1 + 1", "2", "no"]]


def test_line_ends_of_old_macs(tmp_path):
    table, person = asked_table(tmp_path, [PROMPTS[1]])
    table.write_bytes(b"id;prompt;response\ra;1 + 1;2\r")
    assert person.annotate(requests(1)) == [Answer("a", "2")]


def raw_cells(table, delimiter):
    with table.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.reader(file, delimiter=delimiter))


# Links, and the rights to a file


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_one_and_what_it_leads_to_is_written(tmp_path, exists):
    (tmp_path / "out").mkdir()
    target, table = tmp_path / "shared.csv", tmp_path / "out" / "labels.csv"
    if exists:
        table_of(target, COLUMNS, ("c", "known", "3"))
        target.chmod(0o660)
    table.symlink_to(target)
    annotator(table).annotate(requests(1))
    assert table.is_symlink()
    assert [row[0] for row in raw(target)] == ["id", *(["c"] if exists else []), "a"]
    assert not exists or target.stat().st_mode & 0o777 == 0o660


# Skips


@pytest.mark.parametrize("text", ["[skip]", "[SKIP]", " [ Skip ]\n", "[skip] "])
def test_skips_are_read_whatever_their_capitals_and_blanks(tmp_path, text):
    table, person = asked_table(tmp_path)
    filled(table, {"a": text})
    assert person.annotate(requests(1)) == [Answer("a", None)]


def test_what_skips_may_be_another_text(tmp_path):
    table, person = asked_table(tmp_path, skip="n/a")
    assert "n/a stands for an example that cannot be labelled" in person.instructions([])
    filled(table, {"a": " N/A"})
    assert person.annotate(requests(1)) == [Answer("a", None)]


@pytest.mark.parametrize(
    ("skip", "text"), [("[skip]", "skip"), ("[skip]", "(Skip)"), ("[skip]", "[skip"), ("n/a", "NA"), ("n/a", "[Skip]")]
)
def test_what_was_meant_to_skip_does_not_become_a_label(tmp_path, skip, text):
    table = tmp_path / "labels.csv"
    person = FileAnnotator({}, IDS, table, get_task("released"), options=TableOptions(skip=skip))
    write(table, [("a", "1 + 1", text)])
    with pytest.raises(DataError, match=rf"line 2: the response is .*; write {re.escape(skip)} for an example that"):
        person.annotate(requests(1))


def test_an_answer_that_is_called_skip_is_one(tmp_path):
    table = tmp_path / "labels.csv"
    write(table, [("a", "1 + 1", "skip")])
    person = annotator(table, "generic", answers=("skip", "jump"))
    assert [answer.response for answer in person.annotate(requests(1))] == ["skip"]


@pytest.mark.parametrize("text", ["#NAME?", "#REF!", "#DIV/0!", "Err:508"])
def test_what_a_spreadsheet_cannot_compute_is_no_label(tmp_path, text):
    table = tmp_path / "labels.csv"
    write(table, [("a", "1 + 1", text)])
    with pytest.raises(DataError, match="which a spreadsheet writes for what it cannot compute"):
        annotator(table, "released").annotate(requests(1))


def test_what_the_pool_says_cannot_be_labelled_is_skipped(tmp_path):
    person = FileAnnotator({"c": "3"}, IDS, tmp_path / "t.csv", get_task("gsm8k"), options=TableOptions(skipped=["a"]))
    assert person.annotate(requests(1, 2)) == [Answer("a", None), Answer("c", "3")]
    assert not list(tmp_path.iterdir())


# Corrections and contradictions


def test_what_is_written_now_is_read_without_asking(tmp_path):
    table, person = asked_table(tmp_path)
    filled(table, {"a": "2"})
    before = table.read_bytes()
    assert person.current(requests(1, 2)) == [Answer("a", "2")]
    assert table.read_bytes() == before
    filled(table, {"a": SKIP})
    assert person.current(requests(1)) == [Answer("a", None)]


def test_a_label_that_was_used_and_is_empty_now_is_asked_about(tmp_path):
    """A row that is gone, or a table, takes nothing back."""
    table, person = asked_table(tmp_path)
    with pytest.raises(DataError, match=r"line 2: the label of id 'b' was used and is empty now; write it again, or"):
        person.current(requests(0, 2))
    table.write_text("id,prompt,response\n")
    assert person.current(requests(0, 1)) == []
    table.unlink()
    assert person.current(requests(0, 1)) == []


@pytest.mark.parametrize(("known", "text"), [("3", "4"), ("3", SKIP), (None, "4")])
def test_pool_and_table_must_not_contradict_each_other(tmp_path, known, text):
    table = tmp_path / "labels.csv"
    write(table, [("c", "known", text)])
    given, skipped = ({}, ["c"]) if known is None else ({"c": known}, [])
    person = FileAnnotator(given, IDS, table, get_task("gsm8k"), options=TableOptions(skipped=skipped))
    for act in (lambda: person.annotate(requests(2)), person.review, lambda: person.current(requests(1))):
        with pytest.raises(DataError, match=r"line 2: the response is .*, and .* in the pool's own file; correct one"):
            act()
    for same in [SKIP] if known is None else [known, f"It is {known}\n#### {known}"]:
        write(table, [("c", "known", same)])
        assert person.annotate(requests(2)) == [Answer("c", known)]


def test_everything_that_is_wrong_is_said_at_once_with_lines_rows_and_ids(tmp_path):
    table = tmp_path / "labels.csv"
    write(table, [("b", PROMPTS[0].text, "no idea"), ("zz", "?", "1"), ("a", "1 + 1", "none"), ("a", "1 + 1", "2")])
    with pytest.raises(DataError) as caught:
        annotator(table).review()
    assert str(caught.value).startswith(
        f"{table}, line 5 (row 3 of the spreadsheet): no row of the pool has the id 'zz'"
    )
    assert "; line 7 (row 5 of the spreadsheet): id 'a' is already that of line 6 (row 4" in str(caught.value)
    write(table, [("b", PROMPTS[0].text, "no idea"), ("a", "1 + 1", "none"), ("c", "known", "none")])
    with pytest.raises(DataError) as caught:
        annotator(table).review()
    for said in ("line 2: the response is 'no idea'; ", "(id 'b'); line 5 (row 3", "(id 'a'); line 6", "(id 'c')"):
        assert said in str(caught.value)
