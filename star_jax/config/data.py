"""Pool and test set, what their rows say, and how a person is asked for labels."""

from __future__ import annotations

from dataclasses import dataclass
from string import ascii_uppercase
from typing import Literal

from star_jax.config.checks import require

TooLong = Literal["error", "drop", "truncate-left"]
OnBadRow = Literal["error", "skip"]
Match = Literal["exact", "numeric", "choice"]

SKIP = "[skip]"
"""What is written instead of a label where an example cannot be labelled, unless `labels.skip` says otherwise."""


@dataclass(frozen=True)
class DataConfig:
    """Pool, test set and limits."""

    task: str = "skills"
    """Template, parser and correctness, by name; generic is what the format section describes."""
    train: str | None = None
    """The pool: JSONL, CSV or Parquet file, or a hub name; the task's own generator when none (skills)."""
    test: str | None = None
    """The test set, likewise."""
    regime: Literal["R0", "R1", "R2", "R3", "R4"] = "R1"
    """Pool of the skills benchmark: R0 balanced, R1 Zipf, R2 mostly known, R3 a fifth unlearnable, R4 as R1, meant for
    loop.initial_labels 20."""
    pool_size: int = 1500
    """Items the skills generator puts into the pool."""
    pool_limit: int | None = None
    """Use at most this many pool examples, drawn with the seed."""
    test_limit: int | None = None
    """Use at most this many test examples, drawn with a fixed seed."""
    max_prompt_tokens: int = 128
    """Longest prompt, tokens."""
    max_response_tokens: int = 256
    """Longest response trained on, generated and scored, tokens, end-of-sequence included."""
    too_long: TooLong = "error"
    """Prompts over the limit: refuse, leave the example out, or cut on the left; responses: refuse, or cut on the right
    (both), but for the answers of a closed set (scoring.answers candidates), which are always refused."""
    on_bad_row: OnBadRow = "error"
    """Rows that cannot be read, lack a field or repeat an id: refuse, or leave them out and count them. A pool row
    whose response cannot be used is left out as well: with skip, labels have a say in what the pool is."""

    def __post_init__(self) -> None:
        for name in ("pool_size", "pool_limit", "test_limit", "max_prompt_tokens", "max_response_tokens"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"data.{name} is {value}; it must be at least 1")


@dataclass(frozen=True)
class FormatConfig:
    """Prompt and response of data.task generic, from the columns of a row; the other tasks have their own.

    Example:
      >>> FormatConfig(prompt="{{ question }}\\n", answers=("yes", "no")).match
      'exact'
    """

    prompt: str = "{{ prompt }}\n"
    """Jinja template over the row's columns; row['A name'] is a column whose name is no single word. It should end in a
    blank or a line break, where the response begins."""
    response: str = "{{ response }}"
    """Jinja template of what the model is to write after the prompt; a row in which one of the columns it prints is
    absent or empty is unlabelled."""
    id: str = "id"
    """Column of ids, unique in a file; rows are named by their line where the file has no column id."""
    group: str | None = None
    """Column whose values the reports of what was picked are grouped by; none for one group. Strategies that look at
    groups, such as group_balanced, refuse one of labels."""
    chat: bool = False
    """Whether the prompt becomes the user's message in the tokenizer's chat template, and the response the answer to
    it."""
    system: str | None = None
    """System message before it; none for none."""
    answers: tuple[str, ...] = ()
    """All possible answers where there are only a few; a label must be one of them, and it is what the model is
    trained to write. Empty for free answers. A comma in an answer needs a file."""
    match: Match = "exact"
    """When a prediction is right: the same text but for blanks and capitals, the same last number, or the same choice
    named by its letter or its text."""

    def __post_init__(self) -> None:
        for name in ("prompt", "response", "id", "group"):
            value = getattr(self, name)
            require(value is None or bool(value.strip()), f"format.{name} is empty; give it a text or leave it out")
        require(self.system is None or self.chat, "format.system is set and format.chat is false; set both or neither")
        require(len(self.answers) != 1, "format.answers names only one; name at least two, or none for free answers")
        for answer in self.answers:
            require(
                bool(answer) and answer == answer.strip(),
                f"format.answers holds {answer!r}; leave out the blanks around an answer, and where one must stand "
                "before it let format.prompt end in it",
            )
        most = len(ascii_uppercase)
        require(
            self.match != "choice" or 2 <= len(self.answers) <= most,
            f"format.match is choice and format.answers names {len(self.answers)}; name 2 to {most} answers",
        )


@dataclass(frozen=True)
class LabelsConfig:
    """How a person is asked for labels.

    Example:
      >>> LabelsConfig(skip="n/a").columns
      ()
    """

    skip: str = SKIP
    """What is written instead of a label where an example cannot be labelled; capitals and blanks do not matter."""
    columns: tuple[str, ...] = ()
    """Columns of the pool that labels.csv shows beside the prompt, comma separated; * for all of them."""

    def __post_init__(self) -> None:
        require(bool(self.skip.strip()), "labels.skip is empty; give it a text, such as [skip]")


def check_format(task: str, format: FormatConfig) -> None:
    """Refuses a format section beside a task that does not read it.

    Raises:
      ConfigError: `format` differs from the default and the task is not generic.
    """
    require(
        task == "generic" or format == FormatConfig(),
        f"format is the section of data.task generic, and data.task is {task}; leave it out, or change the task",
    )
