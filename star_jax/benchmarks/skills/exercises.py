"""What the skills of the synthetic benchmark `skills` compute, and how a prompt of one is drawn.

A prompt is one keyword, or two for a composition, then arguments, then `=`; a response is one to five tokens.
Tokens are joined by single spaces:

  `rev 3 1 4 =`            `4 1 3`     one list of 3 to 5 digits (most skills)
  `inc rotl 3 9 4 =`       `0 5 4`     composition: the second keyword first, then the first
  `add 7 3 1 9 =`          `0 8 6`     the first digit added to each of the 3 to 5 others, mod 10
  `lt 0 9 1 2 =`           `T`         two numbers of equal width, 1 or 2 digits (also `ge`): 09 < 12
  `chain b 4 d b a 7 d =`  `4`         b = 4, d = b, a = 7; what is d? A value is a digit or an earlier letter
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from star_jax.errors import DataError

PAD = "<pad>"
EOS = "."
ANSWER_MARK = "="
DIGITS = tuple("0123456789")
LETTERS = tuple("abcd")
LIST_LENGTHS = (3, 4, 5)
"""Digits of a list, each length as likely as the others."""
NOISE_KEYWORD = "noise"
"""Keyword of the prompts whose answer is random (regime R3); never pretrained, never tested."""

KNOWN_KEYWORDS = ("copy", "rev", "sort", "max", "min", "rotl", "inc", "add", "lt", "chain", "cnt", "first")
"""Skills of the pretraining corpus."""
KNOWN_SKILLS = ("rev", "sort", "max", "add", "chain")
"""Tested skills that the base model masters."""
NEW_SKILLS = ("desc", "second", "swap", "rinc", "ge", "rot2", "mininc")
"""Tested skills that only labels can teach."""
TESTED_SKILLS = KNOWN_SKILLS + NEW_SKILLS

VOCABULARY: tuple[str, ...] = (
    PAD,
    EOS,
    ANSWER_MARK,
    *DIGITS,
    "T",
    "F",
    *LETTERS,
    *KNOWN_KEYWORDS,
    *NEW_SKILLS,
    NOISE_KEYWORD,
)
"""Every token of every item; the index is the token id, padding 0 and end-of-sequence 1."""
MAX_PROMPT_TOKENS = 9
"""Longest prompt, a `chain`, with keyword and `=`."""
MAX_RESPONSE_TOKENS = 6
"""Longest response, five digits, with end-of-sequence."""

_LIST_SKILLS: dict[str, Callable[[list[int]], list[int]]] = {
    "copy": list,
    "rev": lambda digits: digits[::-1],
    "sort": sorted,
    "max": lambda digits: [max(digits)],
    "min": lambda digits: [min(digits)],
    "rotl": lambda digits: digits[1:] + digits[:1],
    "inc": lambda digits: [(digit + 1) % 10 for digit in digits],
    "cnt": lambda digits: [digits[1:].count(digits[0])],
    "first": lambda digits: digits[:1],
    "desc": lambda digits: sorted(digits, reverse=True),
    "second": lambda digits: [sorted(digits)[-2]],
    "swap": lambda digits: [digits[-1], *digits[1:-1], digits[0]],
    "rinc": lambda digits: [(digit + 1) % 10 for digit in reversed(digits)],
    "rot2": lambda digits: digits[2:] + digits[:2],
    "mininc": lambda digits: [(min(digits) + 1) % 10],
}


def skill_of(prompt_text: str) -> str:
    """Name of the skill a prompt asks for: its keyword, or `outer.inner` for a composition.

    Raises:
      DataError: the text is not a keyword or two, arguments and `=`.
    """
    return ".".join(_parse(prompt_text)[0])


def solve(prompt_text: str) -> str:
    """The right response, worked out from the prompt's text alone.

    Raises:
      DataError: the text is no prompt of this benchmark, or is one of `noise`, which has no answer.
    """
    keywords, arguments = _parse(prompt_text)
    try:
        if keywords in _OTHER_SKILLS:
            return _OTHER_SKILLS[keywords](arguments)
        if len(arguments) not in LIST_LENGTHS:
            raise ValueError(arguments)
        digits = [DIGITS.index(token) for token in arguments]
        for keyword in reversed(keywords):
            digits = _LIST_SKILLS[keyword](digits)
        return " ".join(map(str, digits))
    except (KeyError, ValueError, IndexError):
        raise DataError(f"prompt {prompt_text!r} asks for nothing that has an answer") from None


def _parse(prompt_text: str) -> tuple[tuple[str, ...], list[str]]:
    """Keywords, outermost first, and arguments."""
    tokens = prompt_text.split()
    count = 1 + (len(tokens) > 1 and tokens[1] in _KEYWORDS)
    if len(tokens) < count + 2 or tokens[0] not in _KEYWORDS or tokens[-1] != ANSWER_MARK:
        raise DataError(f"prompt {prompt_text!r} is not a keyword of the skills benchmark, arguments and '='")
    return tuple(tokens[:count]), tokens[count:-1]


def _add(arguments: list[str]) -> str:
    first, *rest = arguments
    return " ".join(str((int(first) + int(digit)) % 10) for digit in rest)


def _less_than(arguments: list[str]) -> str:
    left, right = _halves(arguments)
    return "T" if int("".join(left)) < int("".join(right)) else "F"


def _at_least(arguments: list[str]) -> str:
    return "F" if _less_than(arguments) == "T" else "T"


def _chain(arguments: list[str]) -> str:
    *assignments, query = arguments
    values: dict[str, str] = {}
    for letter, value in zip(assignments[::2], assignments[1::2], strict=True):
        values[letter] = value if value in DIGITS else values[value]
    return values[query]


def _halves(arguments: list[str]) -> tuple[list[str], list[str]]:
    middle = len(arguments) // 2
    return arguments[:middle], arguments[middle:]


_OTHER_SKILLS: dict[tuple[str, ...], Callable[[list[str]], str]] = {
    ("add",): _add,
    ("lt",): _less_than,
    ("ge",): _at_least,
    ("chain",): _chain,
}
"""Skills whose arguments are not one list."""


def _draw_list(rng: np.random.Generator) -> list[str]:
    return _digits(rng, LIST_LENGTHS[int(rng.integers(len(LIST_LENGTHS)))])


def _draw_count(rng: np.random.Generator) -> list[str]:
    """A list whose first digit turns up again more often than by chance, so that the count is seldom 0."""
    first, *rest = _draw_list(rng)
    return [first, *(first if repeated else digit for repeated, digit in zip(rng.random(4) < 0.3, rest, strict=False))]


def _draw_digit_and_list(rng: np.random.Generator) -> list[str]:
    return [*_digits(rng, 1), *_draw_list(rng)]


def _draw_two_numbers(rng: np.random.Generator) -> list[str]:
    """Mostly two-digit numbers, one pair in ten equal: there `ge` is more than `lt` with its sides swapped."""
    width = 1 if rng.random() < 0.1 else 2
    left = _digits(rng, width)
    return left + (left if rng.random() < 0.1 else _digits(rng, width))


def _draw_chain(rng: np.random.Generator) -> list[str]:
    """Three assignments, half of the later ones to an earlier letter, and the letter that is asked for."""
    letters = [LETTERS[index] for index in rng.permutation(len(LETTERS))[:3]]
    values = _digits(rng, 3)
    for place in (1, 2):
        if rng.random() < 0.5:
            values[place] = letters[int(rng.integers(place))]
    assignments = [token for pair in zip(letters, values, strict=True) for token in pair]
    return [*assignments, letters[int(rng.integers(3))]]


def _digits(rng: np.random.Generator, count: int) -> list[str]:
    return [DIGITS[digit] for digit in rng.integers(10, size=count).tolist()]


_KEYWORDS = frozenset((*KNOWN_KEYWORDS, *NEW_SKILLS, NOISE_KEYWORD))
_DRAW_ARGUMENTS: dict[str, Callable[[np.random.Generator], list[str]]] = {
    "add": _draw_digit_and_list,
    "lt": _draw_two_numbers,
    "ge": _draw_two_numbers,
    "chain": _draw_chain,
    "cnt": _draw_count,
}


def draw_prompt(rng: np.random.Generator, keywords: tuple[str, ...]) -> str:
    """A random prompt of a skill, or of a composition, the outer keyword first."""
    arguments = _DRAW_ARGUMENTS.get(keywords[0], _draw_list)(rng)
    return " ".join((*keywords, *arguments, ANSWER_MARK))


def draw_response(rng: np.random.Generator, prompt_text: str) -> str:
    """The right response, or for `noise` as many random digits as the prompt has."""
    keywords, arguments = _parse(prompt_text)
    return " ".join(_digits(rng, len(arguments))) if keywords == (NOISE_KEYWORD,) else solve(prompt_text)
