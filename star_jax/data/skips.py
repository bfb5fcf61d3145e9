"""What is written instead of a label where an example cannot be labelled, and what only looks like it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from star_jax.config import SKIP
from star_jax.data.tasks.task import Task
from star_jax.errors import DataError


def is_skip(text: str, skip: str = SKIP) -> bool:
    """Whether a text says that an example cannot be labelled; capitals and blanks do not matter.

    Args:
      text: what somebody wrote.
      skip: `labels.skip`.

    Example:
      >>> is_skip(" [Skip] "), is_skip("skipping")
      (True, False)
    """
    return _plain(text) == _plain(skip)


def refuse_near_skip(text: str, skip: str = SKIP) -> None:
    """Refuses a free answer that was probably meant to skip: it would be trained on as a label.

    Raises:
      DataError: the text has the letters of `skip` with other signs around them, or is the default where another
        value is set.
    """
    letters = _letters(skip)
    if (letters and _letters(text) == letters) or is_skip(text):
        raise DataError(
            f"the response is {text!r}; write {skip} for an example that cannot be labelled, or set labels.skip to "
            "something else where this is a label"
        )


def answer_reader(task: Task, skip: str = SKIP) -> Callable[[Mapping[str, Any]], tuple[str | None, bool]]:
    """Reads rows of a pool: row -> its response or None, and whether it says that it cannot be labelled.

    Args:
      task: whose responses are read; what it refuses, the reader refuses too, but for a cell that says so.
      skip: `labels.skip`.
    """
    spelt = [skip]
    with contextlib.suppress(Exception):  # other answers do not know this one, and a user's own task may fail anyhow
        spelt.append(task.written(skip))

    def answer(row: Mapping[str, Any]) -> tuple[str | None, bool]:
        try:
            response = task.response(row)
        except DataError:
            if any(isinstance(cell, str) and is_skip(cell, skip) for cell in row.values()):
                return None, True
            raise
        if response is not None and any(is_skip(response, text) for text in spelt):
            return None, True
        return response, False

    return answer


def _plain(text: str) -> str:
    return "".join(text.split()).casefold()


def _letters(text: str) -> str:
    return "".join(character for character in _plain(text) if character.isalnum())
