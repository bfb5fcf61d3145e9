"""Log-probabilities of a closed set of answers from one row a prompt, in which the prompt is read once.

A row is a prompt with its candidates as a tree (`data.branches`). What all prompts of a pool begin with may be read
beforehand, once (`read_beginning`).

Shapes: `K` MC samples, `B` rows, `T` places of a row, `C` candidates, `E` predicted tokens of a tree, `D` width,
`L` layers, `G` key-value heads, `P` tokens of the beginning, `d` head width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.data.branches import TreeArrays
from star_jax.inference.mc_dropout import Samples
from star_jax.models.dropout import Dropout
from star_jax.models.lm_head import OutputHead, at_positions, capped, chunk_size, logits, output_head
from star_jax.models.lora import Adapter, with_adapter
from star_jax.models.transformer import LanguageModel
from star_jax.ops.attention_branches import SharedKeys
from star_jax.ops.packing import Branches, make_packing

Array = jax.Array


class TreeInputs(NamedTuple):
    """Rows that branch.

    Attributes:
      tokens: `B×T` int32, right-padded.
      lengths: `B` int32; 0 for rows that only fill the batch up.
      trees: how they branch, and what is predicted where.
    """

    tokens: Array | np.ndarray
    lengths: Array | np.ndarray
    trees: TreeArrays


class Noise(NamedTuple):
    """What makes a pass stochastic.

    Attributes:
      keys: `K`, or `K×B`, from `sample_keys`.
      sampling: how many samples, and what differs between them.
    """

    keys: Array
    sampling: Samples


def read_beginning(
    model: LanguageModel, adapter: Adapter | None, tokens: Array | np.ndarray, noise: Noise | None
) -> SharedKeys:
    """Keys and values `L×G×P×d` of the tokens `P` that all rows begin with, or `K×L×G×P×d` of samples.

    Those of a sample depend on its masks, which must be those of all rows.

    Raises:
      ValueError: rows have masks of their own.
    """

    def read(adapter: Adapter | None, dropout: Dropout | None) -> SharedKeys:
        row = jnp.asarray(tokens)[None]
        kept: Any = model.decoder.apply(with_adapter(model.params, adapter), row, dropout)[1]
        return SharedKeys(kept.keys[:, 0], kept.values[:, 0])

    if noise is None:
        return read(adapter, None)
    if not noise.sampling.alike:
        raise ValueError("masks differ between rows, and so does what they begin with")
    assert adapter is not None
    found: SharedKeys = noise.sampling.over(read, adapter, noise.keys)
    return found


def candidate_log_probs(
    model: LanguageModel,
    adapter: Adapter | None,
    inputs: TreeInputs,
    capacity: int,
    *,
    shared: SharedKeys | None = None,
    noise: Noise | None = None,
) -> Array:
    """Log-probability of each candidate behind its prompt, `K×B×C` float32, nats.

    Args:
      model: decoder and frozen weights.
      adapter: None for the base model.
      inputs: prompts with their candidates.
      capacity: tokens that are computed, at least those of all rows together.
      shared: from `read_beginning` with the same noise, where the rows go on behind it; None where they are whole.
      noise: of the samples; None for one deterministic pass, K = 1.

    Raises:
      ConfigError: dropout at rate 0; the K passes would be identical.
    """
    trees: Any = jax.tree.map(jnp.asarray, inputs.trees)
    tokens, lengths = jnp.asarray(inputs.tokens), jnp.asarray(inputs.lengths)
    packing = make_packing(lengths, tokens.shape[1], capacity, Branches(trees.positions, trees.ends))

    def hidden_states(adapter: Adapter | None, dropout: Dropout | None, shared: SharedKeys | None) -> Array:
        variables = with_adapter(model.params, adapter)
        hidden, _ = model.decoder.apply(variables, tokens, dropout, packing, shared)
        return hidden

    if noise is None:
        hidden = hidden_states(adapter, None, shared)[None]
    else:
        assert adapter is not None
        hidden = noise.sampling.over(hidden_states, adapter, noise.keys, shared)
    return _along_paths(_edge_log_probs(hidden, trees, lengths, output_head(model)), trees.paths)


def _edge_log_probs(hidden: Array, trees: Any, lengths: Array, head: OutputHead) -> Array:
    """Log-probability `K×B×E` of each token that `trees` predict, from hidden states `K×B×T×D`.

    The logits of a place exist for a chunk of places at a time, and are summed there; those of the tokens that are
    predicted are taken again, which is one product each.
    """
    samples, rows, width = hidden.shape[:3]
    here = jnp.arange(rows)[:, None]
    # Whatever fills up a row's tokens counts for place 0, which is read in any case.
    predicts = jnp.zeros((rows, width), bool).at[here, trees.predictors].set(True) & (lengths > 0)[:, None]

    def total(states: Array) -> Array:
        scores = logits(states.reshape(-1, states.shape[-1]), head)
        return jax.nn.logsumexp(scores, axis=-1).reshape(states.shape[:2])

    totals = at_positions(total, predicts, jnp.moveaxis(hidden, 0, 2), chunk=chunk_size(head, samples))
    states = hidden[:, here, trees.predictors]
    chosen = jnp.einsum("kbed,bed->kbe", states, head.weight[trees.targets], preferred_element_type=jnp.float32)
    return capped(chosen, head) - jnp.moveaxis(totals, 2, 0)[:, here, trees.predictors]


def _along_paths(values: Array, paths: Array) -> Array:
    """Sums `K×B×C` of values `K×B×E` along paths `B×C×D`, in which E adds nothing."""
    padded = jnp.pad(values, ((0, 0), (0, 0), (0, 1)))
    return jnp.sum(padded[:, jnp.arange(paths.shape[0])[:, None, None], paths], axis=-1)
