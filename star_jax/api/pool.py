"""A pool of examples, labelled or not, and its tokens for a model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from star_jax.acquisition.pools import BatchSizes, Pool, candidate_pool, choose_shapes, generated_pool
from star_jax.api.checks import check_choice, check_whole
from star_jax.api.model import Model
from star_jax.config import FormatConfig, OnBadRow, TooLong
from star_jax.data.bucketing import Shapes
from star_jax.data.examples import Example, Prompt
from star_jax.data.loading import load_pool
from star_jax.data.readers import Source
from star_jax.data.run_data import fingerprint
from star_jax.data.tasks import get_task
from star_jax.data.tasks.task import Task
from star_jax.data.tokenization import Encoder, Limits
from star_jax.errors import ConfigError, DataError

Format = FormatConfig
"""How a row becomes a prompt and a response: the `format` section of a configuration, as an object."""

MAX_RESPONSE_TOKENS = 64
"""Of a free answer, where nobody says how long it may be."""


@dataclass(frozen=True)
class ExamplePool:
    """Examples, some or none of which have a label.

    Attributes:
      prompts: what the model reads, sorted by id.
      task: how a response is written, read and judged.
      labels: id -> response of the rows that have one. Nothing that scores or selects looks at them.
    """

    prompts: tuple[Prompt, ...] = field(repr=False)
    task: Task
    labels: Mapping[str, str] = field(repr=False)

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def ids(self) -> list[str]:
        """Names of the examples, in order."""
        return [prompt.id for prompt in self.prompts]

    @property
    def fingerprint(self) -> str:
        """Hash of ids and texts."""
        return fingerprint(self.prompts)

    def labelled(self) -> list[Example]:
        """The examples that have a label, with it."""
        return [Example(prompt, self.labels[prompt.id]) for prompt in self.prompts if prompt.id in self.labels]


def read_pool(
    source: Source | os.PathLike[str],
    format: FormatConfig | Task | str,
    *,
    model: Model | None = None,
    on_bad_row: OnBadRow = "error",
) -> ExamplePool:
    """Reads examples from a file, the hub, or rows in memory.

    Args:
      source: a .jsonl, .csv or .parquet file, a hub name `NAME[:CONFIG][@SPLIT]`, or a list of dictionaries.
      format: a `Format`, a task, or the name of a task.
      model: whose chat template is used, for a `Format` with `chat=True`.
      on_bad_row: whether rows that cannot be used are refused or left out.

    Raises:
      ConfigError: the format cannot be used.
      DataError: the source or a row cannot be used; file and line are named.

    Example:
      >>> import star_jax as sj
      >>> rows = [{"text": "great", "label": "yes"}, {"text": "dull"}]
      >>> pool = sj.read_pool(rows, sj.Format(prompt="{{ text }} ", response="{{ label }}", answers=("yes", "no")))
      >>> len(pool), len(pool.labels)
      (2, 1)
    """
    check_choice("on_bad_row", on_bad_row, get_args(OnBadRow))
    if isinstance(format, FormatConfig):
        if format.chat and model is None:
            raise ConfigError("format.chat needs the model's chat template; pass model= to read_pool")
        task = get_task("generic", format, None if model is None else model.tokenizer)
    else:
        if not isinstance(format, Task | str):
            raise ConfigError(f"format is a {type(format).__name__}; pass a Format, a Task, or the name of a task")
        task = format if isinstance(format, Task) else get_task(format)
    found = load_pool(task, _rows_or_name(source), on_bad_row)
    prompts = sorted(found.prompts, key=lambda prompt: prompt.id)
    return ExamplePool(tuple(prompts), task, found.labels)


def _rows_or_name(source: Any) -> Source:
    if isinstance(source, str | os.PathLike):
        return str(os.fspath(source))
    if hasattr(source, "to_dict") and hasattr(source, "columns"):
        raise ConfigError('source is a data frame; pass its rows, frame.to_dict("records")')
    if isinstance(source, Mapping) or not isinstance(source, Iterable):
        raise ConfigError(f"source is a {type(source).__name__}; pass a list of dictionaries, one a row, or a file")
    return list(source)


@dataclass(frozen=True)
class Tokens:
    """A pool as a model reads it.

    Attributes:
      encoder: tokenizer, task and limits.
      prompts: tokens of each prompt.
      answers: what is scored: `candidates` of a closed answer set, else `generated` ones.
      shapes: of batches.
      batch_size: prompts that a device scores at once.
    """

    encoder: Encoder
    prompts: list[np.ndarray]
    answers: Literal["generated", "candidates"]
    shapes: Shapes
    batch_size: int

    def batches(self, pool: ExamplePool) -> Pool:
        """The pool in batches, with the kind of answer that is scored."""
        if self.answers == "candidates":
            assert pool.task.candidates is not None
            return candidate_pool(self.encoder, pool.prompts, pool.task.candidates, self.batch_size)
        return generated_pool(self.encoder, self.prompts, self.shapes)


@dataclass(frozen=True)
class TokenLimits:
    """How long prompts and responses may be, and what becomes of longer ones.

    Attributes:
      prompt: most tokens of a prompt; None for the longest there is.
      response: most tokens of a response, its end included; None for the longest answer of a closed set, or
        `MAX_RESPONSE_TOKENS` for free answers, or what the model can read after the longest prompt.
      too_long: whether longer ones are refused, or cut: prompts on the left, responses on the right.

    Raises:
      ConfigError: a limit that nothing can keep.

    Example:
      >>> TokenLimits(prompt=256, too_long="truncate-left").response is None
      True
    """

    prompt: int | None = None
    response: int | None = None
    too_long: TooLong = "error"

    def __post_init__(self) -> None:
        for name in ("prompt", "response"):
            if getattr(self, name) is not None:
                check_whole(f"limits.{name}", getattr(self, name), 1)
        if self.too_long == "drop":
            raise ConfigError("too_long is drop, which would make the pool another one; choose error or truncate-left")
        check_choice("limits.too_long", self.too_long, ("error", "truncate-left"))


def tokenize(
    model: Model, pool: ExamplePool, limits: TokenLimits | None = None, batch_size: int = 16, *, closed: bool = True
) -> Tokens:
    """The pool's tokens for a model, and shapes of batches.

    Args:
      model: whose tokenizer is used.
      pool: labelled or not.
      limits: of tokens.
      batch_size: prompts that a device scores at once.
      closed: whether a closed answer set is scored as such, where the task has one.

    Raises:
      ConfigError: the model reads fewer tokens than that.
      DataError: a prompt is over its limit, or the tokenizer cannot read it.
    """
    limits = limits or TokenLimits()
    check_whole("batch_size", batch_size, 1)
    if not pool.prompts:
        raise DataError("the pool is empty; give it at least one example")
    most = model.weights.config.max_position_embeddings
    wide = _encoder(model, pool.task, Limits(limits.prompt or most, most, limits.too_long))
    prompts = wide.prompts(pool.prompts)
    candidates = pool.task.candidates if closed else None
    longest = limits.prompt or max(map(len, prompts))
    if longest >= most:
        raise ConfigError(
            f"prompts of {longest} tokens leave no room for a response: {model.name} reads {most} "
            "(max_position_embeddings); lower limits.prompt, with too_long truncate-left"
        )
    response = limits.response or _response_limit(wide, pool, candidates, most - longest)
    if longest + response > most:
        raise ConfigError(
            f"prompts of {longest} tokens with responses of {response} are longer than the {most} that {model.name} "
            "reads (max_position_embeddings); lower one of the two limits"
        )
    encoder = _encoder(model, pool.task, Limits(longest, response, limits.too_long))
    # No response is known yet: half of what may be written is the guess that batches are filled by.
    likely = [len(tokens) + response // 2 + 1 for tokens in prompts]
    shapes = choose_shapes([*map(len, prompts)], likely, longest + response, BatchSizes(batch_size, batch_size))
    return Tokens(encoder, prompts, "candidates" if candidates else "generated", shapes, batch_size)


def _encoder(model: Model, task: Task, limits: Limits) -> Encoder:
    vocabulary = model.weights.config.vocab_size
    return Encoder(model.tokenizer, task, limits, vocab_size=vocabulary, end_ids=model.folder.end_ids)


def _response_limit(encoder: Encoder, pool: ExamplePool, candidates: Sequence[str] | None, room: int) -> int:
    if candidates is not None:
        rows = encoder.candidates([pool.prompts[0]], candidates)
        return max(len(row.tokens) - row.prompt_length for row in rows)
    known = encoder.examples(pool.labelled(), counted=True)
    return max([min(MAX_RESPONSE_TOKENS, room), *(len(row.tokens) - row.prompt_length for row in known)])


OnBatch = Callable[[int], None]


def unwatched(count: int) -> None:
    """Counts nothing."""
