"""K stochastic passes as one `vmap`: Monte-Carlo dropout over PRNG keys, or over sets of an adapter's weights.

Dropout: Gal & Ghahramani 2016, arXiv 1506.02142. With shared masks, each pass is one sample of the adapter's weights.
Weights that are drawn from another posterior are a sample as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from star_jax.config import DropoutMode
from star_jax.errors import ConfigError
from star_jax.inference.scoring import TokenStatistics, statistics_of
from star_jax.models.dropout import Dropout, row_keys
from star_jax.models.lm_head import output_head
from star_jax.models.lora import Adapter, Factors
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

    @property
    def alike(self) -> bool:
        """Whether a sample is the same model for all rows."""
        return self.mode == "shared"

    def over(self, run: Pass, adapter: Adapter, keys: Array, *mapped: Any) -> Any:
        """The K results of `run`, stacked: the adapter with one sample's masks after the other's.

        Args:
          run: takes adapter, dropout and what is mapped.
          adapter: whose input is dropped.
          keys: from `sample_keys`.
          mapped: arrays `K×…`, of which a sample gets its own.

        Raises:
          ConfigError: the rate is 0; the K passes would be identical. The mode is none of the three.
        """
        check_sampling(self)

        def sample(own: Array, *rest: Any) -> Any:
            return run(adapter, Dropout(own, self.rate, self.mode), *rest)

        return jax.vmap(sample)(keys, *mapped)


class DrawnWeights(NamedTuple):
    """A scoring pass by K adapters: their factors have an axis K in front, their scale is one.

    Attributes:
      samples: K.
    """

    samples: int

    @property
    def alike(self) -> bool:
        """As of `Sampling`."""
        return True

    def over(self, run: Pass, adapter: Adapter, keys: Array, *mapped: Any) -> Any:
        """As of `Sampling`: one adapter after the other, without dropout; keys are not used."""

        def sample(weights: Factors, *rest: Any) -> Any:
            return run(Adapter(weights, adapter.scale), None, *rest)

        return jax.vmap(sample)(adapter.weights, *mapped)


Pass = Callable[..., Any]
"""(adapter, dropout or None, …) -> pytree."""

Samples = Sampling | DrawnWeights
"""How the passes of a program differ; static."""


def sample_keys(key: Array, index: Array, sampling: Samples) -> Array:
    """PRNG keys of the masks: `K`, or `K×B` where each row has its own, from the number `B` of the example it is of."""
    keys = jax.random.split(key, sampling.samples)
    return keys if sampling.alike else jax.vmap(row_keys, in_axes=(0, None))(keys, index)


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
    sampling: Samples,
    capacity: int | None = None,
) -> tuple[TokenStatistics, Array]:
    """Scores responses under K samples.

    Args:
      model: decoder and frozen weights.
      adapter: the adapter whose input is dropped, or K of them.
      inputs: prompts and proposed responses, `B` rows.
      keys: from `sample_keys`; rows of one example share their masks in every mode.
      sampling: how many samples, and what differs between them.
      capacity: as `hidden_states` takes it.

    Returns:
      Statistics `K×B×T` and the mask `B×T`.

    Raises:
      ConfigError: the rate is 0; the K passes would be identical. The mode is none of the three.
    """

    def sample(adapter: Adapter, dropout: Dropout | None) -> Array:
        return hidden_states(model, adapter, inputs, dropout, capacity)

    hidden = sampling.over(sample, adapter, keys)
    mask = response_mask(inputs)
    return statistics_of(hidden, next_tokens(inputs), mask, output_head(model)), mask
