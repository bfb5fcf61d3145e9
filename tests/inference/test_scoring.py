"""Token statistics against softmax and sums over the vocabulary in float64, a position at a time."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from star_jax.inference.scoring import (
    TIE,
    TokenStatistics,
    candidate_statistics,
    distribution_statistics,
    score_responses,
    statistics_of,
)
from star_jax.models import lm_head as head
from star_jax.models.sequences import SequenceInputs

FIELDS = TokenStatistics._fields
WIDTH = 10
"""Of the sequences drawn here: six tokens of a prompt and four of a response."""

score = jax.jit(score_responses, static_argnames="capacity")
of_candidates = jax.jit(candidate_statistics, static_argnames="candidates")


def softmax(scores) -> np.ndarray:
    exponentials = np.exp(np.asarray(scores, np.float64) - np.max(scores))
    return exponentials / exponentials.sum()


def entropy(probs) -> float:
    return -sum(p * np.log(p) for p in probs if p > 0)


def of_position(probs: np.ndarray, token: int) -> dict[str, np.ndarray]:
    """Every statistic of distributions `K×V` at one position."""
    ordered = [sorted(row)[::-1] for row in probs]
    with np.errstate(divide="ignore"):
        log_prob = np.log(probs[:, token])
    return {
        "log_prob": log_prob,
        "entropy": np.array([entropy(row) for row in probs]),
        "max_log_prob": np.log([row[0] for row in ordered]),
        "margin": np.array([row[0] - row[1] for row in ordered]),
        "mixture_entropy": np.array(entropy(probs.mean(axis=0))),
    }


def at(statistics: TokenStatistics, row: int, place: int) -> dict[str, np.ndarray]:
    return {name: np.asarray(getattr(statistics, name))[..., row, place] for name in FIELDS}


def assert_close(got: dict[str, np.ndarray], want: dict[str, np.ndarray], atol: float = 2e-5) -> None:
    for name in FIELDS:
        assert got[name].dtype == np.float32
        np.testing.assert_allclose(got[name], want[name], rtol=1e-4, atol=atol, err_msg=name)


@pytest.mark.parametrize("adapted", [False, True])
def test_statistics_equal_enumeration(small_model, small_adapter, numpy_logits, draw_sequences, adapted):
    adapter, inputs = small_adapter if adapted else None, draw_sequences(1, 5, 6, 4)
    statistics, mask = score(small_model, adapter, inputs)
    assert statistics.log_prob.shape == (1, 5, WIDTH)
    assert statistics.mixture_entropy.shape == mask.shape == (5, WIDTH)
    for row, (tokens, prompt, length) in enumerate(zip(*inputs, strict=True)):
        logits = numpy_logits(small_model, adapter, tokens[:length])
        places = range(prompt - 1, length - 1)  # those that predict a token of the response
        np.testing.assert_array_equal(np.flatnonzero(mask[row]), places)
        for place in places:
            assert_close(at(statistics, row, place), of_position(softmax(logits[place])[None], tokens[place + 1]))


def test_masked_positions_are_exactly_zero(small_model, small_adapter, draw_sequences):
    statistics, mask = score(small_model, small_adapter, draw_sequences(2, 5, 6, 4))
    hidden = ~np.asarray(mask)
    assert hidden.any()
    for name in FIELDS:
        values = np.asarray(getattr(statistics, name))
        assert (values[..., hidden] == 0).all(), name
        assert (values[..., np.asarray(mask)] != 0).all(), name


@pytest.mark.parametrize("capacity", [None, 32])
def test_statistics_do_not_depend_on_the_batch_or_its_width(small_model, small_adapter, draw_sequences, capacity):
    """Nor on whether the tokens stand in a line, with room for more than there are."""
    inputs, others = draw_sequences(3, 5, 6, 4), draw_sequences(4, 5, 6, 4)
    statistics, mask = score(small_model, small_adapter, inputs)
    mixed = SequenceInputs(*(np.concatenate([b[:1], a[2:4][::-1]]) for a, b in zip(inputs, others, strict=True)))
    wide = mixed._replace(tokens=np.pad(mixed.tokens, ((0, 0), (0, 3)), constant_values=5))
    assert wide.lengths.sum() < 32
    again, same = score(small_model, small_adapter, wide, capacity=capacity)
    for place, row in ((1, 3), (2, 2)):
        np.testing.assert_array_equal(same[place, :WIDTH], mask[row])
        for name in FIELDS:
            left, right = (np.asarray(getattr(s, name)) for s in (again, statistics))
            np.testing.assert_allclose(left[..., place, :WIDTH], right[..., row, :], atol=1e-5, err_msg=name)
            assert (left[..., place, WIDTH:] == 0).all()


def draw_hidden(seed: int, samples: int, softcap: float | None = None):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(samples, 3, 4, 6)).astype(np.float32)
    output = head.OutputHead(rng.normal(size=(9, 6)).astype(np.float32), softcap)
    mask = np.arange(4) < np.array([4, 2, 0])[:, None]
    mask[1] = [True, False, False, True]  # wherever they stand
    return hidden, rng.integers(9, size=(3, 4)).astype(np.int32), mask, output


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("positions", [None, 5, 1])
def test_mixture_over_samples_equals_enumeration(monkeypatch, samples, positions, softcap):
    """In one chunk of all twelve positions; in two of five, which hold the six that count; and one by one."""
    hidden, targets, mask, output = draw_hidden(5, samples, softcap)
    if positions:
        monkeypatch.setattr(head, "FEWEST_POSITIONS", 1)
        monkeypatch.setattr(head, "LOGITS_AT_ONCE", {"cpu": positions * 9 * samples})
        assert head.chunk_size(output, samples) == positions
    run = jax.jit(partial(statistics_of))  # partial: a function of its own, traced with this chunk size
    statistics = run(hidden, targets, mask, output)
    assert statistics.log_prob.shape == (samples, 3, 4)
    for row, place in np.ndindex(3, 4):
        if mask[row, place]:
            logits = hidden[:, row, place].astype(np.float64) @ output.weight.astype(np.float64).T
            logits = logits if softcap is None else softcap * np.tanh(logits / softcap)
            probs = np.stack([softmax(scores) for scores in logits])
            assert_close(at(statistics, row, place), of_position(probs, targets[row, place]))
        else:
            assert all((values == 0).all() for values in at(statistics, row, place).values())


def test_one_sample_mixes_to_itself():
    statistics = jax.jit(statistics_of)(*draw_hidden(6, 1))
    np.testing.assert_array_equal(statistics.mixture_entropy, statistics.entropy[0])


def assert_distributions(logits: np.ndarray, targets: np.ndarray, atol: float = 1e-6) -> TokenStatistics:
    """Asserts that statistics of logits `K×M×V` are those of their softmax in float64."""
    statistics = jax.jit(distribution_statistics)(jnp.asarray(logits, jnp.float32), jnp.asarray(targets))
    assert statistics.log_prob.shape == logits.shape[:2]
    for position, token in enumerate(targets):
        given = np.float32(logits[:, position]).astype(np.float64)
        want = of_position(np.stack([softmax(scores) for scores in given]), token)
        want["log_prob"] = given[:, token] - special.logsumexp(given, axis=-1)  # of what float64 has no power for, too
        for name in FIELDS:
            got = np.asarray(getattr(statistics, name))[..., position]
            # Two tokens that are nearly as probable have no margin.
            bound = max(atol, TIE) if name == "margin" else atol
            np.testing.assert_allclose(got, want[name], rtol=1e-5, atol=bound, err_msg=name)
    return statistics


@pytest.mark.parametrize("vocabulary", [2, 3, 50, 3001])
@pytest.mark.parametrize("samples", [1, 4])
def test_distributions_of_any_constant_equal_enumeration(seed, vocabulary, samples):
    """Logits are not normalised: whatever is added to all of a distribution changes nothing."""
    rng = np.random.default_rng(seed)
    logits, targets = 3 * rng.normal(size=(samples, 6, vocabulary)), rng.integers(vocabulary, size=6)
    assert_distributions(logits, targets)
    # Sixty-fourths, which float32 holds exactly beside the constants.
    logits = np.round(64 * logits) / 64
    moved = assert_distributions(logits + rng.integers(-500, 500, (samples, 6, 1)), targets)
    still = assert_distributions(logits, targets)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6), moved, still)


@pytest.mark.parametrize("places", [(0, 1), (0, 6), (3, 4, 5), tuple(range(7))])
def test_a_tie_for_the_most_probable_token_has_no_margin(seed, places):
    """Wherever the equal logits stand, and whichever token was chosen."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(2, 7, 7))
    logits[..., list(places)] = 5.25
    statistics = assert_distributions(logits, np.arange(7))
    assert (np.asarray(statistics.margin) == 0).all()
    below = logits.copy()
    below[..., places[0]] = 5.3125
    assert (np.asarray(assert_distributions(below, np.arange(7)).margin) > 0).all()


def test_nearly_a_tie_is_one():
    """Up to the stated share, and no further."""
    logits = np.log(np.array([[1, 1 - TIE / 2, 0.5], [1, 1 - 4 * TIE, 0.5]]))
    margin = np.asarray(assert_distributions(logits[None], np.array([0, 0])).margin)
    np.testing.assert_allclose(margin, [[0, 4 * TIE / 2.5]], rtol=0.01)


@pytest.mark.parametrize("gap", [20.0, 88.0, 104.0, 1e4, 1e30])
def test_a_huge_gap_makes_no_nan(gap):
    """From 88 on, what is behind has powers that float32 rounds to 0 or keeps with fewer digits."""
    logits = np.array([[[gap, 0.0, -1.0], [0.0, 0.0, -gap], [0.0, -gap, -gap]]])
    statistics = assert_distributions(logits, np.array([1, 2, 0]))
    assert all(np.isfinite(leaf).all() for leaf in statistics)
    np.testing.assert_allclose(statistics.log_prob[0, 0], -gap, rtol=1e-6)


def test_zero_probabilities_make_no_nan():
    probs = np.array([[[0.5, 0.5, 0, 0], [1, 0, 0, 0]], [[0, 0, 0.25, 0.75], [1, 0, 0, 0]]])
    with np.errstate(divide="ignore"):
        statistics = assert_distributions(np.log(probs), np.array([3, 0]))
    assert statistics.log_prob[0, 0] == -np.inf  # a token that cannot be is said to be so; it is not made a NaN


def test_nan_is_not_hidden():
    """A broken model must not look certain."""
    logits = np.array([[[0.0, np.nan, 1.0], [0.0, 2.0, 1.0]]], np.float32)
    statistics = jax.jit(distribution_statistics)(logits, np.array([0, 0]))
    for name in FIELDS:
        values = np.asarray(getattr(statistics, name)).reshape(-1, 2)[0]
        np.testing.assert_array_equal(np.isnan(values), [True, False], err_msg=name)


def test_certain_distributions_make_no_nan():
    hidden, targets, mask, output = draw_hidden(7, 2)
    statistics = jax.jit(statistics_of)(hidden, targets, mask, head.OutputHead(1e4 * output.weight))
    for name in FIELDS:
        assert np.isfinite(getattr(statistics, name)).all(), name
    np.testing.assert_allclose(statistics.entropy, 0, atol=1e-6)
    np.testing.assert_allclose(statistics.max_log_prob, 0, atol=1e-6)
    np.testing.assert_allclose(statistics.margin, np.broadcast_to(mask, statistics.margin.shape), atol=1e-6)


@pytest.mark.parametrize("samples", [1, 3])
def test_candidates_equal_enumeration_of_the_answer_set(samples):
    rng, batch, candidates, width = np.random.default_rng(8 + samples), 4, 3, 5
    log_prob = rng.normal(size=(samples, batch * candidates, width)).astype(np.float32) - 1
    mask = np.arange(width) < rng.integers(1, width + 1, batch * candidates)[:, None]
    others = np.full_like(log_prob, np.nan)  # nothing but the log-probabilities may be read
    given = TokenStatistics(jnp.where(mask, log_prob, 99.0), others, others, others, others[0])
    statistics, choice_mask, choice = of_candidates(given, jnp.asarray(mask), candidates=candidates)
    assert statistics.log_prob.shape == (samples, batch, 1)
    assert statistics.mixture_entropy.shape == choice_mask.shape == (batch, 1)
    assert choice.shape == (batch,)
    assert np.asarray(choice_mask).all()
    for prompt in range(batch):
        rows = range(prompt * candidates, (prompt + 1) * candidates)
        probs = np.stack(
            [
                softmax([sum(log_prob[k, row, r] for r in range(width) if mask[row, r]) for row in rows])
                for k in range(samples)
            ]
        )
        assert int(choice[prompt]) == probs.mean(axis=0).argmax()
        assert_close(at(statistics, prompt, 0), of_position(probs, probs.mean(axis=0).argmax()))


def test_candidates_of_the_model_equal_enumeration(small_model, small_adapter, numpy_logits):
    prompts, answers = [[3, 1, 4], [1]], [[5, 9], [2], [6, 5, 3]]
    rows = [prompt + answer for prompt in prompts for answer in answers]
    tokens = np.stack([np.pad(row, (0, 10 - len(row))) for row in rows]).astype(np.int32)
    lengths = np.array([[len(prompt), len(prompt + answer)] for prompt in prompts for answer in answers], np.int32)
    statistics, mask = score(small_model, small_adapter, SequenceInputs(tokens, *lengths.T))
    statistics, _, choice = of_candidates(statistics, mask, candidates=3)
    for number, prompt in enumerate(prompts):
        likelihoods = []
        for answer in answers:
            logits, likelihood = numpy_logits(small_model, small_adapter, prompt + answer), 1.0
            for place, token in enumerate(answer):
                likelihood *= softmax(logits[len(prompt) + place - 1])[token]
            likelihoods.append(likelihood)
        probs = np.array(likelihoods) / sum(likelihoods)
        assert int(choice[number]) == probs.argmax()
        assert_close(at(statistics, number, 0), of_position(probs[None], probs.argmax()))
