"""What a task is: a few functions and a closed answer set, as data.

A task knows how a raw row becomes a prompt and a response, and how a generated text is read and judged.
Adding one is one file that builds a `Task`, and one line in the registry of this package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from star_jax.config import DataConfig
from star_jax.data.examples import Example, Prompt
from star_jax.data.tasks.fields import FieldError
from star_jax.errors import DataError


def no_group(prompt: Prompt) -> str:
    """All prompts in one group."""
    return "all"


@dataclass(frozen=True)
class Task:
    """A data set's format.

    Attributes:
      name: registry name.
      prompt: row -> prompt text; raises `DataError` naming the field that is missing or of the wrong type.
      response: row -> response text, or None where the row carries no label.
      parse: generated or reference text -> canonical answer, or None where none can be read.
      candidates: response texts of a closed answer set, or None for free answers.
      group: prompt -> name of its kind, for reports of what was picked and strategies that need `Group`.
      from_text: what a person writes as the answer -> response text, or `DataError`; None where the answer stands in
        the field `answer` of a row.
      append_eos: whether a response ends in the tokenizer's end-of-sequence token.
      end_id: the token that ends a response instead, where a chat template has one of its own.
      add_special_tokens: whether the tokenizer puts its special tokens around a prompt; False where they are part
        of the prompt's text, as a chat template writes them.
      joint_tokens: whether prompt and response are tokenised as one text, as the released code does it: a prompt may
        then have other tokens in front of a response than those that the model is asked with.
      id_field: the field of a row that names it. Any but `id` must be there.
      group_field: the field of a row that becomes `Prompt.group`, or None.
      label_fields: fields that say nothing but the response, whose cells are read as `star_jax.data.cells` explains.
      sparse: whether a field that only some rows of a source have is an empty one in the others.
      generate: pool and test set of the task's own, from the data section and the seed, for a configuration that
        names neither; None where files are needed.
      shown: row -> what a person reads where somebody is asked for a label; None where that is the prompt.

    Example:
      >>> doubling = Task(
      ...     name="doubling",
      ...     prompt=lambda row: f"twice {row['number']} is ",
      ...     response=lambda row: str(2 * row["number"]),
      ...     parse=lambda text: text.strip() or None,
      ... )
      >>> doubling.is_correct(" 8", "8")
      True
    """

    name: str
    prompt: Callable[[Mapping[str, Any]], str]
    response: Callable[[Mapping[str, Any]], str | None]
    parse: Callable[[str], str | None]
    candidates: tuple[str, ...] | None = None
    group: Callable[[Prompt], str] = no_group
    from_text: Callable[[str], str] | None = None
    append_eos: bool = True
    end_id: int | None = None
    add_special_tokens: bool = True
    joint_tokens: bool = False
    id_field: str = "id"
    group_field: str | None = None
    label_fields: frozenset[str] = frozenset()
    sparse: bool = False
    generate: Callable[[DataConfig, int], tuple[list[Example], list[Example]]] | None = None
    shown: Callable[[Mapping[str, Any]], str] | None = None

    def written(self, text: str) -> str:
        """The response that a person's answer stands for: that of a row of the pool with this answer.

        Raises:
          DataError: the text is no answer of this task.
        """
        if self.from_text is not None:
            return self.from_text(text)
        try:
            response = self.response({"answer": text})
        except FieldError as error:
            raise DataError(f"the response {error.problem}") from error
        if response is None:
            raise DataError("the response is empty")
        return response

    def is_correct(self, prediction: str, reference: str) -> bool:
        """Exact match of the parsed answers; a prediction that cannot be parsed is wrong."""
        answer = self.parse(prediction)
        return answer is not None and answer == self.parse(reference)
