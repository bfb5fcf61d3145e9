"""What is written instead of a label where an example cannot be labelled, and what only looks like it."""

from __future__ import annotations

from star_jax.config import SKIP
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


def _plain(text: str) -> str:
    return "".join(text.split()).casefold()


def _letters(text: str) -> str:
    return "".join(character for character in _plain(text) if character.isalnum())
