"""Prompts with responses behind them, and the hidden states that predict the responses.

Rows are right-padded. What belongs to a response token stands at the position that predicts it, one before its own.

Shapes: `B` batch, `T` tokens, `D` model width.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.models.dropout import Dropout
from star_jax.models.lora import Adapter, with_adapter
from star_jax.models.transformer import LanguageModel
from star_jax.ops.packing import make_packing

Array = jax.Array


class SequenceInputs(NamedTuple):
    """Prompts with a proposed response behind each, right-padded.

    Attributes:
      tokens: `B×T` int32.
      prompt_lengths: `B` int32.
      lengths: `B` int32, prompt and response together.
    """

    tokens: Array | np.ndarray
    prompt_lengths: Array | np.ndarray
    lengths: Array | np.ndarray


def response_mask(inputs: SequenceInputs) -> Array:
    """Mask `B×T` of the positions that predict a response token: those one before it."""
    slots = jnp.arange(inputs.tokens.shape[1])[None]
    return (slots >= inputs.prompt_lengths[:, None] - 1) & (slots < inputs.lengths[:, None] - 1)


def next_tokens(inputs: SequenceInputs) -> Array:
    """The token after each position, `B×T`; 0 after the last."""
    return jnp.pad(inputs.tokens[:, 1:], ((0, 0), (0, 1)))


def hidden_states(
    model: LanguageModel,
    adapter: Adapter | None,
    inputs: SequenceInputs,
    dropout: Dropout | None,
    capacity: int | None = None,
) -> Array:
    """Hidden states `B×T×D` of one pass.

    Args:
      model: decoder and frozen weights.
      adapter: None for the base model.
      inputs: prompts and responses.
      dropout: masks for the adapter's input; None for off.
      capacity: tokens that are computed, at least those of all rows together; None for B·T, padding and all.
    """
    lengths, width = jnp.asarray(inputs.lengths), inputs.tokens.shape[1]
    packing = None if capacity is None else make_packing(lengths, width, capacity)
    hidden, _ = model.decoder.apply(with_adapter(model.params, adapter), jnp.asarray(inputs.tokens), dropout, packing)
    return hidden
