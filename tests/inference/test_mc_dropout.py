"""Monte-Carlo dropout: that the passes differ, by how much they may, and what they must not depend on."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import PROJECTIONS

from star_jax.errors import ConfigError
from star_jax.inference.mc_dropout import Sampling, mc_score_responses, sample_keys
from star_jax.inference.scoring import TokenStatistics, score_responses, statistics_of
from star_jax.models.dropout import Dropout, draw_mask, row_keys
from star_jax.models.lm_head import output_head
from star_jax.models.lora import Adapter
from star_jax.models.sequences import SequenceInputs, hidden_states, next_tokens, response_mask

FIELDS = TokenStatistics._fields
SAMPLES, RATE, WIDTH = 3, 0.3, 10
MODES = ("shared", "tied", "per_token")
READ_BY = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv_proj"),
    **dict.fromkeys(("gate_proj", "up_proj"), "gate_up_proj"),
    **{name: name for name in ("o_proj", "down_proj")},
}
"""Projection -> the name under which the mask of its input is drawn."""

mc_score = jax.jit(mc_score_responses, static_argnames=("capacity", "sampling"))
score = jax.jit(score_responses)


def sampled(model, adapter, inputs, *, key: int = 0, index=None, mode: str = "tied", capacity: int | None = None):
    index = np.arange(len(inputs.lengths)) if index is None else np.asarray(index)
    sampling = Sampling(SAMPLES, RATE, mode)
    keys = sample_keys(jax.random.key(key), index, sampling)
    return mc_score(model, adapter, inputs, keys, sampling=sampling, capacity=capacity)


def dropout_of(key, index, mode: str) -> Dropout:
    """What one sample, drawn from `key`, is given."""
    return Dropout(key if mode == "shared" else row_keys(key, jnp.asarray(index)), RATE, mode)


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
            dropout = dropout_of(key, range(5), "tied") if on else None
            # Added to what a sample returns, so that each one is computed for its own key.
            return hidden_states(small_model, small_adapter, inputs, dropout) + 0 * jax.random.uniform(key)

        return jax.vmap(sample)(keys)

    keys = jax.random.split(jax.random.key(0), SAMPLES)
    masked, plain = (np.asarray(hidden(keys, on=on)) for on in (True, False))
    assert (np.ptp(masked, axis=0) > 0).any()
    assert (np.ptp(plain, axis=0) == 0).all()
    passes = [score(small_model, small_adapter, inputs)[0] for _ in range(SAMPLES)]
    for name in FIELDS:
        assert (np.ptp([getattr(one, name) for one in passes], axis=0) == 0).all(), name


def test_rate_0_is_refused(small_model, small_adapter, draw_sequences):
    keys, sampling = jax.random.split(jax.random.key(0), (3, 5)), Sampling(3, 0.0, "tied")
    with pytest.raises(ConfigError, match=r"3 Monte-Carlo samples .* at dropout 0.* set a dropout above 0"):
        mc_score(small_model, small_adapter, draw_sequences(1, 5, 6, 4), keys, sampling=sampling)


@pytest.mark.parametrize("mode", MODES)
def test_samples_are_passes_with_a_key_each(small_model, small_adapter, draw_sequences, mode):
    inputs, index = draw_sequences(2, 5, 6, 4), np.array([7, 0, 3, 3, 11])

    @jax.jit
    def one_pass(key):
        hidden = hidden_states(small_model, small_adapter, inputs, dropout_of(key, index, mode))[None]
        return statistics_of(hidden, next_tokens(inputs), response_mask(inputs), output_head(small_model))

    together, _ = sampled(small_model, small_adapter, inputs, key=5, index=index, mode=mode)
    passes = [one_pass(key) for key in jax.random.split(jax.random.key(5), SAMPLES)]
    for name in FIELDS[:4]:
        looped = np.concatenate([getattr(one, name) for one in passes])
        np.testing.assert_allclose(getattr(together, name), looped, atol=2e-5, err_msg=name)


@partial(jax.jit, static_argnames=("site", "shape"))
def of_ones(dropout: Dropout, layer: int, site: str, shape: tuple[int, ...]) -> jax.Array:
    """What the masks of an input leave of ones, scaled."""
    return draw_mask(dropout, layer, site, jnp.ones(shape)).of(jnp.ones(shape))


def thinned(adapter, dropout, row: int, rows: int) -> Adapter:
    """The adapter whose A has lost what a row's masks drop, and is scaled up by 1 / (1 − rate)."""
    factors = {}
    for name in PROJECTIONS:
        a = np.array(adapter.weights["layers"][name]["a"])
        for layer in range(len(a)):
            a[layer] *= np.asarray(of_ones(dropout, layer, READ_BY[name], (rows, 1, a.shape[1])))[row, 0, :, None]
        factors[name] = {"a": a, "b": adapter.weights["layers"][name]["b"]}
    return Adapter({"layers": factors}, adapter.scale)


@pytest.mark.parametrize("mode", ["shared", "tied"])
def test_a_sample_without_masks_of_its_own_tokens_is_one_model(
    small_model, small_adapter, draw_sequences, numpy_logits, mode
):
    """A deterministic model, scored without dropout: the same for all rows where these share their masks."""
    inputs, rows = draw_sequences(3, 5, 6, 4), (2, 0)
    statistics, mask = sampled(small_model, small_adapter, inputs, key=6, mode=mode)
    for sample, key in enumerate(jax.random.split(jax.random.key(6), SAMPLES)):
        adapters = [thinned(small_adapter, dropout_of(key, range(5), mode), row, 5) for row in rows]
        if mode == "shared":
            chex.assert_trees_all_equal(*adapters)
        for row, adapter in zip(rows, adapters, strict=True):
            tokens, prompt, length = (part[row] for part in inputs)
            logits = numpy_logits(small_model, adapter, tokens[:length])
            for place in range(prompt - 1, length - 1):
                want = logits[place, tokens[place + 1]] - np.log(np.exp(logits[place]).sum())
                assert mask[row, place]
                np.testing.assert_allclose(statistics.log_prob[sample, row, place], want, atol=2e-5)


@pytest.mark.parametrize(
    ("mode", "wider", "capacity"),
    [("tied", 0, None), ("per_token", 3, None), ("shared", 0, 36), ("per_token", 3, 36)],
)
def test_scores_do_not_depend_on_the_batch_or_its_width(
    small_model, small_adapter, draw_sequences, mode, wider, capacity
):
    """Nor on whether the tokens stand in a line, with room for more than there are."""
    inputs, index = draw_sequences(4, 5, 6, 4), np.array([10, 11, 12, 13, 14])
    statistics, _ = sampled(small_model, small_adapter, inputs, index=index, mode=mode)
    others = draw_sequences(5, 5, 6, 4)
    mixed = SequenceInputs(*(np.concatenate([b[:3], a[2:4][::-1]]) for a, b in zip(inputs, others, strict=True)))
    mixed = mixed._replace(tokens=np.pad(mixed.tokens, ((0, 0), (0, wider)), constant_values=5))
    assert mixed.lengths.sum() < 36
    again, _ = sampled(small_model, small_adapter, mixed, index=[99, 14, 10, 13, 12], mode=mode, capacity=capacity)
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


def test_shared_masks_follow_the_key_alone(small_model, small_adapter, draw_sequences):
    inputs = draw_sequences(6, 5, 6, 4)
    same = SequenceInputs(*(np.broadcast_to(leaf[:1], leaf.shape) for leaf in inputs))  # five times one row
    statistics, _ = sampled(small_model, small_adapter, same, mode="shared")
    log_prob = np.asarray(statistics.log_prob)
    np.testing.assert_allclose(log_prob, np.broadcast_to(log_prob[:, :1], log_prob.shape), atol=1e-6)
    other, _ = sampled(small_model, small_adapter, same, index=[9, 8, 7, 6, 5], mode="shared")
    assert_close(other, statistics, rtol=0)
    again, _ = sampled(small_model, small_adapter, same, mode="shared", key=1)
    assert np.abs(np.asarray(again.log_prob) - log_prob).max(axis=-1).min() > 1e-4
