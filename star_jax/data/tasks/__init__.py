"""Tasks: one file each, by name in the registry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from star_jax.config import FormatConfig
from star_jax.data.tasks.task import Task
from star_jax.errors import ConfigError
from star_jax.registry import TASKS

__all__ = ["Task", "get_task", "register_task"]


def get_task(name: str, format: FormatConfig | None = None, tokenizer: Any = None) -> Task:
    """The task of that name.

    Args:
      name: in the registry.
      format: the format section, for a task that is made from it.
      tokenizer: the model's, for a format with a chat template.

    Raises:
      ConfigError: no task has the name, and the message lists those there are; or the format cannot be used.
    """
    found = TASKS.get(name, "data.task")
    task = found if isinstance(found, Task) else found(format or FormatConfig(), tokenizer)
    if not isinstance(task, Task):
        raise ConfigError(f"data.task is {name}, which gives a {type(task).__name__} instead of a Task")
    return task


def register_task(name: str) -> Callable[[Any], Any]:
    """Decorator: registers a function of the format section and the tokenizer that makes a `Task`.

    Raises:
      ConfigError: the package has a task of that name.

    Example:
      >>> import star_jax as sj
      >>> @register_task("capitals")
      ... def capitals(format, tokenizer):
      ...     return sj.Task(
      ...         name="capitals",
      ...         prompt=lambda row: f"The capital of {row['country']} is",
      ...         response=lambda row: row.get("capital") and f" {row['capital']}",
      ...         parse=lambda text: text.strip().lower() or None,
      ...     )
    """

    def register(factory: Any) -> Any:
        TASKS.register(name, factory)
        return factory

    return register
