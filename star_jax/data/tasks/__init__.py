"""The registry of tasks: one file a task, one line here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from star_jax.config import ConfigError
from star_jax.data.tasks.boolq import BOOLQ, BOOLQ_PASSAGE
from star_jax.data.tasks.gsm8k import GSM8K
from star_jax.data.tasks.openbookqa import OPENBOOKQA
from star_jax.data.tasks.released import RELEASED
from star_jax.data.tasks.skills import SKILLS
from star_jax.data.tasks.task import Task

__all__ = ["TASKS", "Task", "get_task"]

TASKS: Mapping[str, Task] = MappingProxyType(
    {task.name: task for task in (GSM8K, BOOLQ, BOOLQ_PASSAGE, OPENBOOKQA, SKILLS, RELEASED)},
)
"""Name -> task."""


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
      ConfigError: no task has it; the message lists those there are.
    """
    if name not in TASKS:
        raise ConfigError(f"data.task is '{name}'; choose from {', '.join(TASKS)}")
    return TASKS[name]
