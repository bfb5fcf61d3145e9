"""Monte-Carlo dropout: K stochastic passes as `vmap` over PRNG keys.

Gal & Ghahramani 2016, arXiv 1506.02142. With shared masks, each pass is one sample of the adapter's weights.
"""

from __future__ import annotations

from typing import NamedTuple

import jax

from star_jax.config import DropoutMode
from star_jax.errors import ConfigError
from star_jax.inference.scoring import TokenStatistics, statistics_of
from star_jax.models.dropout import Dropout, row_keys
from star_jax.models.lm_head import output_head
from star_jax.models.lora import Adapter
from star_jax.models.sequences import SequenceInputs, hidden_states, next_tokens, response_mask
from star_jax.models.transformer import LanguageModel

Array = jax.Array


class Sampling(NamedTuple):
    """Monte-Carlo dropout of a scoring pass.

    Attributes:
      samples: K.
      rate: dropout probability.
      mode: masks shared by all rows of a sample, tied to a row, or one a token, as `models.dropout.Dropout` says.
    """

    samples: int
    rate: float
    mode: DropoutMode


def sample_keys(key: Array, index: Array, sampling: Sampling) -> Array:
    """PRNG keys of the masks: `K`, or `K×B` where each row has its own, from the number `B` of the example it is of."""
    keys = jax.random.split(key, sampling.samples)
    return keys if sampling.mode == "shared" else jax.vmap(row_keys, in_axes=(0, None))(keys, index)


def check_sampling(sampling: Sampling) -> None:
    """Refuses samples that would all be the same.

    Raises:
      ConfigError: the rate is 0.
    """
    if sampling.rate == 0:
        raise ConfigError(
            f"{sampling.samples} Monte-Carlo samples were asked for at dropout 0, where all of them are the same; "
            f"set a dropout above 0 or take one pass"
        )


def mc_score_responses(
    model: LanguageModel,
    adapter: Adapter,
    inputs: SequenceInputs,
    keys: Array,
    sampling: Sampling,
    capacity: int | None = None,
) -> tuple[TokenStatistics, Array]:
    """Scores responses under K dropout samples.

    Args:
      model: decoder and frozen weights.
      adapter: the adapter whose input is dropped.
      inputs: prompts and proposed responses, `B` rows.
      keys: from `sample_keys`; rows of one example share their masks in every mode.
      sampling: how many samples, and their dropout; not in mode `off`.
      capacity: as `hidden_states` takes it.

    Returns:
      Statistics `K×B×T` and the mask `B×T`.

    Raises:
      ConfigError: the rate is 0; the K passes would be identical. The mode is none of the three.
    """
    check_sampling(sampling)

    def sample(own: Array) -> Array:
        return hidden_states(model, adapter, inputs, Dropout(own, sampling.rate, sampling.mode), capacity)

    hidden = jax.vmap(sample)(keys)
    mask = response_mask(inputs)
    return statistics_of(hidden, next_tokens(inputs), mask, output_head(model)), mask
