"""The registry of tasks: one file a task, one line here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from star_jax.benchmarks.skills.task import SKILLS
from star_jax.config import FormatConfig
from star_jax.data.tasks.boolq import BOOLQ, BOOLQ_PASSAGE
from star_jax.data.tasks.generic import NAME as GENERIC
from star_jax.data.tasks.generic import generic_task
from star_jax.data.tasks.gsm8k import GSM8K
from star_jax.data.tasks.openbookqa import OPENBOOKQA
from star_jax.data.tasks.released import RELEASED
from star_jax.data.tasks.task import Task
from star_jax.errors import ConfigError

__all__ = ["TASKS", "Task", "get_task"]

TASKS: Mapping[str, Task] = MappingProxyType(
    {task.name: task for task in (GSM8K, BOOLQ, BOOLQ_PASSAGE, OPENBOOKQA, SKILLS, RELEASED)},
)
"""Name -> task, of those that need no more than a name."""


def get_task(name: str, format: FormatConfig | None = None, tokenizer: Any = None) -> Task:
    """The task of that name.

    Args:
      name: of `TASKS`, or `generic`.
      format: what the generic task is; the other tasks need none.
      tokenizer: the model's, for a format with a chat template.

    Raises:
      ConfigError: no task has the name, and the message lists those there are; or the format cannot be used.
    """
    if name == GENERIC:
        return generic_task(format or FormatConfig(), tokenizer)
    if name not in TASKS:
        raise ConfigError(f"data.task is '{name}'; choose from {', '.join([*TASKS, GENERIC])}")
    return TASKS[name]
