"""Which of a few lettered choices a text names: what the multiple-choice tasks share.

The order in which a text is read is that of how plainly it speaks: what follows "the answer is", what it begins
with, and last the only choice that is mentioned at all. A text that names several or none is no answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

_BEFORE = r"[\s\"'*(]*"
_ARTICLE = re.compile(r"[AI]\s+[a-z]")  # "A lamp", "I think": words, not letters of a choice


def choice_reader(letters: Sequence[str], texts: Sequence[str] = ()) -> Callable[[str], int | None]:
    """A function text -> place of the choice that is named, or None where none is or several are.

    Args:
      letters: one capital letter a choice; the small ones are read too.
      texts: what each choice says, where that may stand in place of its letter; case makes no difference.
    """
    # A group `text3` is the text of choice 3; the groups of letters have other names.
    longest = sorted(enumerate(texts), key=lambda item: -len(item[1]))
    written = "|".join(rf"(?P<text{place}>{_spaced(text)})" for place, text in longest)
    text = rf"(?i:(?<!\w)(?:{written})(?!\w))" if texts else r"(?!)"
    capital, either = "".join(letters), "".join(letters) + "".join(letters).lower()
    # A letter that stands alone. A small one counts only where a sentence could not go on, since "a" is also a word.
    ends = r"\s*(?:[.,:;)\"'*]|$)"
    letter = rf"(?:(?P<capital>[{capital}])(?![\w'-])|(?P<small>[{capital.lower()}])(?={ends}))"
    choice = rf"{_BEFORE}(?:{text}|{letter})"
    mentioned = rf"(?i:\b(?:answer|option|choice)\s*)\(?(?P<capital>[{capital}])\b|\((?P<either>[{either}])\)"

    answer_is = re.compile(rf"(?i:\banswer\s*(?:is\b|:)\s*:?){choice}", re.MULTILINE)
    leading = re.compile(choice, re.MULTILINE)
    leading_text = re.compile(_BEFORE + text)
    mention = re.compile(rf"(?<!not )(?<!n't ){text}|{mentioned}")

    def place_of(match: re.Match[str]) -> int:
        assert match.lastgroup is not None
        if match.lastgroup.startswith("text"):
            return int(match.lastgroup.removeprefix("text"))
        return letters.index(match[match.lastgroup].upper())

    def read(text: str) -> int | None:
        text = _straight(text).strip()
        begins = leading_text if _ARTICLE.match(text) else leading
        explicit = answer_is.search(text) or begins.match(text)
        if explicit:
            return place_of(explicit)
        found = {place_of(match) for match in mention.finditer(text)}
        return found.pop() if len(found) == 1 else None

    return read


def _spaced(text: str) -> str:
    """A pattern of the text with any blanks between its words."""
    return r"\s+".join(map(re.escape, _straight(text).split()))


def _straight(text: str) -> str:
    return text.replace("\u2019", "'")
