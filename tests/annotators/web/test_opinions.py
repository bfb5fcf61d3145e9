"""Rows of the table: what an answer writes, what is open, who comes next, how far people agree."""

from itertools import combinations

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from star_jax.annotators.label_table import Cell
from star_jax.annotators.web import opinions
from star_jax.annotators.web.opinions import Given


def given(text, who="ann", second=0, **more):
    return Given(text, who, f"2026-11-28T10:00:{second:02d}.000+00:00", **more)


def labelled(text, who="ann", second=0):
    return opinions.answered(Cell("prompt"), given(text, who, second))


def test_an_answer_names_who_and_when_and_another_one_replaces_it():
    cell = labelled("yes")
    assert (cell.text, cell.more["annotator"], cell.more["labelled_at"]) == ("yes", "ann", given("").when)
    again = opinions.answered(cell, given("no", second=7))
    assert (again.text, again.more["labelled_at"]) == ("no", given("", second=7).when)
    assert opinions.opinions(again) == {"ann": "no"}


def test_columns_of_others_are_kept():
    cell = opinions.answered(Cell("prompt", more={"topic": "shoes"}), given("yes"))
    assert cell.more["topic"] == "shoes"
    assert opinions.taken_back(cell, "ann").more["topic"] == "shoes"


def test_a_skip_has_a_reason_that_goes_with_it():
    cell = opinions.answered(Cell("prompt"), given("[skip]", reason="unclear"))
    assert cell.more["skip_reason"] == "unclear"
    assert opinions.answered(cell, given("yes")).more["skip_reason"] == ""
    assert "skip_reason" not in labelled("yes").more


def test_reasons_go_with_the_answers_they_are_for():
    cell = opinions.answered(labelled("yes"), given("[skip]", "bob", reason="unclear"))
    assert cell.more["skip_reason (bob)"] == "unclear"
    assert opinions.answered(cell, given("no", "bob")).more["skip_reason (bob)"] == ""
    assert opinions.taken_back(cell, "bob").more["skip_reason (bob)"] == ""
    skipped = opinions.answered(Cell("prompt"), given("[skip]", reason="broken"))
    over = opinions.decided(skipped, given("yes", "bob"))
    assert (over.more["skip_reason"], over.more["skip_reason (ann)"]) == ("", "broken")
    assert opinions.decided(over, given("[skip]", "bob", reason="no answer")).more["skip_reason"] == "no answer"


def test_a_second_person_does_not_change_what_counts():
    cell = opinions.answered(labelled("yes"), given("no", "bob", 5))
    assert (cell.text, cell.more["annotator"]) == ("yes", "ann")
    assert opinions.opinions(cell) == {"ann": "yes", "bob": "no"}
    back = opinions.taken_back(cell, "bob")
    assert (back.text, opinions.opinions(back)) == ("yes", {"ann": "yes"})
    assert opinions.taken_back(cell, "ann").text == ""


def test_whoever_gives_no_name_corrects():
    assert opinions.answered(labelled("yes"), given("no", "")).text == "no"
    assert opinions.answered(labelled("yes", ""), given("no", "bob")).text == "no"


@pytest.mark.parametrize("who", ["ann", "bob", "carol"])
def test_a_decision_counts_and_leaves_what_was_said(who):
    cell = opinions.answered(labelled("yes"), given("no", "bob"))
    for _ in range(2):  # deciding again changes nothing but what counts
        cell = opinions.decided(cell, given("maybe", who))
        assert (cell.text, cell.more["decided_by"]) == ("maybe", who)
        assert opinions.opinions(cell) == {"ann": "yes", "bob": "no"}
    found = opinions.agreement({"a": cell})
    assert (found.pairs, found.same, found.differing) == (1, 0, ())


def test_what_is_open_comes_in_the_order_of_the_table_and_not_to_two_people_at_once():
    cells = {"a": labelled("yes"), "b": Cell(""), "c": Cell("")}
    assert opinions.next_open(cells) == "b"
    assert opinions.next_open(cells, {"b"}) == "c"
    assert opinions.next_open(cells, {"b", "c"}) == "b"
    assert opinions.next_open({"a": labelled("yes")}) is None


def test_second_opinions_are_asked_for_on_what_others_have_labelled_the_unused_first():
    cells = {"a": labelled("1"), "b": labelled("2", "bob"), "c": labelled("3"), "d": Cell(""), "e": labelled("4", "")}
    assert opinions.next_unseen(cells, "bob") == "a"
    assert opinions.next_unseen(cells, "bob", {"a"}) == "c"
    cells["c"] = opinions.answered(cells["c"], given("3", "bob"))
    assert opinions.next_unseen(cells, "bob", {"a"}) == "a"
    assert opinions.next_unseen({"b": cells["b"]}, "bob") is None


def test_the_last_answer_is_told_by_the_clock_whatever_the_order_of_rows():
    cells = {"a": labelled("1", second=9), "b": labelled("2", second=3), "c": labelled("3", "bob", 30), "d": Cell("")}
    assert opinions.latest(cells, "ann") == ["a", "b"]
    cells["c"] = opinions.answered(cells["c"], given("4", second=31))
    assert opinions.latest(cells, "ann") == ["c", "a", "b"]
    cells["c"] = opinions.taken_back(cells["c"], "ann")
    assert opinions.latest(cells, "ann") == ["a", "b"]


def test_progress_is_that_of_the_round():
    cells = {"old": labelled("1"), "a": labelled("2"), "b": labelled("[SKIP]"), "c": Cell("")}
    assert opinions.progress(cells, {"old"}) == (2, 1, 3)
    assert opinions.progress(cells) == (3, 1, 4)
    cells["a"] = opinions.answered(cells["a"], given("9", "bob"))
    assert (opinions.answers_given(cells, {"old"}), opinions.answers_given(cells)) == (3, 4)


def test_pace_leaves_pauses_and_other_people_out():
    seconds = {"ann": [0, 4, 10, 1000, 1008], "bob": [5, 500]}
    cells = {
        f"{who}{when}": Cell("", "x", more={"annotator": who, "labelled_at": str(when)})
        for who, times in seconds.items()
        for when in times
    }
    times = {str(when): float(when) for some in seconds.values() for when in some}
    assert opinions.pace(cells, times) == 6  # of 4, 6 and 8
    assert opinions.pace(cells, {}) is None


def test_agreement_of_two_is_that_of_scikit_learn(rng):
    for labels in (["yes", "no"], ["a", "b", "c", "[skip]"]):
        pairs = [tuple(rng.choice(labels, 2)) for _ in range(40)]
        cells = {
            str(n): opinions.answered(labelled(str(one)), given(str(other).upper() + " ", "bob"))
            for n, (one, other) in enumerate(pairs)
        }
        found = opinions.agreement(cells)
        assert (found.pairs, found.same) == (40, sum(one == other for one, other in pairs))
        assert found.kappa == pytest.approx(cohen_kappa_score(*zip(*pairs, strict=True)))
        assert found.differing == tuple(str(n) for n, (one, other) in enumerate(pairs) if one != other)


def test_agreement_of_three_counts_every_pair(rng):
    table = rng.choice(["x", "y"], (10, 3))
    cells = {}
    for n, (ann, bob, eve) in enumerate(table):
        cell = opinions.answered(labelled(str(ann)), given(str(bob), "bob"))
        cells[str(n)] = opinions.answered(cell, given(str(eve), "eve"))
    same = sum(int(np.sum(table[:, one] == table[:, other])) for one, other in combinations(range(3), 2))
    assert opinions.agreement(cells)[:3] == (30, same, None)


def test_no_kappa_where_chance_alone_agrees():
    assert opinions.agreement({"a": opinions.answered(labelled("yes"), given("yes", "bob"))}).kappa is None
    assert opinions.agreement({"a": labelled("yes")}) == (0, 0, None, ())
