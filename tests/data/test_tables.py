"""Tables as spreadsheets save them, in every encoding and with every delimiter, read as one and the same."""

import codecs
import csv
import io
import logging

import pytest

from star_jax.data.readers import read_rows
from star_jax.data.tables import LineNumber, TableStyle, read_records, table_style, write_table
from star_jax.errors import DataError

HEADER = ["id", "question", "label"]
ROWS = [["a", "Was kostet 1,5 kg; in €?", "für 3"], ["b", 'say "no"', "Überall, ja"], ["c", "two\nlines", ""]]
WANT = [dict(zip(HEADER, row, strict=True)) for row in ROWS]


def written(rows, delimiter=",", quoting=csv.QUOTE_MINIMAL, end="\r\n"):
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows(rows)
    return text.getvalue()


def read(path, content, name="data.csv"):
    file = path / name
    file.write_bytes(content)
    return [row for _, row in read_rows(str(file), "train")]


ENCODINGS = {
    "utf-8": "",
    "utf-8-sig": "",
    "utf-16": "",  # Python writes the mark itself
    "utf-16-le": "\ufeff",
    "utf-16-be": "\ufeff",
    "utf-32": "",
    "cp1252": "",
}


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_with_every_delimiter(tmp_path, encoding, delimiter, quoting):
    text = ENCODINGS[encoding] + written([HEADER, *ROWS], delimiter, quoting)
    assert read(tmp_path, text.encode(encoding)) == WANT


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_its_mark(tmp_path, encoding):
    assert read(tmp_path, written([HEADER, *ROWS], ";").encode(encoding)) == WANT


@pytest.mark.parametrize("line", ["sep=;\r\n", "SEP=;\n", '"sep=;"\r\n', "\ufeffsep=;\r\n"])
def test_a_first_line_that_names_the_delimiter(tmp_path, line):
    assert read(tmp_path, (line + written([HEADER, *ROWS], ";")).encode()) == WANT


@pytest.mark.parametrize("blank", ["\r\n", ";;\r\n", "\r\n;;\r\n ;\r\n"])
def test_blank_lines_before_the_header_and_lines_and_rows_count(tmp_path, blank):
    file = tmp_path / "data.csv"
    file.write_bytes((blank + written([HEADER, *ROWS, ["d", "e", "f"]], ";")).encode())
    found = list(read_rows(str(file), "train"))
    assert [row for _, row in found] == [*WANT, dict(zip(HEADER, "def", strict=True))]
    before = blank.count("\n")
    assert [number - before for number, _ in found] == [2, 3, 4, 6]
    assert [number.row - before for number, _ in found] == [2, 3, 4, 5]


def test_empty_columns_at_the_end_are_none_and_a_note_in_one_stays(tmp_path):
    rows = [[*HEADER, "", " "], [*ROWS[0], "", ""], [*ROWS[1], "", "see me"], [*ROWS[2], "", "", "", ""]]
    assert read(tmp_path, written(rows).encode()) == [WANT[0], WANT[1] | {"column 5": "see me"}, WANT[2]]


def test_rows_that_are_too_long_or_too_short_are_named(tmp_path):
    found = read(tmp_path, b"id;question;label\r\na;b;c;d\r\na;b\r\na;b;c;;\r\n")
    assert found[2] == {"id": "a", "question": "b", "label": "c"}
    assert [str(row).partition(";")[0] for row in found[:2]] == [
        "has 4 cells where the header has 3",
        "has 2 cells where the header has 3",
    ]


@pytest.mark.parametrize(
    ("delimiter", "text"),
    [
        (",", "question\nWhat is 1; 2; 3?\n"),
        (",", "id,a; b\nx,1; 2\ny,2; 3\n"),
        (",", "id,text\n1,a;b\n2,c;d\n"),
        ("\t", "id\ttext\n1\ta,b;c\n2\td;e,f\n"),
        (";", "id;text\n1;a,b\n2;c,d\n"),
        (";", "id;text, short\n1;a\n2;b\n"),
        (",", "a,b\n1\n1,2\n3,4\n"),
        (",", '"x;y","z"\n"1;2","3"\n'),
    ],
)
def test_a_delimiter_is_the_one_that_gives_every_record_its_cells(tmp_path, delimiter, text):
    """The reference is told it."""
    header, *rows = csv.reader(io.StringIO(text), delimiter=delimiter)
    found = read(tmp_path, text.encode())
    whole = [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]
    assert whole
    assert [row for row in found if isinstance(row, dict)] == whole


def test_windows_1252_is_said_and_other_code_pages_are_refused(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        read(tmp_path, written([HEADER, *ROWS]).encode("cp1252"))
    assert "data.csv: is not UTF-8 and is read as Windows-1252; if this is not right" in caplog.text
    assert "€?" in caplog.text
    for encoding, text in (
        ("cp1251", "id,q\n1,Сколько стоит\n"),
        ("gbk", "id,q\n1,多少钱一斤苹果\n"),
        ("shift_jis", "id,q\n1,りんごはいくらですか\n"),
        ("iso8859-7", "id,q\n1,Πόσο κοστίζει\n"),
    ):
        with pytest.raises(DataError, match=r"data.csv: is not UTF-8; save the file in that encoding$"):
            read(tmp_path, text.encode(encoding))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"PK\x03\x04rest of a workbook", "is a spreadsheet program's own file; export the sheet as CSV"),
        (b"id,q\n1,a\0b\n", "holds NUL bytes and is no text"),
        (codecs.BOM_UTF16_LE + "id,q\n1,a\n".encode("utf-16-le")[:-1], "is not valid utf-16"),
    ],
)
def test_what_is_no_text_is_one_sentence(tmp_path, content, sentence):
    with pytest.raises(DataError, match=f"data.csv: {sentence}"):
        read(tmp_path, content)


def test_tab_separated_files_go_by_their_own_name_too(tmp_path):
    assert read(tmp_path, written([HEADER, *ROWS], "\t").encode(), "data.tsv") == WANT


@pytest.mark.parametrize(
    "style", [TableStyle(), TableStyle(";"), TableStyle("\t", "utf-16"), TableStyle(";", "cp1252", True)]
)
def test_a_table_is_written_in_its_style(tmp_path, style):
    file = tmp_path / "table.csv"
    file.write_bytes(write_table(style, [HEADER, *ROWS]))
    assert table_style(file) == style
    assert [cells for _, cells in read_records(file)] == [HEADER, *ROWS]


def test_what_an_encoding_does_not_have_is_written_in_utf_8(tmp_path):
    file = tmp_path / "table.csv"
    file.write_bytes(write_table(TableStyle(";", "cp1252"), [["id", "q"], ["1", "多少"]]))
    assert table_style(file) == TableStyle(";", "utf-8-sig")


def test_a_line_is_a_number():
    assert LineNumber(7, 3) == 7
    assert f"{LineNumber(7, 3)} {LineNumber(7, 3):03d}" == "7 007"


def test_json_lines_in_utf_16_and_nested_without_end_are_one_sentence(tmp_path):
    with pytest.raises(DataError, match="is UTF-16 and not UTF-8; save the file in that encoding"):
        read(tmp_path, '{"q": 1}\n'.encode("utf-16"), "data.jsonl")
    good, bad = read(tmp_path, b'{"q": 1}\n' + b'{"q":' * 100_000 + b"\n", "data.jsonl")
    assert good == {"q": 1}
    assert isinstance(bad, DataError)
