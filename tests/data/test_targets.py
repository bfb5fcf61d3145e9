"""Target prompts: read as the pool is, without looking at responses."""

import json

import pytest

from star_jax.benchmarks.skills import generator
from star_jax.checkpoints.hub import load_tokenizer
from star_jax.data.targets import load_targets
from star_jax.data.tasks import get_task
from star_jax.data.tokenization import Encoder, Limits
from star_jax.errors import DataError


@pytest.fixture(scope="module")
def encoder():
    limits = Limits(generator.MAX_PROMPT_TOKENS, generator.MAX_RESPONSE_TOKENS)
    return Encoder(load_tokenizer("embedded:skills"), get_task("skills"), limits)


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_targets_are_the_prompts_of_the_file_with_or_without_answers(tmp_path, encoder):
    rows = [{"question": "desc 3 1 4 ="}, {"question": "rev 2 7 ="}]
    task = get_task("skills")
    found = load_targets(encoder, task, written(tmp_path / "targets.jsonl", rows))
    assert [encoder.text(tokens) for tokens in found] == [row["question"] for row in rows]
    labelled = [row | {"answer": "1"} for row in rows]
    again = load_targets(encoder, task, written(tmp_path / "labelled.jsonl", labelled))
    assert [tokens.tolist() for tokens in again] == [tokens.tolist() for tokens in found]
    assert len(load_targets(encoder, task, None)) == 0


@pytest.mark.parametrize(
    ("rows", "said"), [([], "no rows|is empty"), ([{"text": "desc 3 1 4 ="}], "question")], ids=["empty", "other"]
)
def test_a_file_that_says_nothing_is_refused(tmp_path, encoder, rows, said):
    with pytest.raises(DataError, match=said):
        load_targets(encoder, get_task("skills"), written(tmp_path / "targets.jsonl", rows))
