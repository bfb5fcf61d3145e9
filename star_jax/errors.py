"""What a user can put right, and what a run waits for: errors whose message is meant for the user as it stands.

Commands turn each into one line on stderr and an exit code (`cli.guard`).
"""

from __future__ import annotations


class ConfigError(ValueError):
    """A setting, or a model or adapter it names, that nothing can start with.

    Example:
      >>> import star_jax as sj
      >>> try:
      ...     sj.LoraConfig(rank=0)
      ... except ConfigError as error:
      ...     print(error)
      lora.rank is 0; it must be at least 1
    """


class DataError(ValueError):
    """Input data that cannot be used; the message names file, line and field.

    Example:
      >>> import star_jax as sj
      >>> try:
      ...     sj.read_pool([{"question": "2 + 2"}, {"questoin": "3 + 3"}], sj.Format(prompt="{{ question }} "))
      ... except DataError as error:
      ...     print(str(error).partition(":")[0])
      row 2
    """


class ScoreError(FloatingPointError):
    """Scores that cannot be ranked; the message names the examples."""


class LabelsNeeded(Exception):
    """Somebody has to label before a run can go on; the message says what, and where."""
