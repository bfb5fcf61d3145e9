"""Every answer is on disk, whatever else is in the table and whoever else writes into it."""

import re
import threading
from datetime import datetime

import pytest

from star_jax.annotators.annotator import Request
from star_jax.annotators.csv_file import FileAnnotator
from star_jax.annotators.web.desk import LONGEST_NAME, LONGEST_TEXT, Desk, Scope
from star_jax.config import FormatConfig
from star_jax.data.examples import Prompt
from star_jax.data.tasks import get_task
from star_jax.errors import DataError


def test_what_was_asked_is_known_with_its_reasons(desk):
    sheet = desk.sheet()
    assert list(sheet.cells) == ["a", "b", "c"]
    assert sheet.why("a") == {
        "rank": 0,
        "score": 0.5,
        "uncertainty": 2.0,
        "guess": "sound",
        "answers": ["light", "sound"],
        "picked_by": "star",
    }
    assert "guess" not in sheet.why("b")
    assert desk.missing() == 3


def test_an_answer_is_in_the_file_and_is_what_the_run_reads(desk, rows, tmp_path):
    desk.answer("b", " sound\r\n", "ann")
    row = rows()["b"]
    assert (row["response"], row["annotator"]) == ("sound", "ann")
    assert datetime.fromisoformat(row["labelled_at"]).tzinfo is not None
    assert desk.missing() == 2
    task = get_task("generic", FormatConfig(answers=("light", "sound")))
    person = FileAnnotator({}, "abcd", tmp_path / "labels.csv", task)
    answers = person.annotate([Request(Prompt("b", "is it <b>sound</b>?"))])
    assert [(one.response, one.annotator, one.labelled_at) for one in answers] == [("sound", "ann", row["labelled_at"])]


def test_a_skip_is_what_the_run_takes_for_one(make_table, rows, tmp_path):
    desk = Desk(make_table(), Scope(skip="n/a"))
    desk.skip("a", " the text\nis unclear ", "ann")
    assert (rows()["a"]["response"], rows()["a"]["skip_reason"]) == ("n/a", "the text is unclear")
    desk.take_back("a", "ann")
    assert (rows()["a"]["response"], rows()["a"]["skip_reason"], rows()["a"]["annotator"]) == ("", "", "")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("  ", "the answer is empty"),
        ("dark", "the answer is 'dark'; choose one of light, sound"),
        ("x" * (LONGEST_TEXT + 1), "the answer has 100,001 characters"),
    ],
)
def test_what_is_no_answer_is_refused_and_nothing_written(desk, rows, text, sentence):
    before = rows()
    with pytest.raises(DataError, match=sentence):
        desk.answer("a", text)
    assert rows() == before


def test_a_free_answer_that_was_meant_to_skip_is_refused(make_table):
    desk = Desk(make_table(answers=()))
    with pytest.raises(DataError, match=r"write \[skip\] for an example that cannot be labelled"):
        desk.answer("a", "skip")
    desk.answer("a", "dark\r\nand light")
    assert desk.sheet().cells["a"].text == "dark\nand light"


def test_lines_end_in_many_ways_and_are_the_same(make_table, rows, tmp_path):
    desk, table = Desk(make_table(answers=())), tmp_path / "labels.csv"
    table.write_bytes(table.read_bytes().replace(b'"is it light?",""', b'"is it light?","dark\r\nor light"'))
    desk.answer("a", "dark", "ann", seen="dark\nor light")
    assert rows()["a"]["response"] == "dark"
    desk.answer("a", "dark\rred", "ann", seen="dark")
    assert rows()["a"]["response"] == "dark\nred"


def test_what_was_replaced_in_the_meantime_is_not_emptied(desk, rows):
    desk.answer("a", "light", "ann")
    desk.answer("a", "sound", "ann")
    with pytest.raises(DataError, match="labelled 'sound' in the meantime"):
        desk.take_back("a", "ann", "light")
    desk.take_back("a", "ann", "sound")
    assert rows()["a"]["response"] == ""


def test_nothing_that_people_write_is_a_formula_in_the_file_and_all_of_it_is_read_as_they_wrote_it(
    make_table, rows, tmp_path
):
    desk, table = Desk(make_table(answers=())), tmp_path / "labels.csv"
    desk.answer("a", "=1+1", "@ann")
    desk.answer("a", "-2", "+bob")
    desk.skip("b", "=cmd", "ann")
    row = rows()["a"]
    assert (row["response"], row["annotator"], row["response (+bob)"]) == ("'=1+1", "'@ann", "'-2")
    assert rows()["b"]["skip_reason"] == "'=cmd"
    cells = desk.sheet().cells
    assert (cells["a"].text, cells["a"].more["annotator"], cells["a"].more["response (+bob)"]) == ("=1+1", "@ann", "-2")
    assert cells["b"].more["skip_reason"] == "=cmd"
    by_hand = {"'=2": "=2", "=3": "=3", "'tis": "'tis", "''-4": "'-4"}
    for written, meant in by_hand.items():
        table.write_text(f'id,prompt,response\n"a","is it light?","{written}"\n', "utf-8")
        assert Desk(desk.table).sheet().cells["a"].text == meant
        desk.table.write_cells(desk.table.cells())
        assert desk.table.cells()["a"].text == meant


def test_edits_by_hand_are_seen_and_kept(desk, rows, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text(table.read_text("utf-8").replace('"is it light?",""', '"is it light?","light"'), "utf-8")
    assert desk.missing() == 2
    desk.answer("c", "sound")
    assert rows()["a"]["response"] == "light"
    with pytest.raises(DataError, match="the example has been labelled 'light' in the meantime"):
        desk.answer("a", "sound", "ann", seen="")
    desk.answer("a", "sound", "ann", seen="light")
    assert rows()["a"]["response"] == "sound"


def test_the_same_answer_sent_twice_is_one(desk, rows):
    for _ in range(2):
        desk.answer("a", "light", "ann", seen="")
    assert rows()["a"]["response"] == "light"


def test_a_table_that_cannot_be_read_is_not_written_to(desk, tmp_path):
    table = tmp_path / "labels.csv"
    broken = table.read_text("utf-8") + '"a","again",""\n'
    table.write_text(broken, "utf-8")
    for act in (desk.sheet, lambda: desk.answer("b", "light")):
        with pytest.raises(DataError, match=re.escape(f"{table}, line 5: id 'a' is already that of line 2")):
            act()
    assert table.read_text("utf-8") == broken
    table.unlink()
    with pytest.raises(DataError, match="is gone"):
        desk.sheet()
    with pytest.raises(DataError, match="is gone"):
        desk.skip("b")


def test_a_row_that_was_taken_out_is_told_of(desk, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("".join(table.read_text("utf-8").splitlines(keepends=True)[:-1]), "utf-8")
    with pytest.raises(DataError, match="no row of id 'c' any more"):
        desk.answer("c", "light")


def test_people_who_answer_at_once_lose_nothing(desk, rows):
    people = [f"p{number}" for number in range(4)]

    def work(who):
        for name in "abc":
            desk.answer(name, "light", who)

    threads = [threading.Thread(target=work, args=(who,)) for who in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for row in rows().values():
        others = {row.get(f"response ({who})") for who in people if who != row["annotator"]}
        assert (row["response"], others) == ("light", {"light"})


def test_a_page_of_one_run_shows_what_it_asks_for(make_table):
    assert Desk(make_table(), Scope(["star"])).missing() == 3
    assert Desk(make_table(), Scope(["random"])).missing() == 0


def test_names_fit_into_the_name_of_a_column(desk, rows):
    desk.answer("a", "light", "ann")
    desk.answer("a", "sound", f" bob\n(the (second) {'x' * 99}")
    column = next(name for name in rows()["a"] if name.startswith("response ("))
    assert re.fullmatch(r"response \(bob the second x+\)", column)
    assert len(column) == len("response ()") + LONGEST_NAME
