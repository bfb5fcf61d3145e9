"""What a model is asked, and what is made of whatever it writes."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from star_jax.annotators.llm.messages import (
    Shot,
    asked_again,
    choose_shots,
    conversation,
    is_audited,
    most_tokens,
    read_answer,
    response_format,
    system_message,
)
from star_jax.errors import DataError


@pytest.mark.parametrize(
    ("said", "label"),
    [
        ('{"answer": "yes"}', "yes"),
        ('Sure! ```json\n{"answer": "yes"}\n```', "yes"),
        ('{"thought": {"a": 1}} {"answer": 7, "sure": true}', "7"),
        ('{"broken": {"answer": "in"}', "in"),
        ('{"answer": null}', None),
        ('{"answer": " 0.5 "}', " 0.5 "),
        ('{"answer": "first"} {"answer": "second"}', "first"),
    ],
)
def test_the_label_is_that_of_the_first_object_that_has_one(said, label):
    assert read_answer(said) == label


@pytest.mark.parametrize("said", ["", "yes", "{", '{"Answer": "yes"}', '["answer"]', "{" * 5000])
def test_without_such_an_object_there_is_no_label(said):
    with pytest.raises(DataError, match="no JSON object with the field answer"):
        read_answer(said)


@pytest.mark.parametrize("value", ["[]", "true", '""', '"  "', "{}", "NaN"])
def test_a_label_is_a_text(value):
    with pytest.raises(DataError, match="must be a text"):
        read_answer(f'{{"answer": {value}}}')


@settings(max_examples=50)
@given(st.text(), st.text(max_size=20), st.text(max_size=20))
def test_whatever_stands_around_an_answer_it_is_read(label, before, after):
    if not label.strip() or "{" in before:
        return
    assert read_answer(before + json.dumps({"answer": label}) + after) == label


def test_a_conversation_has_the_examples_before_the_question_and_says_what_was_wrong():
    system = system_message("Be *kind*.", ["yes", "no"])
    assert "Be *kind*." in system
    assert '["yes", "no"]' in system
    shots = [Shot("a", "ask a", "yes", True), Shot("b", "ask b", None, False)]
    messages = conversation(system, shots, "ask c")
    assert [one["role"] for one in messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert [json.loads(one["content"])["answer"] for one in messages if one["role"] == "assistant"] == ["yes", None]
    again = asked_again(messages, "expected one of yes, no")
    assert again[:-1] == messages[:-1]
    assert again[-1]["content"].startswith("ask c\n")
    assert "expected one of yes, no" in again[-1]["content"]
    assert most_tokens(messages) >= sum(len(one["content"].split()) for one in messages)


def test_what_the_server_is_asked_to_hold_the_answer_to():
    assert response_format("none", None) is None
    assert response_format("object", None) == {"type": "json_object"}
    schema = response_format("schema", ["yes", "no"])["json_schema"]["schema"]
    assert schema["properties"]["answer"]["enum"] == ["yes", "no", None]
    assert "enum" not in response_format("schema", None)["json_schema"]["schema"]["properties"]["answer"]


def test_shots_of_people_come_first_and_an_example_is_no_shot_of_itself():
    shots = [Shot(str(n), "?", "!", n % 5 == 0) for n in range(20)]
    chosen = choose_shots(shots, 6, "3")
    assert [one.trusted for one in chosen] == [False] * 2 + [True] * 4
    assert chosen == choose_shots(shots[::-1], 6, "3")
    assert "3" not in {one.id for one in choose_shots(shots, 99, "3")}
    assert {one.id for one in choose_shots(shots, 6, "4")} != {one.id for one in chosen}


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_audited_share_is_what_it_should_be(share, seed):
    size = 4000
    count = sum(is_audited(f"{seed}-{number}", share) for number in range(size))
    least, most = binom.interval(1 - 1e-6, size, share)
    assert least <= count <= most
