"""Votes of drawn answers against loops that count, as the papers write it."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from star_jax.acquisition.pool_sampling import SampledAnswers
from star_jax.acquisition.strategy import get_strategy
from star_jax.acquisition.votes import kinds_of, pairwise_disagreement, semantic_entropy, vote_entropy, voted
from star_jax.testing import check_strategy

WORDS = ["", "7", "seven", "8", "hm", "7 "]
ROWS, SAMPLES, TOKENS = 12, 5, 3


def text(tokens):
    return " ".join(WORDS[token] for token in tokens)


def read(written):
    """The first number, in digits."""
    for word in written.split():
        if word in ("7", "seven"):
            return "7"
        if word == "8":
            return "8"
    return None


@pytest.fixture
def sampled(rng):
    lengths = rng.integers(1, TOKENS + 1, (ROWS, SAMPLES)).astype(np.int32)
    tokens = rng.integers(1, len(WORDS), (ROWS, SAMPLES, TOKENS)).astype(np.int32)
    tokens = np.where(np.arange(TOKENS) < lengths[..., None], tokens, 0)
    tokens[0], lengths[0] = tokens[0, :1], lengths[0, :1]  # all alike
    tokens[1], lengths[1] = 4, TOKENS  # nothing to read, all alike
    return SampledAnswers({"sequence_nll": rng.gamma(2.0, 1.0, (ROWS, SAMPLES)).astype(np.float32)}, tokens, lengths)


def answers_of(sampled, row):
    """What is read from each answer, or its text; and the texts."""
    texts = [
        text(one[:length]).strip() for one, length in zip(sampled.responses[row], sampled.lengths[row], strict=True)
    ]
    return [read(one) or f"text: {one}" for one in texts], texts


def test_measures_count_kinds_as_their_definitions_say(sampled):
    kinds, texts = kinds_of(sampled, text, read, np.arange(ROWS))
    log_probs = -np.asarray(sampled.measures["sequence_nll"], np.float64)
    got = (vote_entropy(kinds), pairwise_disagreement(kinds), semantic_entropy(kinds, texts, log_probs))
    for row in range(ROWS):
        answers, written = answers_of(sampled, row)
        shares = [count / SAMPLES for count in Counter(answers).values()]
        pairs = list(combinations(answers, 2))
        distinct: dict[str, float] = {}
        for one, log_prob in zip(written, log_probs[row], strict=True):
            distinct.setdefault(one, np.exp(log_prob))
        kind_of = dict(zip(written, answers, strict=True))
        of_kind: dict[str, float] = {}
        for one, probability in distinct.items():
            of_kind[kind_of[one]] = of_kind.get(kind_of[one], 0) + probability / sum(distinct.values())
        want = (
            -sum(share * np.log(share) for share in shares),
            sum(one != other for one, other in pairs) / len(pairs),
            -sum(share * np.log(share) for share in of_kind.values()),
        )
        np.testing.assert_allclose([values[row] for values in got], want, atol=1e-12)
    assert [values[:2].tolist() for values in got] == [[0, 0]] * 3


def test_the_limits_are_reached():
    different = np.arange(4)[None]
    assert vote_entropy(different)[0] == pytest.approx(np.log(4))
    assert pairwise_disagreement(different)[0] == 1
    assert semantic_entropy(different, different, np.zeros((1, 4)))[0] == pytest.approx(np.log(4))


def test_the_winner_has_most_votes_and_what_was_not_drawn_has_no_figure(sampled):
    rows = np.asarray([7, 2, 9])
    found = voted(sampled, text, read, rows)
    others = np.delete(np.arange(ROWS), rows)
    for name in ("vote_entropy", "semantic_entropy", "pairwise_disagreement"):
        assert np.isfinite(found.measures[name][rows]).all()
        assert np.isnan(found.measures[name][others]).all()
    assert not np.asarray(found.lengths)[others].any()
    for row in rows.tolist():
        answers, written = answers_of(sampled, row)
        most = Counter(answers).most_common(1)[0][0]  # of equals, the first that was met
        length = int(found.lengths[row])
        assert text(np.asarray(found.responses[row])[:length]).strip() == written[answers.index(most)]


@pytest.mark.parametrize("name", ["vote_entropy", "semantic_entropy", "pairwise_disagreement", "star_votes"])
def test_the_strategies_keep_the_contract(name):
    check_strategy(name)
    assert get_strategy(name).draws_answers
    assert not get_strategy(name).sampled
