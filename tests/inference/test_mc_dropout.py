"""Monte-Carlo dropout: that the passes differ, by how much they may, and what they must not depend on."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import PROJECTIONS

from star_jax.config import ConfigError
from star_jax.inference.mc_dropout import mc_score_responses
from star_jax.inference.scoring import TokenStatistics, score_responses, statistics_of
from star_jax.models.head import output_head
from star_jax.models.lora import Adapter, Dropout, row_keys
from star_jax.models.sequences import SequenceInputs, response_hidden, response_mask, response_targets

FIELDS = TokenStatistics._fields
SAMPLES, RATE, WIDTH = 3, 0.3, 4
MODES = ("tied", "per_token")

mc_score = jax.jit(mc_score_responses, static_argnames=("width", "samples", "rate", "mode"))
score = jax.jit(score_responses, static_argnames="width")


def sampled(model, adapter, inputs, *, key: int = 0, index=None, mode: str = "tied", width: int = WIDTH):
    index = jnp.arange(len(inputs.lengths)) if index is None else jnp.asarray(index)
    return mc_score(
        model, adapter, inputs, width=width, key=jax.random.key(key), index=index,
        samples=SAMPLES, rate=RATE, mode=mode,
    )  # fmt: skip


def assert_close(one, other, **tolerance):
    for name in FIELDS:
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), err_msg=name, **tolerance)


@pytest.mark.parametrize("mode", MODES)
def test_samples_differ_at_every_response_token_and_nowhere_else(small_model, small_adapter, draw_sequences, mode):
    statistics, mask = sampled(small_model, small_adapter, draw_sequences(1, 5, 6, 4), mode=mode)
    mask = np.asarray(mask)
    assert statistics.mixture_entropy.shape == mask.shape == (5, WIDTH)
    for name in FIELDS[:4]:
        values = np.asarray(getattr(statistics, name))
        assert values.shape == (SAMPLES, 5, WIDTH), name
        assert (values.var(axis=0)[mask] > 0).all(), name
        assert (values[:, ~mask] == 0).all(), name
    assert (statistics.mixture_entropy - statistics.entropy.mean(axis=0))[mask].min() > 0  # entropy is concave


def test_variance_over_samples_is_exactly_0_without_dropout(small_model, small_adapter, draw_sequences):
    """The same samplers, keys and all, with the masks switched on and off."""
    inputs = draw_sequences(1, 5, 6, 4)

    @partial(jax.jit, static_argnames="on")
    def hidden(keys, *, on: bool):
        def sample(key):
            dropout = Dropout(row_keys(key, jnp.arange(5)), RATE, "tied") if on else None
            # Added to what a sample returns, so that each one is computed for its own key.
            return response_hidden(small_model, small_adapter, inputs, WIDTH, dropout) + 0 * jax.random.uniform(key)

        return jax.vmap(sample)(keys)

    keys = jax.random.split(jax.random.key(0), SAMPLES)
    assert (np.ptp(hidden(keys, on=True), axis=0) > 0).any()
    assert (np.ptp(hidden(keys, on=False), axis=0) == 0).all()
    passes = [score(small_model, small_adapter, inputs, width=WIDTH)[0] for _ in range(SAMPLES)]
    for name in FIELDS:
        assert (np.ptp([getattr(one, name) for one in passes], axis=0) == 0).all(), name


def test_rate_0_is_refused(small_model, small_adapter, draw_sequences):
    with pytest.raises(ConfigError, match=r"3 Monte-Carlo samples .* at dropout 0.* set a dropout above 0"):
        mc_score(
            small_model, small_adapter, draw_sequences(1, 5, 6, 4), width=WIDTH, key=jax.random.key(0),
            index=jnp.arange(5), samples=3, rate=0.0, mode="tied",
        )  # fmt: skip


def test_samples_are_passes_with_a_key_each(small_model, small_adapter, draw_sequences):
    mode, inputs, index = "per_token", draw_sequences(2, 5, 6, 4), jnp.array([7, 0, 3, 3, 11])
    mask, targets = response_mask(inputs, WIDTH), response_targets(inputs, WIDTH)

    @jax.jit
    def one_pass(key):
        dropout = Dropout(row_keys(key, index), RATE, mode)
        hidden = response_hidden(small_model, small_adapter, inputs, WIDTH, dropout)[None]
        return statistics_of(hidden, targets, mask, output_head(small_model))

    together, _ = sampled(small_model, small_adapter, inputs, key=5, index=index, mode=mode)
    passes = [one_pass(key) for key in jax.random.split(jax.random.key(5), SAMPLES)]
    for name in FIELDS[:4]:
        looped = np.concatenate([getattr(one, name) for one in passes])
        np.testing.assert_allclose(getattr(together, name), looped, atol=2e-5, err_msg=name)


def test_a_tied_sample_is_one_model(small_model, small_adapter, draw_sequences, numpy_logits):
    """Rows of A thinned by the mask and divided by 1 − rate: a deterministic model, scored without dropout."""
    inputs, row = draw_sequences(3, 5, 6, 4), 2
    statistics, mask = sampled(small_model, small_adapter, inputs, key=6)
    tokens, prompt, length = (np.asarray(part[row]) for part in inputs)
    for sample, key in enumerate(jax.random.split(jax.random.key(6), SAMPLES)):
        dropout = Dropout(row_keys(key, jnp.array([row])), RATE, "tied")
        thinned = {}
        for number, name in enumerate(PROJECTIONS):
            a = np.array(small_adapter.weights["layers"][name]["a"])
            for layer in range(len(a)):
                kept = dropout(jnp.ones((1, 1, a.shape[1])), jnp.asarray(layer * len(PROJECTIONS) + number))
                a[layer] *= np.asarray(kept)[0, 0, :, None]
            thinned[name] = {"a": a, "b": small_adapter.weights["layers"][name]["b"]}
        logits = numpy_logits(small_model, Adapter({"layers": thinned}, small_adapter.scale), tokens[:length])
        for place in range(length - prompt):
            scores = logits[prompt + place - 1]
            want = scores[tokens[prompt + place]] - np.log(np.exp(scores).sum())
            assert mask[row, place]
            np.testing.assert_allclose(statistics.log_prob[sample, row, place], want, atol=2e-5)


@pytest.mark.parametrize(("mode", "wider"), [("tied", 0), ("per_token", 3)])
def test_scores_do_not_depend_on_the_batch_or_its_width(small_model, small_adapter, draw_sequences, mode, wider):
    inputs, index = draw_sequences(4, 5, 6, 4), np.array([10, 11, 12, 13, 14])
    statistics, _ = sampled(small_model, small_adapter, inputs, index=index, mode=mode)
    others = draw_sequences(5, 5, 6, 4)
    mixed = SequenceInputs(*(jnp.concatenate([b[:3], a[2:4][::-1]]) for a, b in zip(inputs, others, strict=True)))
    mixed = mixed._replace(tokens=jnp.pad(mixed.tokens, ((0, 0), (0, wider)), constant_values=5))
    index = [99, 14, 10, 13, 12]
    again, _ = sampled(small_model, small_adapter, mixed, index=index, mode=mode, width=WIDTH + wider)
    for place, row in ((3, 3), (4, 2)):
        for name in FIELDS:
            left, right = (np.asarray(getattr(s, name)) for s in (again, statistics))
            np.testing.assert_allclose(left[..., place, :WIDTH], right[..., row, :], atol=1e-5, err_msg=name)


def test_masks_follow_key_and_index(small_model, small_adapter, draw_sequences):
    inputs = draw_sequences(6, 5, 6, 4)
    same = SequenceInputs(*(jnp.broadcast_to(leaf[:1], leaf.shape) for leaf in inputs))  # five times one row
    statistics, _ = sampled(small_model, small_adapter, same, index=[4, 4, 5, 6, 4])
    log_prob = np.asarray(statistics.log_prob)
    np.testing.assert_allclose(log_prob[:, [1, 4]], log_prob[:, [0, 0]], atol=1e-6)
    assert np.abs(log_prob[:, 2:4] - log_prob[:, :1]).max(axis=-1).min() > 1e-4
    assert np.abs(log_prob[:, 2] - log_prob[:, 3]).max(axis=-1).min() > 1e-4

    again, _ = sampled(small_model, small_adapter, same, index=[4, 4, 5, 6, 4])
    assert_close(again, statistics, rtol=0)
    other, _ = sampled(small_model, small_adapter, same, index=[4, 4, 5, 6, 4], key=1)
    assert np.abs(np.asarray(other.log_prob) - log_prob).max(axis=-1).min() > 1e-4
