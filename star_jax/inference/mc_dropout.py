"""Monte-Carlo dropout: K stochastic passes as `vmap` over PRNG keys.

Gal & Ghahramani 2016, arXiv 1506.02142. With shared masks, each pass is one sample of the adapter's weights.
"""

from __future__ import annotations

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


def mc_score_responses(
    model: LanguageModel,
    adapter: Adapter,
    inputs: SequenceInputs,
    capacity: int | None = None,
    *,
    key: Array,
    index: Array,
    samples: int,
    rate: float,
    mode: DropoutMode,
) -> tuple[TokenStatistics, Array]:
    """Scores responses under K dropout samples.

    Args:
      model: decoder and frozen weights.
      adapter: the adapter whose input is dropped.
      inputs: prompts and proposed responses, `B` rows.
      capacity: as `hidden_states` takes them.
      key: PRNG key of the scoring pass.
      index: `B` int32, the example each row belongs to; rows of one example share their masks in every mode.
      samples: K.
      rate: dropout probability.
      mode: `shared`, `tied` or `per_token`, as `models.dropout.Dropout` says; not `off`.

    Returns:
      Statistics `K×B×T` and the mask `B×T`.

    Raises:
      ConfigError: `rate` is 0; the K passes would be identical. `mode` is none of the three.
    """
    if rate == 0:
        raise ConfigError(
            f"{samples} Monte-Carlo samples were asked for at dropout 0, where all of them are the same; "
            f"set a dropout above 0 or take one pass"
        )

    def sample(sample_key: Array) -> Array:
        keys = sample_key if mode == "shared" else row_keys(sample_key, index)
        return hidden_states(model, adapter, inputs, Dropout(keys, rate, mode), capacity)

    hidden = jax.vmap(sample)(jax.random.split(key, samples))
    mask = response_mask(inputs)
    return statistics_of(hidden, next_tokens(inputs), mask, output_head(model)), mask
