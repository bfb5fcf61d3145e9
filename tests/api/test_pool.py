"""Pools from files and from memory, and what is said of rows that will not do."""

import csv
import json
import logging

import numpy as np
import pandas as pd
import pytest

import star_jax as sj
from star_jax.api.pool import ExamplePool, tokenize

TEXTS = [{"id": "b", "text": "great", "label": "yes"}, {"id": "a", "text": "dull", "label": ""}]
FORMAT = sj.Format(prompt="{{ text }} ", response="{{ label }}", answers=("yes", "no"))


def skills_format(**changes):
    """A format whose texts the shipped tokenizer can read."""
    return sj.Format(**({"prompt": "{{ question }} ", "response": "{{ label }}", "answers": ("1", "2")} | changes))


def test_memory_and_files_give_the_same_pool(tmp_path, monkeypatch):
    (tmp_path / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TEXTS))
    with (tmp_path / "pool.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "text", "label"])
        writer.writeheader()
        writer.writerows(TEXTS)
    monkeypatch.setenv("HOME", str(tmp_path))
    want = sj.read_pool(TEXTS, FORMAT)
    assert want.ids == ["a", "b"]
    assert dict(want.labels) == {"b": " yes"}
    assert [example.id for example in want.labelled()] == ["b"]
    sources = (str(tmp_path / "pool.jsonl"), tmp_path / "pool.csv", "~/pool.csv", (row for row in TEXTS), tuple(TEXTS))
    for source in sources:
        found = sj.read_pool(source, FORMAT)
        assert (found.prompts, found.labels) == (want.prompts, want.labels)
        assert found.fingerprint == want.fingerprint


def test_rows_of_a_data_frame_are_read_and_a_missing_label_is_none(pool, rows):
    frame = pd.DataFrame([*rows, {"id": "z", "question": "max 9 1 =", "label": "9"}])
    found = sj.read_pool(frame.to_dict("records"), skills_format(answers=()))
    assert found.ids == [*pool.ids, "z"]
    assert dict(found.labels) == {"z": " 9"}


def test_a_fingerprint_is_of_ids_and_texts_alone(rows, pool):
    labelled = sj.read_pool([row | {"answer": "1"} for row in rows], "skills")
    assert labelled.fingerprint == pool.fingerprint
    assert sj.read_pool(rows[1:], "skills").fingerprint != pool.fingerprint
    assert sj.read_pool([rows[0] | {"id": "other"}, *rows[1:]], "skills").fingerprint != pool.fingerprint


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([{"question": "max 1 2 ="}, {"questoin": "max 1 2 ="}], "row 2: field 'question' is missing"),
        ([{"question": "max 1 2 ="}, {"question": "please add"}], "row 2: .*keyword of the skills benchmark"),
        ([{"id": "x", "question": "max 1 2 ="}] * 2, "row 2: id 'x' is already that of row 1"),
        ([{"id": True, "question": "max 1 2 ="}], "row 1: field 'id' is True"),
        (["max 1 2 ="], "row 1: is a str, not an object"),
        ([], "there are no rows"),
        ((row for row in ()), "there are no rows"),
    ],
)
def test_a_row_that_will_not_do_is_named(rows, sentence):
    with pytest.raises(sj.DataError, match=sentence):
        sj.read_pool(rows, "skills")


def test_file_and_line_of_a_bad_row_are_named_and_it_can_be_left_out(tmp_path, caplog):
    path = tmp_path / "pool.jsonl"
    path.write_text('{"text": "fine"}\n\n{"text": }\n{"text": "good", "label": "maybe"}\n')
    with pytest.raises(sj.DataError, match=r"pool\.jsonl, line 3: is not valid JSON"):
        sj.read_pool(path, FORMAT)
    with caplog.at_level(logging.WARNING):
        found = sj.read_pool(path, FORMAT, on_bad_row="skip")
    assert found.ids == ["pool-000001"]
    assert "2 of 3 rows cannot be used and are left out: line 3" in caplog.text


@pytest.mark.parametrize("label", ["maybe", 3, True])
def test_a_label_that_is_none_of_a_closed_set_is_refused_with_its_row(label):
    with pytest.raises(sj.DataError, match=r"row 1: the response is .*; expected one of yes, no"):
        sj.read_pool([{"text": "fine", "label": label}], FORMAT)


@pytest.mark.parametrize(
    ("source", "format", "sentence"),
    [
        (pd.DataFrame(TEXTS), FORMAT, r'pass its rows, frame\.to_dict\("records"\)'),
        (TEXTS[0], FORMAT, "source is a dict; pass a list of dictionaries"),
        (None, FORMAT, "source is a NoneType"),
        (TEXTS, "skils", r"skils, which does not exist \(did you mean skills\?\)"),
        (TEXTS, {"prompt": "{{ text }}"}, "format is a dict; pass a Format"),
        (TEXTS, sj.Format(prompt="{{ text }} ", chat=True), "pass model= to read_pool"),
        (TEXTS, sj.Format(prompt="{{ text "), "no valid Jinja template"),
    ],
)
def test_what_is_no_source_or_no_format_is_one_sentence(source, format, sentence):
    with pytest.raises(sj.ConfigError, match=sentence):
        sj.read_pool(source, format)


def test_a_choice_that_is_misspelt_is_refused():
    with pytest.raises(sj.ConfigError, match="on_bad_row is 'ignore'; choose from error, skip"):
        sj.read_pool(TEXTS, FORMAT, on_bad_row="ignore")


def test_a_task_of_ones_own_reads_rows():
    task = sj.Task(
        name="shout",
        prompt=lambda row: row["word"].upper(),
        response=lambda row: row.get("reply"),
        parse=lambda text: text.strip() or None,
    )
    pool = sj.read_pool([{"word": "hi"}, {"word": "ho", "reply": "ha"}], task)
    assert [prompt.text for prompt in pool.prompts] == ["HI", "HO"]
    assert dict(pool.labels) == {"row-000002": "ha"}


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ({"prompt": 0}, r"limits\.prompt is 0; it must be at least 1"),
        ({"response": -3}, r"limits\.response is -3"),
        ({"response": 2.5}, "it must be a whole number"),
        ({"too_long": "drop"}, "would make the pool another one"),
        ({"too_long": "cut"}, "choose from error, truncate-left"),
    ],
)
def test_limits_that_nothing_can_keep_are_refused(limits, sentence):
    with pytest.raises(sj.ConfigError, match=sentence):
        sj.TokenLimits(**limits)


def test_prompts_over_the_limit_are_named_or_cut_on_the_left(model, pool):
    with pytest.raises(sj.DataError, match=r"prompts are over the limit of 3 tokens \(q00 with 5"):
        tokenize(model, pool, sj.TokenLimits(prompt=3))
    cut = tokenize(model, pool, sj.TokenLimits(prompt=3, too_long="truncate-left")).prompts
    for whole, short in zip(tokenize(model, pool).prompts, cut, strict=True):
        np.testing.assert_array_equal(short, whole[-3:])


@pytest.mark.parametrize(("size", "sentence"), [(64, "leave no room"), (65, "over the limit of 64"), (63, None)])
def test_a_prompt_must_leave_room_for_a_response(model, size, sentence):
    """The shipped model reads 64 tokens."""
    pool = sj.read_pool([{"question": " ".join("1" * size)}], skills_format(answers=()))
    if sentence is None:
        assert tokenize(model, pool).encoder.limits.response == 1
    else:
        with pytest.raises((sj.ConfigError, sj.DataError), match=sentence):
            tokenize(model, pool)


def test_limits_beyond_what_the_model_reads_are_refused(model, pool):
    with pytest.raises(sj.ConfigError, match="are longer than the 64 that embedded:skills reads"):
        tokenize(model, pool, sj.TokenLimits(prompt=32, response=33))


@pytest.mark.parametrize(("size", "sentence"), [(0, "at least 1"), (-1, "at least 1"), ("2", "a whole number")])
def test_a_batch_holds_something(model, pool, size, sentence):
    with pytest.raises(sj.ConfigError, match=f"batch_size is .*{sentence}"):
        sj.score_pool(model, pool, batch_size=size)


def test_an_empty_pool_is_refused(model, pool):
    with pytest.raises(sj.DataError, match="the pool is empty"):
        sj.score_pool(model, ExamplePool((), pool.task, {}))
