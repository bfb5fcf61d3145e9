"""What it costs to train without a token that ends a response, as the released code does: for `--plugins`."""

from typing import Any

from star_jax.data.tokenization import Encoder

_init = Encoder.__init__


def _without_end(self: Encoder, *arguments: Any, **options: Any) -> None:
    _init(self, *arguments, **options)
    self.append_eos = False


Encoder.__init__ = _without_end  # type: ignore[method-assign]
