"""Rows of an interrupted command: whatever was cut, what is read again is a beginning of what was written."""

import pytest

from star_jax.runs.partial_rows import PartialRows

ROWS = [{"response": f"né {number}", "confidence": number / 7} for number in range(5)]


def left_behind(path):
    return path.with_name(f".{path.name}.partial")


@pytest.mark.parametrize("origin", ["same", "other"])
def test_rows_of_the_same_origin_are_read_again(tmp_path, origin):
    out = tmp_path / "out.csv"
    first = PartialRows(out, "same")
    first.add(ROWS[:2])
    first.add(ROWS[2:])
    assert first.rows == ROWS
    again = PartialRows(out, origin)
    assert again.rows == (ROWS if origin == "same" else [])
    again.add(ROWS[:1])
    assert PartialRows(out, origin).rows == again.rows
    again.remove()
    assert not list(tmp_path.iterdir())


def test_wherever_it_was_cut_a_beginning_is_left(tmp_path):
    """And the next rows come behind it, on lines of their own."""
    out = tmp_path / "out.csv"
    PartialRows(out, "same").add(ROWS)
    whole = left_behind(out).read_bytes()
    for end in range(len(whole)):
        left_behind(out).write_bytes(whole[:end])
        found = PartialRows(out, "same")
        assert found.rows == ROWS[: len(found.rows)]
        assert len(found.rows) >= whole[:end].count(b"\n") - 1
        found.add(ROWS[len(found.rows) :])
        assert PartialRows(out, "same").rows == ROWS


def test_stdout_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = PartialRows(None, "same")
    kept.add(ROWS)
    kept.remove()
    assert kept.rows == ROWS
    assert not list(tmp_path.iterdir())
