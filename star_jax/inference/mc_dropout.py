"""Monte-Carlo dropout: K stochastic passes as `vmap` over PRNG keys.

Gal & Ghahramani 2016, arXiv 1506.02142. With tied masks, each pass is one sample of the adapter's weights.
"""

from __future__ import annotations

import jax

from star_jax.config import ConfigError
from star_jax.inference.scoring import TokenStatistics, statistics_of
from star_jax.models.head import output_head
from star_jax.models.lora import Adapter, Dropout, row_keys
from star_jax.models.sequences import SequenceInputs, response_hidden, response_mask, response_targets
from star_jax.models.transformer import LanguageModel

Array = jax.Array


def mc_score_responses(
    model: LanguageModel,
    adapter: Adapter,
    inputs: SequenceInputs,
    width: int,
    *,
    key: Array,
    index: Array,
    samples: int,
    rate: float,
    mode: str,
) -> tuple[TokenStatistics, Array]:
    """Scores responses under K dropout samples.

    Args:
      model: decoder and frozen weights.
      adapter: the adapter whose input is dropped.
      inputs: prompts and proposed responses, `B` rows.
      width: R, at least the longest response.
      key: PRNG key of the scoring pass.
      index: `B` int32, the example each row belongs to; rows of one example share their masks.
      samples: K.
      rate: dropout probability.
      mode: `tied` or `per_token`.

    Returns:
      Statistics `K×B×R` and the mask `B×R`.

    Raises:
      ConfigError: `rate` is 0; the K passes would be identical.
    """
    if rate == 0:
        raise ConfigError(
            f"{samples} Monte-Carlo samples were asked for at dropout 0, where all of them are the same; "
            f"set a dropout above 0 or take one pass"
        )

    def sample(sample_key: Array) -> Array:
        dropout = Dropout(row_keys(sample_key, index), rate, mode)
        return response_hidden(model, adapter, inputs, width, dropout)

    hidden = jax.vmap(sample)(jax.random.split(key, samples))
    mask, targets = response_mask(inputs, width), response_targets(inputs, width)
    return statistics_of(hidden, targets, mask, output_head(model)), mask
