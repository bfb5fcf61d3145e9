"""Raw rows of every format with their numbers, and what is said of what cannot be read."""

import re
import subprocess
import sys

import datasets
import pytest
from data_files import gsm8k_rows, write_csv, write_lines

from star_jax.data import readers, tables
from star_jax.data.readers import read_rows
from star_jax.errors import DataError

# Rows


def test_jsonl_rows_carry_line_numbers_and_blank_lines_count(tmp_path):
    first, second = gsm8k_rows(2)
    source = write_lines(tmp_path / "data.jsonl", first, "", "  ", second)
    assert list(read_rows(source, "train")) == [(1, first), (4, second)]


def test_jsonl_may_begin_with_a_byte_order_mark_and_end_without_a_line_break(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"question": "a\xe2\x80\xa8b"}\r\n{"question": "c"}')
    assert list(read_rows(str(path), "train")) == [(1, {"question": "a\u2028b"}), (2, {"question": "c"})]


def test_csv_rows_carry_the_line_they_begin_on(tmp_path):
    source = write_csv(tmp_path / "data.csv", gsm8k_rows(3))
    # Every answer has a line break in it.
    assert [number for number, _ in read_rows(source, "train")] == [2, 4, 6]
    assert [row for _, row in read_rows(source, "train")] == gsm8k_rows(3)


def test_a_csv_cell_may_be_a_whole_document(tmp_path):
    rows = [{"text": "word " * 60_000, "answer": "yes"}]
    assert list(read_rows(write_csv(tmp_path / "data.csv", rows), "train")) == [(2, rows[0])]


def test_the_home_folder_may_be_written_short(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_lines(tmp_path / "data.jsonl", *gsm8k_rows(1))
    assert list(read_rows("~/data.jsonl", "train")) == [(1, gsm8k_rows(1)[0])]
    for source in ("~/missing.jsonl", "~nobody-of-this-name/data.jsonl"):
        with pytest.raises(DataError, match=f"^{source}: there is no such file"):
            list(read_rows(source, "train"))


def test_no_rows_are_fine_where_that_is_said(tmp_path):
    path = tmp_path / "data.csv"
    for content in ("a,b\n", ""):
        path.write_text(content)
        assert list(read_rows(str(path), "train", may_be_empty=True)) == []


# What cannot be read


def test_a_hub_that_cannot_be_reached_is_one_clear_error(monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'google/boolq' on the Hub.\nTraceback of the client")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError) as info:
        list(read_rows("google/boolq", "train"))
    assert str(info.value) == (
        "google/boolq: is no file here, and cannot be loaded from the hub (Couldn't reach 'google/boolq' on the Hub); "
        "check the name (NAME[:CONFIG][@SPLIT]) and the connection, or give a local file"
    )


def test_rows_that_cannot_be_read_come_as_errors_and_the_others_follow(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"q": 1}\n{\n["q"]\n{"q": "\xff"}\nnull\n{"q": 2}\n')
    rows = dict(read_rows(str(path), "train"))
    assert {number: row for number, row in rows.items() if isinstance(row, dict)} == {1: {"q": 1}, 6: {"q": 2}}
    said = {number: str(row) for number, row in rows.items() if isinstance(row, DataError)}
    assert said.keys() == {2, 3, 4, 5}
    assert said[2].startswith("is not valid JSON (")
    assert said[3] == "is a list, not an object; write one object a line"
    assert said[4] == "is not UTF-8 text; save it in that encoding"
    assert said[5].startswith("is null, not an object")


def test_csv_rows_with_a_wrong_number_of_cells_come_as_errors(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text('a,b\n1\n1,2\n\n"x\ny",2,3\n3,4\n', "utf-8")
    rows = dict(read_rows(str(path), "train"))
    assert {number: row for number, row in rows.items() if isinstance(row, dict)} == {
        3: {"a": "1", "b": "2"},
        7: {"a": "3", "b": "4"},
    }
    assert str(rows[2]).startswith("has 1 cells where the header has 2; quote a cell")
    assert str(rows[5]).startswith("has 3 cells where the header has 2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,\xff\n", ": is not UTF-8"),
        # Where a quote is open, the rows after it cannot be told apart, so that none of them may be left out.
        (b'a,b\n1,2\n\n"1,2\n3,4\n', ", line 4: is not valid CSV (unexpected end of data); check its quotes"),
        (b'a,b\n"1"x,2\n3,4\n', ", line 2: is not valid CSV"),
        (b"a,b,a\n1,2,3\n", ", line 1: names column 'a' twice; rename one of them"),
        (b"a,b\n", ": holds no rows"),
        (b"", ": holds no rows"),
    ],
)
def test_csv_files_that_cannot_be_taken_apart(tmp_path, content, message):
    path = tmp_path / "data.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"^{re.escape(f'{path}{message}')}"):
        list(read_rows(str(path), "train"))


def test_sources_that_cannot_be_read_at_all(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "notes.txt").write_text("question", "utf-8")
    (tmp_path / "folder.jsonl").mkdir()
    for name, message in {
        "missing.jsonl": "there is no such file; check the path",
        "folder.jsonl": "there is no such file",
        "empty.jsonl": "holds no rows; it needs at least one",
        "broken.parquet": "is not a valid Parquet file",
        "notes.txt": "no format is known by this name; use a file that ends in .jsonl, .json, .csv, .parquet",
        "no/such/folder": "is neither a file nor a hub name",
    }.items():
        with pytest.raises(DataError, match=f"^{tmp_path / name}: {message}"):
            list(read_rows(str(tmp_path / name), "train"))


def test_importing_the_module_does_not_import_datasets():
    code = "import sys, star_jax.data.loading; sys.exit('datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_texts_and_lines_that_no_model_reads_are_errors_of_their_row(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "LONGEST_CELL", 100)
    monkeypatch.setattr(tables, "LONGEST_CELL", 100)
    monkeypatch.setattr(readers, "LONGEST_LINE", 500)
    path = tmp_path / "data.jsonl"
    texts = ["x" * 100, "x" * 101, "x" * 2000, "last"]
    path.write_text("".join(f'{{"q": "{text}"}}\n' for text in texts))
    rows = {number: str(row) for number, row in read_rows(str(path), "train")}
    assert rows == {
        1: str({"q": "x" * 100}),
        2: "field 'q' has 101 characters; at most 100 are read",
        3: "is longer than 500 bytes; write one object a line",
        4: str({"q": "last"}),
    }
    (tmp_path / "data.csv").write_text("q\n" + "x" * 101 + "\n")
    with pytest.raises(DataError, match=r"line 2: .*larger than"):
        list(read_rows(str(tmp_path / "data.csv"), "train"))
