"""What it costs to train without a token that ends a response, as the released code does: a task for `--plugins`."""

import dataclasses
from typing import Any

import star_jax as sj
from star_jax.data.tasks import get_task


@sj.register_task("skills_no_end")
def skills_no_end(format: Any, tokenizer: Any) -> sj.Task:
    """The embedded task, whose responses have no end of their own in training."""
    return dataclasses.replace(get_task("skills"), name="skills_no_end", append_eos=False)
