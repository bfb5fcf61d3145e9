"""What differs between families, as data: `Architecture` for the parts a block has, `TransformerConfig` for numbers.

Which family has which is in `checkpoints.hf_config`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from star_jax.errors import ConfigError
from star_jax.models.rotary import Rope


@dataclass(frozen=True)
class Architecture:
    """The parts of a block.

    Attributes:
      norms: those a block has, of `pre_attention_norm`, `post_attention_norm`, `pre_mlp_norm`, `post_mlp_norm`;
        a post-norm is applied to what a sub-layer adds to the residual stream.
      qk_norm: norm of queries and keys before the rotation: each head by itself, or all heads together.
      norm_offset: added to a norm's weight before it multiplies.
      biases: projections that add a bias.
      fused: query, key and value are one projection, and so are gate and up.
      scaled_embedding: embeddings are multiplied by √D.
      fused_mlp: gate and up are one projection, whatever query, key and value are.
      interleaved: a rotation turns neighbouring entries of a head, not those of its two halves.
      norm_names: of the norms, in a layer of a checkpoint; empty for those of the first family with the same norms.
    """

    norms: tuple[str, ...] = ("pre_attention_norm", "pre_mlp_norm")
    qk_norm: Literal["none", "head", "width"] = "none"
    norm_offset: float = 0.0
    biases: tuple[str, ...] = ()
    fused: bool = False
    scaled_embedding: bool = False
    fused_mlp: bool = False
    interleaved: bool = False
    norm_names: tuple[str, ...] = ()

    @property
    def fused_gate(self) -> bool:
        """Whether gate and up are one projection."""
        return self.fused or self.fused_mlp


@dataclass(frozen=True)
class Experts:
    """A mixture of experts, in place of the one MLP of a block. They get no adapter, nor does their router.

    Attributes:
      count: experts of a layer.
      per_token: that a token goes through.
      intermediate_size: inner width of each.
      normalised: whether the weights of a token's experts add up to 1.
    """

    count: int
    per_token: int
    intermediate_size: int
    normalised: bool = True


@dataclass(frozen=True)
class TransformerConfig:
    """Shape and constants of a decoder; names are those of a Hugging Face `config.json` where it has them.

    Attributes:
      windows: for each layer, the most recent positions a token sees, or None for all; empty where no layer has one.
      ropes: the kinds of rotary positions there are.
      layer_ropes: for each layer, its place in `ropes`; empty where there is one kind.
      attention_scale: multiplies query · key; None for 1 / √d.
      attention_softcap, logit_softcap: c in c · tanh(x / c) of attention scores and of logits; None for none.
      embedding_multiplier, residual_multiplier: multiply embeddings, and what a sub-layer adds to the stream.
      logit_divisor: divides the logits.
      experts: in place of the MLP of every layer; None for none.
      module_root: path of the decoder among the modules of Transformers' model.
      dtype: of weights and products.

    Raises:
      ConfigError: a window is below 1.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 2048
    hidden_act: str = "silu"
    windows: tuple[int | None, ...] = ()
    ropes: tuple[Rope, ...] = (Rope(),)
    layer_ropes: tuple[int, ...] = ()
    attention_scale: float | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    logit_divisor: float = 1.0
    experts: Experts | None = None
    module_root: str = "model"
    architecture: Architecture = Architecture()
    dtype: str = "float32"

    def __post_init__(self) -> None:
        short = [window for window in self.windows if window is not None and window < 1]
        if short:
            raise ConfigError(f"sliding_window is {short[0]}; a token sees at least 1 position, its own")
