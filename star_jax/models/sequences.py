"""Prompts with responses behind them, and the hidden states that predict the responses.

Rows are right-padded. Only response positions go on to the output projection.

Shapes: `B` batch, `P` prompt tokens, `T` tokens, `R` response tokens, `D` model width.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from star_jax.models.lora import Adapter, Dropout, with_adapter
from star_jax.models.transformer import LanguageModel, positions_of

Array = jax.Array


class SequenceInputs(NamedTuple):
    """Prompts with a proposed response behind each, right-padded.

    Attributes:
      tokens: `B×T` int32.
      prompt_lengths: `B` int32.
      lengths: `B` int32, prompt and response together.
    """

    tokens: Array
    prompt_lengths: Array
    lengths: Array


def sequence_inputs(tokens: ArrayLike, prompt_lengths: ArrayLike, lengths: ArrayLike) -> SequenceInputs:
    """Moves a batch of the host to the device."""
    return SequenceInputs(jnp.asarray(tokens), jnp.asarray(prompt_lengths), jnp.asarray(lengths))


def append_responses(
    prompts: Array, prompt_lengths: Array, responses: Array, response_lengths: Array
) -> SequenceInputs:
    """Writes responses `B×R` right behind prompts `B×P`, giving rows of P + R tokens."""
    width = prompts.shape[1] + responses.shape[1]
    slots = jnp.arange(width)[None]
    offset = jnp.clip(slots - prompt_lengths[:, None], 0, responses.shape[1] - 1)
    behind = jnp.take_along_axis(responses, offset, axis=1)
    front = jnp.pad(prompts, ((0, 0), (0, responses.shape[1])))
    lengths = prompt_lengths + response_lengths
    tokens = jnp.where(slots < prompt_lengths[:, None], front, behind)
    return SequenceInputs(jnp.where(slots < lengths[:, None], tokens, 0), prompt_lengths, lengths)


def response_mask(inputs: SequenceInputs, width: int) -> Array:
    """Mask `B×R` of the response tokens; R = `width`."""
    return jnp.arange(width)[None] < (inputs.lengths - inputs.prompt_lengths)[:, None]


def response_targets(inputs: SequenceInputs, width: int) -> Array:
    """The first `width` response tokens `B×R`; what lies past a row's end is for the mask to hide."""
    places = _places(inputs.prompt_lengths, width, inputs.tokens.shape[1])
    return jnp.take_along_axis(inputs.tokens, places, axis=1)


def response_hidden(
    model: LanguageModel, adapter: Adapter | None, inputs: SequenceInputs, width: int, dropout: Dropout | None
) -> Array:
    """Hidden states `B×R×D` of one pass, at the positions one before each response token, which predict them.

    Args:
      model: decoder and frozen weights.
      adapter: None for the base model.
      inputs: prompts and responses.
      width: R, at least the longest response.
      dropout: masks for the adapter's input; None for off.
    """
    total = inputs.tokens.shape[1]
    hidden, _ = model.decoder.apply(
        with_adapter(model.params, adapter), inputs.tokens, positions_of(inputs.lengths, total), dropout=dropout
    )
    return jnp.take_along_axis(hidden, _places(inputs.prompt_lengths - 1, width, total)[..., None], axis=1)


def _places(start: Array, width: int, total: int) -> Array:
    return jnp.clip(start[:, None] + jnp.arange(width)[None], 0, total - 1)
