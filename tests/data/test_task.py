"""What a person writes as an answer, made the response of a task; the generic one is in test_generic.py."""

import re

import pytest

from star_jax.data.tasks import get_task
from star_jax.data.tasks.boolq import BOOLQ, BOOLQ_PASSAGE
from star_jax.data.tasks.gsm8k import GSM8K
from star_jax.data.tasks.openbookqa import OPENBOOKQA
from star_jax.data.tasks.released import RELEASED
from star_jax.errors import DataError


@pytest.mark.parametrize(
    ("task", "text", "response"),
    [
        (GSM8K, "He has 4\n#### 4", "He has 4\nThe final answer is 4"),
        (GSM8K, "7 apples", "7 apples"),
        (BOOLQ, "True", "the correct answer is true"),
        (BOOLQ_PASSAGE, "it is false", "the correct answer is false"),
        (OPENBOOKQA, "c", " C"),
        (RELEASED, "so #### 4", "so The final answer is 4"),
        (get_task("skills"), "4  1 3 .", "4 1 3"),
    ],
)
def test_what_a_person_writes_becomes_the_response_of_a_row(task, text, response):
    assert task.written(text) == task.response({"answer": text}) == response


@pytest.mark.parametrize(
    ("task", "text", "message"),
    [
        (GSM8K, "no idea", "the response is 'no idea'; expected a solution that ends in '#### ' and the final number"),
        (BOOLQ, "maybe", "the response is 'maybe'; expected true, false, or a sentence that says which"),
        (OPENBOOKQA, "E", "the response is 'E'; expected one of the letters A, B, C, D"),
        (get_task("skills"), ". 3", "the response is '. 3'; expected tokens before '.'"),
        (RELEASED, " ", "the response is empty"),
    ],
)
def test_what_is_no_answer_is_refused(task, text, message):
    with pytest.raises(DataError, match=re.escape(message)):
        task.written(text)
