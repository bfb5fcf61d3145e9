"""A model's answers as labels: spelt as a person would write them, and None where a task reads nothing."""

import numpy as np
import pytest

from star_jax.checkpoints.hub import end_tokens, load_tokenizer
from star_jax.checkpoints.huggingface import load_model
from star_jax.config import FormatConfig
from star_jax.data.examples import Prompt
from star_jax.data.tasks import get_task
from star_jax.data.tokenization import Encoder, Limits
from star_jax.evaluation.predictions import (
    Answerer,
    answer_pool,
    answer_prompts,
    answer_shapes,
    answering_pool,
    readable_answer,
)

TEXTS = ["rev 3 1 4 =", "max 3 9 4 1 =", "desc 2 7 5 =", "sort 9 1 5 5 2 ="]


@pytest.mark.parametrize(
    ("format", "text", "expected"),
    [
        (FormatConfig(), " New  York \n", "New York"),
        (FormatConfig(), "STRASSE", "STRASSE"),
        (FormatConfig(), " \n", None),
        (FormatConfig(answers=("Yes", "No way")), " no  WAY", "No way"),
        (FormatConfig(answers=("Yes", "No way")), "maybe", None),
        (FormatConfig(match="numeric"), "3 + 4 = 7.", "7"),
        (FormatConfig(match="numeric"), "seven", None),
        (FormatConfig(match="choice", answers=("A", "B")), "(b)", "B"),
        (FormatConfig(match="choice", answers=("cat", "dog")), "The answer is B.", "dog"),
    ],
)
def test_an_answer_is_spelt_as_a_person_would_write_it(format, text, expected):
    assert readable_answer(get_task("generic", format), text) == expected


@pytest.fixture(scope="module")
def answerer():
    model, tokenizer = load_model("embedded:skills"), load_tokenizer("embedded:skills")
    encoder = Encoder(tokenizer, get_task("skills"), Limits(9, 6), end_ids=end_tokens("embedded:skills"))
    return Answerer(model, get_task("skills"), encoder, batch_size=2)


def test_answers_are_in_the_order_of_the_prompts_however_they_are_batched(answerer):
    prompts = [Prompt(f"q{i}", text) for i, text in enumerate(TEXTS)]
    shapes = answer_shapes(answerer.encoder, [9], 3)
    counted = []
    first = answer_prompts(answerer, None, prompts, on_batch=counted.append)
    again = answer_prompts(answerer, None, prompts[::-1], shapes)[::-1]
    assert [one.prompt for one in first] == prompts
    assert [one.answer for one in first[:2]] == ["4 1 3", "9"]
    assert [one[:3] for one in first] == [one[:3] for one in again]
    assert [one.confidence for one in first] == pytest.approx([one.confidence for one in again], rel=1e-4)
    assert sum(counted) == len(prompts)
    assert answer_prompts(answerer, None, []) == []


def test_the_confidence_of_a_token_is_the_geometric_mean(answerer):
    """Of as many tokens as the response has, its end among them."""
    prompts = [Prompt(f"q{i}", text) for i, text in enumerate(TEXTS)]
    by_token = Answerer(answerer.model, answerer.task, answerer.encoder, "mean_token", 2)
    for whole, mean in zip(
        answer_prompts(answerer, None, prompts), answer_prompts(by_token, None, prompts), strict=True
    ):
        tokens = len(whole.response.split()) + 1
        assert np.log(whole.confidence) == pytest.approx(tokens * np.log(mean.confidence), rel=1e-3, abs=1e-6)


def test_answers_from_a_closed_set_do_not_depend_on_which_are_asked_for(answerer):
    task = get_task("generic", FormatConfig("{{ prompt }} ", answers=("1", "2 3")))
    encoder = Encoder(answerer.encoder.tokenizer, task, Limits(9, 6))
    closed = Answerer(answerer.model, task, encoder, batch_size=2, closed=True)
    prompts = [Prompt(f"q{i}", text + " ") for i, text in enumerate(TEXTS)]
    whole = answer_prompts(closed, None, prompts)
    assert {one.answer for one in whole} <= {"1", "2 3"}
    assert all(0.5 <= one.confidence <= 1 for one in whole)  # The larger of two shares.
    part = answer_pool(closed, None, answering_pool(closed, prompts), {1: prompts[1], 3: prompts[3]})
    assert [one[:3] for one in part] == [whole[place][:3] for place in (1, 3)]
    assert [one.confidence for one in part] == pytest.approx([whole[place].confidence for place in (1, 3)], rel=1e-4)
