"""The embedded benchmark `skills`: prompts such as `rev 3 1 4 =`, responses such as `4 1 3`.

Rows in the released layout, `question` and `answer`, hold both as they stand. What the skills compute, and where
the items come from, is in `star_jax.benchmarks.skills.generator`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from star_jax.benchmarks.skills.generator import EOS, pool_examples, skill_of, test_examples
from star_jax.config import DataConfig
from star_jax.data.examples import Example, Prompt
from star_jax.data.tasks.fields import invalid_field, optional_text_field, text_field
from star_jax.data.tasks.task import Task
from star_jax.errors import DataError


def prompt(row: Mapping[str, Any]) -> str:
    """The question, single spaces between its tokens.

    Raises:
      DataError: it is not a keyword of the benchmark or two, arguments and `=`.
    """
    text = " ".join(text_field(row, "question").split())
    try:
        skill_of(text)
    except DataError:
        raise invalid_field(row, "question", "a keyword of the skills benchmark, arguments and '='") from None
    return text


def response(row: Mapping[str, Any]) -> str | None:
    """The answer, single spaces between its tokens, without end-of-sequence.

    Raises:
      DataError: there is nothing before the end-of-sequence.
    """
    answer = optional_text_field(row, "answer")
    if answer is None:
        return None
    tokens = parse(answer)
    if tokens is None:
        raise invalid_field(row, "answer", f"tokens before '{EOS}'")
    return tokens


def parse(text: str) -> str | None:
    """The tokens up to end-of-sequence, single spaces between them."""
    return " ".join(text.split(EOS)[0].split()) or None


def group(example: Prompt) -> str:
    """The skill a prompt asks for."""
    return skill_of(example.text)


def generate(config: DataConfig, seed: int) -> tuple[list[Example], list[Example]]:
    """Pool of the regime and size in the data section, drawn with the seed, and the test set, always the same."""
    return pool_examples(config.regime, seed, config.pool_size), test_examples()


SKILLS = Task(name="skills", prompt=prompt, response=response, parse=parse, group=group, generate=generate)
