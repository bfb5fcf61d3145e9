"""What a run works on, after the limits: kept rows, labels, counts and fingerprints."""

import hashlib
import json
import logging

import numpy as np
import pytest
from data_files import write_lines

from star_jax.checkpoints.hub import load_tokenizer
from star_jax.config import DataConfig
from star_jax.data.run_data import examples_within_limits, fingerprint, prepare, tokenize_examples
from star_jax.data.tasks import get_task
from star_jax.data.tokenization import Encoder, Limits
from star_jax.errors import ConfigError

SKILLS = get_task("skills")
ROWS = [
    {"id": "a", "question": "rev 3 1 4 =", "answer": "4 1 3"},
    {"id": "b", "question": "rev 3 1 4 1 5 =", "answer": "5 1 4 1 3"},  # 7 tokens, and 6 with end-of-sequence
    {"id": "c", "question": "max 3 9 =", "answer": ""},
    {"id": "d", "question": "copy 1 2 3 4 =", "answer": "1 2 3 4"},
]


@pytest.fixture
def prepared(tmp_path):
    pool = write_lines(tmp_path / "pool.jsonl", *ROWS, {"question": "rev 3 1 4 ="})
    test = write_lines(tmp_path / "test.jsonl", ROWS[1], ROWS[0])

    def load(prompt, response, too_long, **fields):
        config = DataConfig(train=pool, test=test, **fields)
        return prepare(
            config, SKILLS, Encoder(load_tokenizer("embedded:skills"), SKILLS, Limits(prompt, response, too_long)), 0
        )

    return load


def test_everything_is_kept_where_it_fits(prepared):
    data = prepared(9, 6, "error")
    assert [prompt.id for prompt in data.pool] == ["a", "b", "c", "d", "pool-000005"]
    assert data.labels == {row["id"]: row["answer"] for row in ROWS if row["answer"]}
    assert [(example.id, example.response) for example in data.labelled()] == list(data.labels.items())
    assert data.unlabelled == 2
    assert data.ids == {"a", "b", "c", "d", "pool-000005"} == prepared(6, 4, "drop").ids
    assert prepared(9, 6, "error", pool_limit=2).ids == data.ids
    assert {name: count for name, count in data.counts().items() if count} == {
        "pool_examples": 5,
        "pool_unlabelled": 2,
        "test_examples": 2,
        "duplicate_prompts": 1,
        "test_overlap": 3,
    }


@pytest.mark.parametrize("too_long", ["drop", "truncate-left"])
def test_what_the_limits_did_is_counted(prepared, too_long):
    data = prepared(6, 4, too_long)
    dropped = too_long == "drop"
    assert [prompt.id for prompt in data.pool] == ["a", *([] if dropped else ["b"]), "c", "d", "pool-000005"]
    assert set(data.labels) == {"a", "d"} | (set() if dropped else {"b"})
    counts = data.counts()
    assert (counts["left_out_of_pool"], counts["pool_prompts_cut"]) == ((1, 0) if dropped else (0, 1))
    assert (counts["left_out_of_test"], counts["test_prompts_cut"]) == ((1, 0) if dropped else (0, 1))
    assert counts["pool_responses_cut"] == (1 if dropped else 2)
    assert counts["test_responses_cut"] == (0 if dropped else 1)
    assert counts["test_examples"] == len(data.test.examples) == (1 if dropped else 2)


def test_what_is_cut_is_told_once_a_data_set(prepared, caplog):
    with caplog.at_level(logging.WARNING):
        data = prepared(9, 3, "truncate-left")
    said = [record.getMessage() for record in caplog.records if "responses" in record.getMessage()]
    assert [text.split(" are over ")[0] for text in said] == ["3 of 3 responses", "2 of 2 responses"]
    caplog.clear()
    encoder = Encoder(load_tokenizer("embedded:skills"), SKILLS, Limits(9, 3, "truncate-left"))
    assert len(tokenize_examples(encoder, data.test.examples).rows) == 2
    assert "2 of 2 responses" in caplog.text


def test_tokens_are_those_of_the_encoder(prepared):
    data = prepared(6, 4, "truncate-left")
    encoder = Encoder(load_tokenizer("embedded:skills"), SKILLS, Limits(6, 4, "truncate-left"))
    prompts = [example.prompt for example in data.test.examples]
    for found, expected in ((data.tokens, encoder.prompts(data.pool)), (data.test.prompts, encoder.prompts(prompts))):
        assert len(found) == len(expected)
        assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))
    for ours, theirs in zip(data.test.rows, encoder.examples(data.test.examples), strict=True):
        assert ours.prompt_length == theirs.prompt_length
        np.testing.assert_array_equal(ours.tokens, theirs.tokens)


def test_a_test_set_of_which_nothing_is_left_is_an_error(prepared):
    with pytest.raises(ConfigError, match=r"no test example is within data\.max_prompt_tokens"):
        prepared(4, 6, "drop")


def test_the_fingerprint_is_that_of_ids_and_texts_in_order(prepared):
    data = prepared(9, 6, "error")
    assert data.facts["pool"] == fingerprint(data.pool) != fingerprint(data.pool[::-1])
    for some, responses in ((data.pool, ["a", "b"]), (data.pool[:1], []), ([], [])):
        whole = json.dumps([[(prompt.id, prompt.text) for prompt in some], responses])  # as former versions hashed it
        assert fingerprint(some, responses) == hashlib.sha256(whole.encode()).hexdigest()
    assert data.facts["pool"] == prepared(9, 6, "truncate-left").facts["pool"]
    assert data.facts["pool"] != prepared(6, 6, "drop").facts["pool"]
    test = data.test.examples
    prompts, responses = [example.prompt for example in test], [example.response for example in test]
    assert data.facts["test"] == fingerprint(prompts, responses) != fingerprint(prompts, responses[::-1])


def test_labelled_examples_are_fitted_in_their_own_order(prepared):
    encoder = Encoder(load_tokenizer("embedded:skills"), SKILLS, Limits(6, 6, "drop"))
    examples = prepared(9, 6, "error").labelled()[::-1]
    kept, fitting = examples_within_limits(encoder, examples)
    assert kept == [example for example in examples if example.id != "b"]
    assert fitting.prompts_left_out == 1
