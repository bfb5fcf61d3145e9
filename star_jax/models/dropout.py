"""Dropout on the input of LoRA's A: masks that follow keys and places alone, not the batch a row rides in.

Shapes: `B` batch, `T` tokens of a row, `M` tokens of a packing, `D` width of an input.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from star_jax.config import LEAST_DROPOUT, DropoutMode
from star_jax.errors import ConfigError
from star_jax.ops.matmul import DropoutMask
from star_jax.ops.packing import Packing
from star_jax.ops.threefry import threefry

Array = jax.Array

_SITES = {"qkv_proj": 0, "o_proj": 1, "gate_up_proj": 2, "down_proj": 3}
"""What a layer's projections read -> its number, which picks its dropout masks. Projections that read the same share
them, as they share their input."""


def row_keys(key: Array, index: Array) -> Array:
    """One PRNG key a row, `B`, from the row's number `B`, so that it does not depend on the batch."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


@struct.dataclass
class Dropout:
    """Dropout on the input of A, an explicit argument of a forward pass; None in its place switches it off.

    Attributes:
      keys: `B` PRNG keys, one a row, so that a row's masks do not depend on the batch it rides in; a single key, a
        scalar, in mode `shared`.
      rate: probability that an entry is dropped, > 0.
      mode: `shared` draws one mask for all rows, which makes the pass one sample A_k = diag(m_k) A / (1 - rate) of A's
        weights (Gal & Ghahramani 2016, arXiv 1506.02142); `tied` draws one a row, shared by its tokens, a sample of
        the weights for each row (arXiv 1512.05287); `per_token` draws one a token, as PEFT does in training.
    """

    keys: Array
    rate: float = struct.field(pytree_node=False)
    mode: DropoutMode = struct.field(pytree_node=False)

    def __post_init__(self) -> None:
        if self.mode not in ("shared", "tied", "per_token"):
            raise ConfigError(f"dropout mode is {self.mode!r}; choose shared, tied or per_token, or pass None for off")
        if not LEAST_DROPOUT <= self.rate <= 1 - LEAST_DROPOUT:
            raise ConfigError(
                f"dropout was asked for at rate {self.rate}; set lora.dropout between {LEAST_DROPOUT} and "
                f"{1 - LEAST_DROPOUT}, or switch it off"
            )


def draw_mask(
    dropout: Dropout | None, layer: Array | int, projection: str, x: Array, packing: Packing | None = None
) -> DropoutMask | None:
    """The mask of what a projection reads.

    Args:
      dropout: None for off.
      layer: number of the layer.
      projection: its name; a fused one stands for its parts.
      x: `B×T×D`, or `1×M×D` where `packing` says whose tokens these are. A token's mask is the same either way.

    Raises:
      ValueError: there is not one key a row, or not a single one in mode `shared`.
    """
    if dropout is None:
        return None
    _require_keys(dropout, x.shape[0] if packing is None else packing.lengths.shape[0])
    site = layer * len(_SITES) + _SITES[projection]
    below, columns = np.uint32(round((1 - dropout.rate) * 2**32)), jnp.arange(x.shape[-1], dtype=jnp.uint32)

    def words(key: Array) -> Array:
        return jax.random.bits(jax.random.fold_in(key, site), (2,), jnp.uint32)

    def mask(words: Array, token: Array | int) -> Array:
        """`…×D` for words `…×2` and tokens `…`."""
        place = jnp.asarray(token, jnp.uint32)[..., None]
        return threefry((words[..., :1], words[..., 1:]), (place, columns))[0] < below

    if dropout.mode == "shared":
        return DropoutMask(mask(words(dropout.keys), 0), 1 / (1 - dropout.rate))
    rows = jax.vmap(words)(dropout.keys)
    if dropout.mode == "tied":
        entries = mask(rows, 0)
        entries = entries[:, None] if packing is None else entries[packing.rows][None]
    elif packing is None:
        entries = mask(rows[:, None], jnp.arange(x.shape[1]))
    else:
        entries = mask(rows[packing.rows], packing.positions)[None]
    return DropoutMask(entries, 1 / (1 - dropout.rate))


def _require_keys(dropout: Dropout, rows: int) -> None:
    shape = () if dropout.mode == "shared" else (rows,)
    if dropout.keys.shape != shape or not jnp.issubdtype(dropout.keys.dtype, jax.dtypes.prng_key):
        raise ValueError(
            f"dropout in mode {dropout.mode} takes {f'{rows} PRNG keys, one a row' if shape else 'a single PRNG key'}, "
            f"as jax.random.key makes them, and got {dropout.keys.dtype}{list(dropout.keys.shape)}"
        )
