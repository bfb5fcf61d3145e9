"""Prompts that say what a model is to be good at: strategies look for examples that are like them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from star_jax.data.loading import load_prompts
from star_jax.data.tasks.task import Task
from star_jax.data.tokenization import Encoder
from star_jax.errors import DataError


def load_targets(encoder: Encoder, task: Task, source: str | None) -> Sequence[np.ndarray]:
    """Tokens of each target prompt.

    Args:
      encoder: tokenizer, format and limits.
      task: what a row is.
      source: `acquisition.target_file`, rows in the pool's format, whose responses are not looked at; None for none.

    Raises:
      DataError: a row cannot be used, a prompt is over the limit, or there is no row.
    """
    if source is None:
        return ()
    prompts = load_prompts(task, source, "train")
    if not prompts:
        raise DataError(f"acquisition.target_file is {source}, which has no rows; give it at least one prompt")
    return encoder.prompts(prompts)
