"""Tables of single examples, from rows of this version and of earlier ones."""

import json

import pytest
from test_report import read_page, write_run

from star_jax.report import examples, read


def rewrite(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def prediction(number, correct, uncertainty, **more):
    row = {"id": f"t{number}", "prediction": f"said {number}", "reference": f"gold {number}", "correct": correct}
    return row | {"confidence": 0.1 * number, "uncertainty": uncertainty, "group": "one"} | more


@pytest.fixture
def root(tmp_path):
    """Two runs; t3 is wrong in both, t1 and t2 in one each."""
    for seed, wrong in enumerate(({1, 3}, {2, 3})):
        folder = write_run(tmp_path, "star", seed, [0.4, 0.5])
        rows = [prediction(number, number not in wrong, 1.0 + number * (seed + 1)) for number in range(5)]
        rewrite(folder / "rounds" / "001" / "predictions.jsonl", rows)
    return tmp_path


def tables(root):
    return {table.name: table for table in examples.example_tables(read.read_runs(root))}


def test_hardest_first_over_all_runs(root):
    table = tables(root)["hardest"]
    titles = [title for title, _ in table.columns]
    assert titles == ["expected", "answered", "wrong in", "uncertainty", "id"]
    assert [row[titles.index("id")] for row in table.rows] == ["t3", "t2", "t1"]
    assert [row[titles.index("wrong in")] for row in table.rows] == ["2 of 2 runs", "1 of 2 runs", "1 of 2 runs"]
    assert table.rows[0][titles.index("uncertainty")] == "5.500"  # mean of 4 and 7


def test_the_most_confident_errors_come_first_and_can_be_searched(root):
    table = tables(root)["errors"]
    assert [row[-1] for row in table.rows] == ["t3", "t1"]
    assert table.searched
    page = read_page(root)
    assert page.tables["errors"][1][:2] == ["gold 3", "said 3"]
    assert 'oninput="' in (root / "report.html").read_text()


def test_what_a_row_has_is_shown_and_what_none_has_is_no_column(root):
    folder = root / "star" / "seed-0"
    new = {"prompt": "  two\nlines ", "prediction": "guess", "uncertainty": 1.25, "base_uncertainty": 2.5, "score": 0.5}
    old = {"full_uncertainty": 0.75, "response": "gold"}
    skipped = {"skipped": True, "response": None}
    for number, extra in enumerate((old, new)):
        row = {"id": f"p{number}", "rank": 0, "group": "g"}
        rewrite(folder / "rounds" / f"{number:03d}" / "queried.jsonl", [row | extra, row | {"id": "s"} | skipped])
    table = tables(root)["picked"]
    titles = [title for title, _ in table.columns]
    assert titles == [*("round", "prompt", "label", "the model's guess", "score", "uncertainty", "base model's", "id")]
    assert table.rows[0] == ["0", "", "gold", "", "", "0.750", "", "p0"]
    assert table.rows[1][2] == "skipped"
    assert table.rows[2] == ["1", "two\nlines", "", "guess", "0.500", "1.250", "2.500", "p1"]


def test_long_texts_and_long_tables_are_cut_and_say_so(root):
    folder = root / "star" / "seed-0"
    rows = [prediction(number, False, 0.0, prediction="x" * 5000) for number in range(examples.MOST_ERRORS + 5)]
    rewrite(folder / "rounds" / "001" / "predictions.jsonl", rows)
    table = tables(root)["errors"]
    assert len(table.rows) == examples.MOST_ERRORS
    assert f"the first {examples.MOST_ERRORS} of {examples.MOST_ERRORS + 5}" in table.reading
    assert max(len(cell) for row in table.rows for cell in row) <= examples.MOST_CHARACTERS + 3


def test_where_everything_is_right_there_are_no_errors(tmp_path):
    folder = write_run(tmp_path, "star", 0, [1.0])
    rewrite(folder / "rounds" / "000" / "predictions.jsonl", [prediction(1, True, 0.0)])
    assert set(tables(tmp_path)) == {"picked"}
