"""The synthetic benchmark `skills`: what its skills compute, and every set of items drawn from them.

A prompt is one keyword, or two for a composition, then arguments, then `=`; a response is one to five tokens.
Tokens are joined by single spaces:

  `rev 3 1 4 =`            `4 1 3`     one list of 3 to 5 digits (most skills)
  `inc rotl 3 9 4 =`       `0 5 4`     composition: the second keyword first, then the first
  `add 7 3 1 9 =`          `0 8 6`     the first digit added to each of the 3 to 5 others, mod 10
  `lt 0 9 1 2 =`           `T`         two numbers of equal width, 1 or 2 digits (also `ge`): 09 < 12
  `chain b 4 d b a 7 d =`  `4`         b = 4, d = b, a = 7; what is d? A value is a digit or an earlier letter

A base model is pretrained on `KNOWN_KEYWORDS` and on compositions. Twelve skills are tested: five it knows and
seven whose keyword it has never read; nor has it read the compositions that compute the same as a new skill.

Room for distinct prompts, so that test set and pools need not share any: 111,000 for a list skill, 1,110,000 for
`add`, 10,100 for `ge`, 95,040 for `chain`. A prompt that is already taken is drawn again; a request that exhausts a
skill is refused. Every set is a function of explicit seeds, each kind of set with a stream of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Set

import numpy as np

from star_jax.data.examples import Example, Prompt
from star_jax.errors import ConfigError, DataError

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
TEST_PER_SKILL = 60

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

OUTER_KEYWORDS = ("rev", "sort", "rotl", "inc", "max", "min", "first")
INNER_KEYWORDS = ("rev", "sort", "rotl", "inc")
TRIVIAL_PAIRS = frozenset(
    {("rev", "rev")} | {(outer, inner) for outer in ("sort", "max", "min") for inner in ("rev", "sort", "rotl")}
)
"""Compositions whose inner operation changes nothing, or that undo themselves."""
HELD_OUT_PAIRS = frozenset({("rev", "sort"), ("rotl", "rotl"), ("inc", "rev"), ("rev", "inc")})
"""Compositions that compute what a new skill does: desc, rot2, and rinc twice."""
PRETRAINED_PAIRS = tuple(
    (outer, inner)
    for outer in OUTER_KEYWORDS
    for inner in INNER_KEYWORDS
    if (outer, inner) not in TRIVIAL_PAIRS | HELD_OUT_PAIRS
)
SINGLE_SHARE = 0.55
"""Share of single skills in the pretraining corpus; the rest are compositions."""
SINGLE_WEIGHTS = {"add": 2.0, "chain": 2.0}
"""How often a single skill is drawn, 1 for those not named: two are harder to learn than the rest."""

REGIMES = ("R0", "R1", "R2", "R3", "R4")
ZIPF_EXPONENT = 1.2
KNOWN_SHARE = 0.8
"""Share of already known skills in regime R2."""
NOISE_SHARE = 0.2
"""Share of unlearnable items in regime R3."""

_STREAMS = ("test", "pretraining", "replay", "labels", "R0", "R1", "R2", "R3")
_MAX_REDRAWS = 10_000
"""Draws in a row that gave nothing new before a skill counts as exhausted."""

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


def _draw_prompt(rng: np.random.Generator, keywords: tuple[str, ...]) -> str:
    arguments = _DRAW_ARGUMENTS.get(keywords[0], _draw_list)(rng)
    return " ".join((*keywords, *arguments, ANSWER_MARK))


def _draw_response(rng: np.random.Generator, prompt_text: str) -> str:
    """The right response, or for `noise` as many random digits as the prompt has."""
    keywords, arguments = _parse(prompt_text)
    return " ".join(_digits(rng, len(arguments))) if keywords == (NOISE_KEYWORD,) else solve(prompt_text)


def _draw_distinct(rng: np.random.Generator, counts: Mapping[str, int], excluded: Set[str]) -> dict[str, list[str]]:
    """For each skill that many prompts, no two alike and none of them excluded."""
    taken = set(excluded)
    prompts: dict[str, list[str]] = {skill: [] for skill in counts}
    for skill, count in counts.items():
        redraws = 0
        while len(prompts[skill]) < count:
            text = _draw_prompt(rng, (skill,))
            redraws = redraws + 1 if text in taken else 0
            if redraws > _MAX_REDRAWS:
                raise ConfigError(
                    f"{count} items of skill {skill} were asked for, and it has only about {len(prompts[skill])} "
                    "distinct prompts outside the test set; ask for fewer (data.pool_size)"
                )
            if not redraws:
                taken.add(text)
                prompts[skill].append(text)
    return prompts


def _rng(stream: str, seed: int) -> np.random.Generator:
    return np.random.default_rng([_STREAMS.index(stream), seed])


@functools.cache
def _test_prompts() -> Mapping[str, list[str]]:
    return _draw_distinct(_rng("test", 0), dict.fromkeys(TESTED_SKILLS, TEST_PER_SKILL), frozenset())


@functools.cache
def _test_texts() -> frozenset[str]:
    return frozenset(text for texts in _test_prompts().values() for text in texts)


def test_examples() -> list[Example]:
    """The test set: `TEST_PER_SKILL` distinct items of each tested skill, always the same."""
    return [
        Example(Prompt(f"test-{skill}-{index:03d}", text), solve(text))
        for skill, texts in _test_prompts().items()
        for index, text in enumerate(texts)
    ]


def pretraining_items(seed: int, count: int) -> list[tuple[str, str]]:
    """(prompt, response) pairs for the base model: `SINGLE_SHARE` single skills, the rest compositions.

    Prompts may repeat. None is in the test set, and none holds a new keyword.
    """
    return _corpus(_rng("pretraining", seed), count)


def replay_items(seed: int, count: int) -> list[tuple[str, str]]:
    """Fresh pairs of the distribution of `pretraining_items`, to keep old skills alive while new ones are learned."""
    return _corpus(_rng("replay", seed), count)


def _corpus(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    excluded = _test_texts()
    single = (rng.random(count) < SINGLE_SHARE).tolist()
    weights = np.array([SINGLE_WEIGHTS.get(name, 1.0) for name in KNOWN_KEYWORDS])
    keyword = rng.choice(len(KNOWN_KEYWORDS), size=count, p=weights / weights.sum()).tolist()
    pair = rng.integers(len(PRETRAINED_PAIRS), size=count).tolist()
    items = []
    for index in range(count):
        keywords = (KNOWN_KEYWORDS[keyword[index]],) if single[index] else PRETRAINED_PAIRS[pair[index]]
        text = _draw_prompt(rng, keywords)
        while text in excluded:
            text = _draw_prompt(rng, keywords)
        items.append((text, solve(text)))
    return items


def pool_examples(regime: str, seed: int, size: int) -> list[Example]:
    """The pool of a regime, `size` examples with distinct prompts outside the test set, in random order.

    R0: the tested skills in equal shares. R1: shares after Zipf's law, which skill is frequent depends on the
    seed. R2: `KNOWN_SHARE` known skills, the rest new ones. R3: as R0, but `NOISE_SHARE` has random answers.
    R4: R1's very pool; the regime differs in the number of initial labels alone. An id tells nothing of the skill.

    Raises:
      ConfigError: unknown regime, or a size for which a skill has too few distinct prompts.
    """
    if regime not in REGIMES:
        raise ConfigError(f"data.regime is {regime!r}; choose from {', '.join(REGIMES)}")
    rng = _rng("R1" if regime == "R4" else regime, seed)
    return _examples(rng, _shares(regime, rng), size, "pool")


def balanced_labels(seed: int, count: int) -> list[Example]:
    """Labelled examples in equal shares of the tested skills, outside the test set: what can be learned at best."""
    return _examples(_rng("labels", seed), dict.fromkeys(TESTED_SKILLS, 1.0), count, "label")


def _shares(regime: str, rng: np.random.Generator) -> dict[str, float]:
    """Relative frequency of each skill of a regime's pool."""
    if regime in ("R1", "R4"):
        order = rng.permutation(len(TESTED_SKILLS)).tolist()
        return {TESTED_SKILLS[index]: (rank + 1) ** -ZIPF_EXPONENT for rank, index in enumerate(order)}
    if regime == "R2":
        known = dict.fromkeys(KNOWN_SKILLS, KNOWN_SHARE / len(KNOWN_SKILLS))
        return known | dict.fromkeys(NEW_SKILLS, (1 - KNOWN_SHARE) / len(NEW_SKILLS))
    shares = dict.fromkeys(TESTED_SKILLS, 1.0)
    if regime == "R3":
        shares[NOISE_KEYWORD] = len(TESTED_SKILLS) * NOISE_SHARE / (1 - NOISE_SHARE)
    return shares


def _apportion(shares: Mapping[str, float], size: int) -> dict[str, int]:
    """Whole numbers of sum `size` in the given proportions, by largest remainders."""
    exact = np.array(list(shares.values())) * (size / sum(shares.values()))
    counts = np.floor(exact).astype(int)
    # Rounded, so that shares equal but for float error rank by position; stable, for the same on every platform.
    order = np.argsort(-np.round(exact - counts, 9), kind="stable")
    counts[order[: size - counts.sum()]] += 1
    return dict(zip(shares, counts.tolist(), strict=True))


def _examples(rng: np.random.Generator, shares: Mapping[str, float], size: int, name: str) -> list[Example]:
    prompts = _draw_distinct(rng, _apportion(shares, size), _test_texts())
    items = [(text, _draw_response(rng, text)) for texts in prompts.values() for text in texts]
    order = rng.permutation(len(items)).tolist()
    return [
        Example(Prompt(f"{name}-{place:06d}", items[index][0]), items[index][1]) for place, index in enumerate(order)
    ]
