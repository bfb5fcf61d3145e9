"""Every set of items of the synthetic benchmark `skills`; what its skills compute is in `exercises`.

A base model is pretrained on `KNOWN_KEYWORDS` and on compositions. Twelve skills are tested: five it knows and
seven whose keyword it has never read; nor has it read the compositions that compute the same as a new skill.

Room for distinct prompts, so that test set and pools need not share any: 111,000 for a list skill, 1,110,000 for
`add`, 10,100 for `ge`, 95,040 for `chain`. A prompt that is already taken is drawn again; a request that exhausts a
skill is refused. Every set is a function of explicit seeds, each kind of set with a stream of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Set

import numpy as np

from star_jax.benchmarks.skills.exercises import (
    ANSWER_MARK,
    DIGITS,
    EOS,
    KNOWN_KEYWORDS,
    KNOWN_SKILLS,
    MAX_PROMPT_TOKENS,
    MAX_RESPONSE_TOKENS,
    NEW_SKILLS,
    NOISE_KEYWORD,
    PAD,
    TESTED_SKILLS,
    VOCABULARY,
    draw_prompt,
    draw_response,
    skill_of,
    solve,
)
from star_jax.data.examples import Example, Prompt
from star_jax.errors import ConfigError

__all__ = [
    "ANSWER_MARK",
    "DIGITS",
    "EOS",
    "KNOWN_KEYWORDS",
    "KNOWN_SKILLS",
    "MAX_PROMPT_TOKENS",
    "MAX_RESPONSE_TOKENS",
    "NEW_SKILLS",
    "PAD",
    "PRETRAINED_PAIRS",
    "REGIMES",
    "TESTED_SKILLS",
    "VOCABULARY",
    "balanced_labels",
    "pool_examples",
    "pretraining_items",
    "replay_items",
    "skill_of",
    "solve",
    "test_examples",
]

TEST_PER_SKILL = 60
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


def _draw_distinct(rng: np.random.Generator, counts: Mapping[str, int], excluded: Set[str]) -> dict[str, list[str]]:
    """For each skill that many prompts, no two alike and none of them excluded."""
    taken = set(excluded)
    prompts: dict[str, list[str]] = {skill: [] for skill in counts}
    for skill, count in counts.items():
        redraws = 0
        while len(prompts[skill]) < count:
            text = draw_prompt(rng, (skill,))
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
        text = draw_prompt(rng, keywords)
        while text in excluded:
            text = draw_prompt(rng, keywords)
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
    items = [(text, draw_response(rng, text)) for texts in prompts.values() for text in texts]
    order = rng.permutation(len(items)).tolist()
    return [
        Example(Prompt(f"{name}-{place:06d}", items[index][0]), items[index][1]) for place, index in enumerate(order)
    ]
