"""Documents that others wrote: what is read, and the sentence for everything that is not."""

import json
from pathlib import Path

import pytest

from star_jax.documents import (
    NUMBER,
    SWITCH,
    TEXT,
    WHOLE,
    UnreadableError,
    check_fields,
    decoded,
    list_of,
    parse_json,
    parse_yaml,
    read_text,
    shown,
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is empty"),
        ("{", "is not valid JSON (Expecting property name enclosed in double quotes, column 2)"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "has the key 'c' twice; keep one of them"),
        ("[" * 66 + "]" * 66, "is nested more than 64 levels deep"),
        ("[" * 100_000, "is nested more than 64 levels deep"),
        ("1" * 4001, "has a number of 4,001 digits"),
        ("[NaN]", "has NaN, which is no number of JSON"),
        ("[-Infinity]", "has -Infinity, which is no number of JSON"),
        ("1e999", "has the number 1e999, which is too large"),
    ],
)
def test_what_is_no_json_says_why(text, problem):
    with pytest.raises(UnreadableError) as caught:
        parse_json(text)
    assert caught.value.problem == problem


def test_json_is_read_as_it_is():
    value = {"a": [1, 2.5, None, True, "ä"], "deep": json.loads("[" * 60 + "]" * 60)}
    assert parse_json(json.dumps(value)) == value
    assert parse_json("[1e999, -Infinity]", finite=False) == [float("inf"), -float("inf")]


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("a: 1\nb: &b [*b]", 2, "an alias is part of what it stands for"),
        ("- " * 20_000 + "x", None, "nested more than 64 levels deep"),
        ("a: !!timestamp 2001-99-99", None, "a value is not what its tag says"),
        ("a: 1\nb: !!int x", None, "a value is not what its tag says"),
        ("a: 1\nb: " + "1" * 5000, 2, "has a number of 5,000 digits"),
        ("a: \x01", 1, "the character #x0001 may not be in a text"),
        ("- a", 1, "holds a list and no keys"),
    ],
)
def test_what_is_no_yaml_mapping_says_why_and_where(text, line, problem):
    with pytest.raises(UnreadableError) as caught:
        parse_yaml(text)
    assert problem in caught.value.problem
    assert caught.value.line == line


def test_aliases_that_stand_for_a_billion_values_are_refused_and_others_are_not():
    lines = "".join(f"k{number}: &k{number} [*k{number - 1}, *k{number - 1}]\n" for number in range(1, 30))
    with pytest.raises(UnreadableError, match="stand for more than a million values"):
        parse_yaml("k0: &k0 [1, 2]\n" + lines)
    assert parse_yaml("a: &a [1, 2]\nb: *a\nc: *a\n").value == {"a": [1, 2], "b": [1, 2], "c": [1, 2]}


def test_bytes_that_are_no_text_say_why_and_where(tmp_path):
    for content, problem, line in (
        ("é".encode("utf-16"), "is UTF-16 and not UTF-8 text", None),
        (b"a\nb\n\xff", "is not UTF-8 text", 3),
        (b"a\n\0", "holds a null character", 2),
    ):
        with pytest.raises(UnreadableError, match=problem) as caught:
            decoded(content)
        assert caught.value.line == line
    assert decoded(b"\xef\xbb\xbfa") == "a"
    (tmp_path / "long").write_bytes(b"x" * 11)
    with pytest.raises(UnreadableError, match="is larger than 10 bytes"):
        read_text(tmp_path / "long", 10)
    for path in (tmp_path, tmp_path / "none", Path("a\0b")):
        with pytest.raises(UnreadableError, match="cannot be read"):
            read_text(path)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (WHOLE, (0, -5, 2**62), (True, 1.0, 2**63, 10**400, "1", None)),
        (NUMBER, (0, 1.5, 2**62), (True, float("nan"), float("inf"), 10**400, "1")),
        (TEXT, ("", "a"), (1, None, ["a"])),
        (SWITCH, (True, False), (0, 1, "true")),
        (list_of(WHOLE), ([], [1]), ([1.5], "12", None, [None])),
        (TEXT.or_null(), (None, "a"), (0,)),
    ],
)
def test_kinds_take_what_they_say(kind, good, bad):
    for value in good:
        check_fields({"x": value}, {"x": kind})
    for value in bad:
        with pytest.raises(UnreadableError, match=r"as 'x'; it must be") as caught:
            check_fields({"x": value}, {"x": kind})
        assert kind.words in str(caught.value)
    check_fields({}, {"x": kind})
    with pytest.raises(UnreadableError, match="has no field 'x'"):
        check_fields({}, {"x": kind}, required=("x",))


def test_whatever_is_shown_is_short():
    assert [shown(value) for value in (None, True, "a", 10**400)] == [
        "null",
        "true",
        "'a'",
        "a number of about 401 digits",
    ]
    assert all(len(shown(value)) <= 60 for value in ("x" * 10**6, list(range(10**4)), {"a": "b" * 999}))
