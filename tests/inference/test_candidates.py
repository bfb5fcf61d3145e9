"""A prompt with all of its candidates as one row gives what a row for each candidate gives."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_models import FAMILIES, random_adapter, random_model

from star_jax.data.batching import Shape, make_batch
from star_jax.data.branches import (
    branched_rows,
    rows_as_examples,
    shared_beginning,
    tree_arrays,
    tree_widths,
    without_beginning,
)
from star_jax.data.tokenization import TokenizedExample
from star_jax.errors import ConfigError
from star_jax.inference.candidates import Noise, TreeInputs, candidate_log_probs, read_beginning
from star_jax.inference.mc_dropout import Sampling, mc_score_responses, sample_keys
from star_jax.inference.scoring import score_responses
from star_jax.models.architecture import TransformerConfig
from star_jax.models.merged import merge_adapter
from star_jax.models.sequences import SequenceInputs
from star_jax.ops.attention_branches import SharedKeys

SHAPE = TransformerConfig(
    vocab_size=17,
    hidden_size=16,
    intermediate_size=20,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)
CANDIDATES = ((3, 4, 5), (3, 4, 6), (7,), (3, 4), (8, 9, 1, 2), (3, 10), (7,))
"""Some share their first tokens, one is the beginning of others, and two are the same."""

BEGINNING = (11, 12, 13, 14)
KEY = jax.random.key(5)


def rows_of(beginning=BEGINNING) -> list[TokenizedExample]:
    """Prompts of several lengths with every candidate behind each; the second prompt's are spelt otherwise."""
    rng = np.random.default_rng(0)
    rows = []
    for number, length in enumerate((3, 1, 6, 2)):
        prompt = np.asarray([*beginning, *rng.integers(1, 17, length)], np.int32)
        for candidate in CANDIDATES:
            spelt = (5, *candidate) if number == 1 else candidate
            rows.append(TokenizedExample(np.concatenate([prompt, np.asarray(spelt, np.int32)]), len(prompt)))
    return rows


def plain(model, adapter, rows, sampling=None) -> np.ndarray:
    """`K×B×C` from a row for each candidate."""
    numbers = np.arange(len(rows)) // len(CANDIDATES)
    whole = Shape(len(rows), max(len(row.tokens) for row in rows), sum(len(row.tokens) for row in rows))
    batch = make_batch(rows, np.arange(len(rows)), (whole,))
    inputs = SequenceInputs(batch.tokens, batch.prompt_lengths, batch.lengths)
    if sampling is None:
        found, mask = jax.jit(score_responses)(model, adapter, inputs)
    else:
        keys = sample_keys(KEY, jnp.asarray(numbers[batch.index]), sampling)
        score = jax.jit(mc_score_responses, static_argnames="sampling")
        found, mask = score(model, adapter, inputs, keys, sampling=sampling)
    sums = np.where(mask, found.log_prob, 0).sum(axis=-1)
    return sums[:, np.argsort(batch.index)].reshape(len(sums), -1, len(CANDIDATES))


def branched(model, adapter, rows, sampling=None, *, reuse=True) -> np.ndarray:
    """The same from one row a prompt, in a batch with room to spare."""
    whole = branched_rows(rows, len(CANDIDATES))
    assert whole is not None
    beginning = shared_beginning(whole)
    reuse = reuse and len(beginning) > 0
    behind = [without_beginning(row, len(beginning)) for row in whole] if reuse else whole
    sizes = [len(row.tokens) for row in behind]
    shape = Shape(len(behind) + 1, max(sizes) + 2, sum(sizes) + 3)
    batch = make_batch(rows_as_examples(behind), np.arange(len(behind)), (shape,))
    inputs = TreeInputs(batch.tokens, batch.lengths, tree_arrays(behind, batch, tree_widths(behind)))
    keys = None if sampling is None else sample_keys(KEY, jnp.asarray(batch.index), sampling)

    @jax.jit
    def run(model, adapter, inputs, keys):
        noise = None if sampling is None else Noise(keys, sampling)
        shared = read_beginning(model, adapter, beginning, noise) if reuse else None
        return candidate_log_probs(model, adapter, inputs, shape.capacity, shared=shared, noise=noise)

    found = np.asarray(run(model, adapter, inputs, keys))
    assert np.isfinite(found).all()
    real = np.flatnonzero(batch.row_mask)
    return found[:, real[np.argsort(batch.index[real])]]


@pytest.mark.parametrize("family", FAMILIES)
def test_one_row_a_prompt_gives_what_one_a_candidate_gives(family):
    """With the adapter beside the weights and whole rows, and in them, behind a beginning that is read once."""
    config = dataclasses.replace(SHAPE, **FAMILIES[family])
    model = random_model(np.random.default_rng(1), config)
    adapter = random_adapter(np.random.default_rng(2), config)
    want = plain(model, adapter, rows_of())
    found = branched(model, adapter, rows_of(), reuse=False)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)
    found = branched(*merge_adapter(model, adapter), rows_of())
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("family", "mode"), [("gemma", "shared"), ("llama", "tied"), ("llama", "per_token")])
def test_dropout_has_the_masks_of_a_row_for_each_candidate(family, mode):
    config = dataclasses.replace(SHAPE, **FAMILIES[family])
    model = random_model(np.random.default_rng(1), config)
    adapter = random_adapter(np.random.default_rng(2), config)
    sampling = Sampling(3, 0.3, mode)
    want = plain(model, adapter, rows_of(), sampling)
    assert np.abs(want[0] - want[1]).max() > 1e-2  # The samples differ, or nothing would be compared.
    found = branched(model, adapter, rows_of(), sampling, reuse=mode == "shared")
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)


def test_a_beginning_is_read_once_only_where_it_is_the_same_for_all():
    model = random_model(np.random.default_rng(1), SHAPE)
    adapter = random_adapter(np.random.default_rng(2), SHAPE)
    sampling = Sampling(2, 0.3, "tied")
    noise = Noise(sample_keys(KEY, jnp.arange(1), sampling), sampling)
    with pytest.raises(ValueError, match="masks differ between rows"):
        read_beginning(model, adapter, np.asarray(BEGINNING), noise)
    with pytest.raises(ValueError, match="packed rows that branch"):
        model.decoder.apply(
            {"params": model.params}, jnp.ones((1, 3), jnp.int32), shared=SharedKeys(*jnp.zeros((2, 2)))
        )


def test_samples_that_would_all_be_the_same_are_refused():
    model = random_model(np.random.default_rng(1), SHAPE)
    adapter = random_adapter(np.random.default_rng(2), SHAPE)
    with pytest.raises(ConfigError, match="at dropout 0"):
        branched(model, adapter, rows_of(), Sampling(2, 0.0, "tied"), reuse=False)
