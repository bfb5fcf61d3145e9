"""The words of the page."""

import pytest

from star_jax.annotators.label_table import Asked, Cell
from star_jax.annotators.web import view
from star_jax.annotators.web.desk import Sheet


def test_a_line_of_a_run_is_shown_without_its_time_and_counts_rounds_from_one():
    line = "2026-11-28 11:54:49 star seed 0, round 0/1: train: 4 examples in 5.4 s"
    assert view.readable(line) == "star seed 0, round 1 of 2: train: 4 examples in 5.4 s"
    assert view.readable("plain") == "plain"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("labels.csv, line 3: it is too long (id 'b')", "b"),
        ("labels.csv, line 3: it is too long (id 'gone')", None),
        ("out of memory", None),
    ],
)
def test_the_example_that_a_message_names_is_found(message, expected):
    assert view.named_in(message, {"b": Cell("")}) == expected


@pytest.mark.parametrize(
    ("why", "expected"),
    [
        ({"picked_by": "random"}, ["drawn at random", "number 3 of this draw"]),
        ({"picked_by": "base_only", "score": 0.5}, ["picked as number 3 by base_only", "score 0.5"]),
        ({"picked_by": "mine"}, ["picked as number 3 by mine"]),  # a plug-in without scores draws nothing
        ({}, ["picked as number 3, for star"]),  # as a former release wrote it down
    ],
)
def test_why_is_what_is_known_of_it(why, expected):
    sheet = Sheet({"a": Cell("")}, {"a": Asked("", "", ("star",), {"rank": 2, **why})})
    assert view._reasons(sheet, "a", ()) == expected


@pytest.mark.parametrize(
    ("number", "count", "expected"),
    [
        (1, 30, "highest"),
        (2, 30, "2nd highest"),
        (3, 30, "3rd highest"),
        (11, 30, "11th highest"),
        (12, 30, "12th highest"),
        (21, 30, "21st highest"),
        (30, 30, "lowest"),
    ],
)
def test_places_in_words(number, count, expected):
    assert view._ordinal(number, count) == expected


@pytest.mark.parametrize(
    ("missing", "seconds", "expected"),
    [(0, 5, ""), (3, None, ""), (3, 5, "under a minute left"), (60, 10, "about 10 min left")],
)
def test_the_time_that_is_left(missing, seconds, expected):
    assert view._left(missing, seconds) == expected


def test_times_that_nobody_can_read_are_no_times():
    cells = {str(n): Cell("", more={"labelled_at": when}) for n, when in enumerate(["noon", "", "2026-11-28T10:00:02"])}
    assert set(view._seconds(cells)) == {"2026-11-28T10:00:02"}
