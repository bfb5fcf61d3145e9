"""Drawn tokens against nuclei that are sorted in numpy, and drawn responses against the model's own distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.errors import ConfigError
from star_jax.inference.generation import PromptBatch, Stop, generate, sample
from star_jax.inference.sampling import BLOCK, Decoding, Draws, check_decoding, draw_tokens
from star_jax.inference.scoring import score_responses
from star_jax.models.dropout import row_keys
from star_jax.models.sequences import SequenceInputs

DRAWS = 4000
CHANCE = 1e-9
"""Of each bound on frequencies to be broken by a right program."""

LENGTHS, WIDTH, SAMPLES = (5, 1, 3, 4, 2), 4, 3
NEVER = 99

draw = jax.jit(draw_tokens, static_argnums=2)


def nucleus(logits: np.ndarray, decoding: Decoding) -> np.ndarray:
    """Probabilities of the tokens that may be drawn: sorted, summed, cut behind the first sum of at least top_p."""
    powers = np.exp((logits - logits.max()).astype(np.float64) / decoding.temperature)
    probs = powers / powers.sum()
    kept, mass = [], 0.0
    for token in np.argsort(-probs, kind="stable"):
        kept.append(token)
        mass += probs[token]
        if mass >= decoding.top_p:
            break
    found = np.zeros_like(probs)
    found[kept] = probs[kept] / mass
    return found


def assert_drawn_from(probs: np.ndarray, tokens: np.ndarray) -> None:
    """A frequency is off by more than the bound with a chance of 2 exp(−2 n bound²) (Hoeffding), and there are V."""
    counts = np.bincount(tokens, minlength=len(probs))
    assert (counts[probs == 0] == 0).all()
    bound = np.sqrt(np.log(2 * len(probs) / CHANCE) / (2 * len(tokens)))
    assert np.abs(counts / len(tokens) - probs).max() <= bound


@pytest.mark.parametrize("size", [9, 2 * BLOCK + 3])
@pytest.mark.parametrize("decoding", [Decoding(), Decoding(1, 0.6, 0.8), Decoding(1, 2.0, 0.3)])
def test_tokens_are_drawn_from_the_nucleus(rng, size, decoding):
    logits = rng.normal(size=size).astype(np.float32) * 3
    tokens = draw(np.tile(logits, (DRAWS, 1)), jax.random.split(jax.random.key(0), DRAWS), decoding)
    assert_drawn_from(nucleus(logits, decoding), np.asarray(tokens))


def test_of_equally_probable_tokens_the_first_are_in_the_nucleus():
    """Four of probability 1/5 are exactly what 0.8 asks for but for rounding, so 0.7 is asked for."""
    tokens = draw(np.zeros((DRAWS, 5), np.float32), jax.random.split(jax.random.key(1), DRAWS), Decoding(1, 1.0, 0.7))
    assert set(np.asarray(tokens).tolist()) == {0, 1, 2, 3}


def test_a_draw_depends_on_its_row_alone(rng):
    logits, keys = rng.normal(size=(6, 9)).astype(np.float32), jax.random.split(jax.random.key(2), 6)
    together = draw(logits, keys, Decoding(1, 1.5, 0.9))
    turned = draw(logits[::-1], keys[::-1], Decoding(1, 1.5, 0.9))
    np.testing.assert_array_equal(together, turned[::-1])


def test_drawing_from_what_is_not_a_number_ends():
    """The statistics of such a token say so."""
    assert draw(
        np.full((2, 9), np.nan, np.float32), jax.random.split(jax.random.key(3), 2), Decoding(1, 1.0, 0.5)
    ).shape


@pytest.mark.parametrize(
    ("decoding", "words"),
    [
        (Decoding(samples=0), "0 samples"),
        (Decoding(temperature=0.0), "temperature is 0.0"),
        (Decoding(temperature=float("nan")), "temperature is nan"),
        (Decoding(top_p=0.0), "top_p is 0.0"),
        (Decoding(top_p=1.5), "top_p is 1.5"),
    ],
)
def test_what_cannot_be_drawn_is_refused(decoding, words):
    with pytest.raises(ConfigError, match=words):
        check_decoding(decoding)


@pytest.fixture(scope="module")
def prompts():
    return np.random.default_rng(1).integers(0, 17, (5, 5)).astype(np.int32)


@pytest.fixture(scope="module")
def drawn(small_model, small_adapter, prompts):
    """Responses of prompts in an order, the numbers of which give the keys; one program for all tests."""

    @jax.jit
    def run(prompts, lengths, numbers, end):
        draws = Draws(Decoding(SAMPLES, 1.3, 0.9), row_keys(jax.random.key(4), numbers))
        return sample(small_model, small_adapter, PromptBatch(prompts, lengths), Stop(WIDTH, end), draws)

    def of(order=range(5), end=NEVER):
        order = np.array(order)
        return jax.device_get(run(prompts[order], np.array(LENGTHS)[order], order, np.array(end)))

    return of


def test_responses_depend_on_their_prompt_and_key_alone(drawn):
    whole, turned = drawn(), drawn((3, 1, 4, 0, 2))
    assert whole.tokens.shape == (SAMPLES, 5, WIDTH)
    assert len({row.tobytes() for sample in whole.tokens for row in sample}) > SAMPLES  # not all alike
    np.testing.assert_array_equal(turned.tokens, whole.tokens[:, [3, 1, 4, 0, 2]])


def test_responses_end_and_what_the_model_says_of_them_is_that_of_reading_them(
    drawn, prompts, small_model, small_adapter
):
    end = int(drawn().tokens[0, 0, 1])
    found = drawn(end=end)
    assert found.lengths.min() < WIDTH
    read = jax.jit(score_responses)
    for tokens, lengths, log_probs in zip(found.tokens, found.lengths, found.statistics.log_prob[:, 0], strict=True):
        rows = np.zeros((5, 5 + WIDTH), np.int32)
        for row, (prompt, length) in enumerate(zip(LENGTHS, lengths, strict=True)):
            rows[row, :prompt] = prompts[row, :prompt]
            rows[row, prompt : prompt + length] = tokens[row, :length]
            assert (tokens[row, length:] == 0).all()
            assert (end in tokens[row, :length]) == (tokens[row, length - 1] == end)
        statistics, mask = read(
            small_model, small_adapter, SequenceInputs(rows, np.array(LENGTHS), np.array(LENGTHS) + lengths)
        )
        for row, length in enumerate(lengths):
            want = np.asarray(statistics.log_prob)[0, row, np.asarray(mask)[row]]
            np.testing.assert_allclose(log_probs[row, :length], want, rtol=1e-4, atol=2e-5)


def test_responses_follow_the_distribution_of_the_model(small_model, small_adapter, prompts, numpy_logits):
    """Pairs of tokens behind one prompt: the second is drawn from what the model says behind the first."""
    prompt, decoding = prompts[0, :3], Decoding(1, 0.7, 0.95)
    rows, keys = np.tile(prompt, (DRAWS, 1)), row_keys(jax.random.key(5), jnp.arange(DRAWS))
    lengths = np.full(DRAWS, 3)
    run = jax.jit(
        lambda keys: (
            sample(small_model, small_adapter, PromptBatch(rows, lengths), Stop(2, NEVER), Draws(decoding, keys)).tokens
        )
    )
    pairs = np.asarray(run(keys))[0]
    first = nucleus(numpy_logits(small_model, small_adapter, prompt)[-1], decoding)
    joint = np.zeros((17, 17))
    for token in np.flatnonzero(first):
        behind = numpy_logits(small_model, small_adapter, [*prompt, token])[-1]
        joint[token] = first[token] * nucleus(behind, decoding)
    assert_drawn_from(joint.ravel(), pairs[:, 0] * 17 + pairs[:, 1])


def test_a_narrow_nucleus_is_greedy(small_model, prompts):
    batch, stop = PromptBatch(prompts, np.array(LENGTHS)), Stop(WIDTH, NEVER)
    draws = Draws(Decoding(1, 1.0, 1e-6), jax.random.split(jax.random.key(6), 5))
    drawn = jax.jit(lambda: sample(small_model, None, batch, stop, draws))()
    greedy = jax.jit(lambda: generate(small_model, None, batch, stop))()
    np.testing.assert_array_equal(drawn.tokens[0], greedy.tokens)
