"""From raw rows to prompts and labels: the only place where what came from outside is taken for an example.

What belongs here: turning each row into a `Prompt` and, where there is one, its response through the task, naming
file and line of a row that will not do or counting it, and drawing the subsets that the limits ask for.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from star_jax.config import SKIP, DataConfig, LabelsConfig, OnBadRow
from star_jax.data.cells import clear_labels, pick_row, plain_row, warn_of_gaps
from star_jax.data.examples import Example, Prompt
from star_jax.data.faults import said_at_once
from star_jax.data.readers import Numbered, Record, Source, base_name, position, read_rows, unit
from star_jax.data.skips import answer_reader
from star_jax.data.tasks.fields import field_names, is_missing, whole_number
from star_jax.data.tasks.task import Task
from star_jax.errors import ConfigError, DataError

Item = TypeVar("Item")
Named = TypeVar("Named", Prompt, Example)

TEST_DRAW_SEED = 20240301
"""Seed of the draw that `data.test_limit` makes: the same test set for every run, whatever its own seed."""

BAD_ROWS_SHOWN = 3
"""Bad rows that a warning quotes; the others it counts."""

_log = logging.getLogger(__name__)


class LoadedData(NamedTuple):
    """What a run works on.

    Attributes:
      pool: prompts, sorted by id.
      labels: id -> response of those pool rows that have one; only the annotator may see them.
      test: the test set, sorted by id.
      ids: of all rows of the pool's source that can be used, drawn or not.
      duplicate_prompts: pool prompts whose text an earlier one of the pool already has.
      test_overlap: pool prompts whose text is also in the test set.
      bad_pool_rows: rows left out because they could not be used, before `pool_limit` is applied.
      bad_test_rows: the same of the test set.
      skipped: ids of the pool's rows that say, in place of a response, that they cannot be labelled.
      columns: id -> the columns of its row that a person is to see, by name.
    """

    pool: list[Prompt]
    labels: dict[str, str]
    test: list[Example]
    ids: frozenset[str]
    duplicate_prompts: int
    test_overlap: int
    bad_pool_rows: int
    bad_test_rows: int
    skipped: frozenset[str] = frozenset()
    columns: Mapping[str, Mapping[str, str]] = MappingProxyType({})


class _PoolRow(NamedTuple):
    prompt: Prompt
    response: str | None = None
    skipped: bool = False
    columns: Mapping[str, str] = MappingProxyType({})


def load_pool_and_test(config: DataConfig, task: Task, seed: int, labels: LabelsConfig | None = None) -> LoadedData:
    """Pool and test set of a run.

    The pool may be unlabelled, in part or as a whole. Its subset is drawn with the run's `seed`, the test set's with
    a fixed one. Duplicates are kept and counted, since what to do about them is the user's decision.

    Raises:
      ConfigError: `data.train` or `data.test` is needed and not given, or `labels.columns` names one that no row has.
      DataError: a source cannot be used; see `load_examples`.
    """
    labels = labels or LabelsConfig()
    if task.generate is not None and config.train is None and config.test is None:
        generated, judged = task.generate(config, seed)
        pool = _Usable([_PoolRow(example.prompt, example.response) for example in generated], 0)
        test = _Usable(judged, 0)
    else:
        train, held_out = _required(config.train, "train", task), _required(config.test, "test", task)
        pool = _usable(task, train, "train", config.on_bad_row, _pool_row(task, labels), labels.skip)
        test = _usable(task, held_out, "test", config.on_bad_row, _labelled(task, labels.skip), labels.skip)
        _check_columns(labels.columns, pool.items)
    if config.train is not None and config.test is not None:
        warn_of_gaps(config.train, [row.response for row in pool.items if row.response is not None])
        warn_of_gaps(config.test, [example.response for example in test.items])
    prompts = _draw([row.prompt for row in pool.items], config.pool_limit, seed)
    drawn = {prompt.id for prompt in prompts}
    responses = {row.prompt.id: row.response for row in pool.items if row.response is not None}
    examples = _draw(test.items, config.test_limit, TEST_DRAW_SEED)
    test_texts = {example.prompt.text for example in examples}
    return LoadedData(
        pool=prompts,
        labels={prompt.id: responses[prompt.id] for prompt in prompts if prompt.id in responses},
        test=examples,
        ids=frozenset(row.prompt.id for row in pool.items),
        duplicate_prompts=len(prompts) - len({prompt.text for prompt in prompts}),
        test_overlap=sum(prompt.text in test_texts for prompt in prompts),
        bad_pool_rows=pool.bad,
        bad_test_rows=test.bad,
        skipped=frozenset(row.prompt.id for row in pool.items if row.skipped and row.prompt.id in drawn),
        columns={row.prompt.id: row.columns for row in pool.items if row.columns},
    )


def load_examples(task: Task, source: Source, split: str, on_bad_row: OnBadRow = "error") -> list[Example]:
    """All rows of a source as labelled examples, in the source's order.

    An example's id is its row's field `task.id_field`, or else the source's name and the line number. Where
    `on_bad_row` is `skip`, rows that will not do are left out, counted and logged.

    Raises:
      DataError: the source cannot be read; rows lack a field, have one of the wrong type, have no response, or
        repeat an id, and the message begins with file and line, and names all of them; or there is no row that can be
        used.
    """
    return _usable(task, source, split, on_bad_row, _labelled(task)).items


class PoolRows(NamedTuple):
    """Rows of a pool, some of which may have a response.

    Attributes:
      prompts: in the source's order.
      labels: id -> response of those that have one.
      bad: rows that were left out because they could not be used.
    """

    prompts: list[Prompt]
    labels: dict[str, str]
    bad: int


def load_pool(task: Task, source: Source, on_bad_row: OnBadRow = "error") -> PoolRows:
    """All rows of a source, labelled or not.

    Raises:
      DataError: as `load_examples`, but a row without a response is fine.
    """
    found = _usable(task, source, "train", on_bad_row, _pool_row(task, LabelsConfig()))
    labels = {row.prompt.id: row.response for row in found.items if row.response is not None}
    warn_of_gaps(source if isinstance(source, str) else "the rows", [*labels.values()])
    return PoolRows([row.prompt for row in found.items], labels, found.bad)


def load_prompts(task: Task, source: Source, split: str, on_bad_row: OnBadRow = "error") -> list[Prompt]:
    """All rows of a source as unlabelled prompts, in the source's order; responses, if any, are not looked at.

    Raises:
      DataError: as `load_examples`, but for what concerns responses.
    """
    return _usable(task, source, split, on_bad_row, lambda prompt, row: prompt).items


class _Usable(NamedTuple, Generic[Item]):
    """What a source's rows became, and how many could not be used."""

    items: list[Item]
    bad: int


def _labelled(task: Task, skip: str = SKIP) -> Callable[[Prompt, Record], Example]:
    answer = answer_reader(task, skip)

    def build(prompt: Prompt, row: Record) -> Example:
        response, skipped = answer(row)
        if skipped:
            raise DataError(f"the row has {skip} in place of a response; label it, or leave it out")
        if response is None:
            raise DataError(f"the row has no response (it has {field_names(row)}); label it, or leave it out")
        return Example(prompt, response)

    return build


def _pool_row(task: Task, labels: LabelsConfig) -> Callable[[Prompt, Record], _PoolRow]:
    answer = answer_reader(task, labels.skip)
    everything = "*" in labels.columns

    def build(prompt: Prompt, row: Record) -> _PoolRow:
        names = [str(name) for name in row] if everything else [name for name in labels.columns if name in row]
        return _PoolRow(prompt, *answer(row), {name: _as_text(row[name]) for name in names if name in row})

    return build


def _as_text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):  # dates and the like
        return str(value)


def _check_columns(asked: Sequence[str], rows: Sequence[_PoolRow]) -> None:
    for name in asked:
        if name != "*" and not any(name in row.columns for row in rows):
            raise ConfigError(f"labels.columns names {name!r}, which no row of the pool has; check the name")


def _usable(
    task: Task,
    source: Source,
    split: str,
    on_bad_row: OnBadRow,
    build: Callable[[Prompt, Record], Item],
    skip: str = SKIP,
) -> _Usable[Item]:
    items: list[Item] = []
    lines: dict[str, int] = {}
    faults: list[tuple[int, str]] = []
    for number, row in _rows(task, source, split, skip):
        try:
            if isinstance(row, DataError):
                raise row
            identifier = _identifier(task, row) or f"{base_name(source, split)}-{number:06d}"
            if identifier in lines:
                raise DataError(
                    f"id '{identifier}' is already that of {unit(source)} {lines[identifier]}; make ids unique"
                )
            shown = None if task.shown is None else task.shown(row)
            items.append(build(Prompt(identifier, task.prompt(row), _group(task, row), shown), row))
            lines[identifier] = number
        except DataError as error:
            faults.append((number, str(error)))
    if faults and on_bad_row == "error":
        before = f"{source}, " if isinstance(source, str) else ""
        raise DataError(before + said_at_once([(position(source, number), what) for number, what in faults]))
    if faults:
        shown_first = [f"{unit(source)} {number}: {what}" for number, what in faults[:BAD_ROWS_SHOWN]]
        _report(source, shown_first, len(faults), len(items))
    return _Usable(items, len(faults))


def _rows(task: Task, source: Source, split: str, skip: str) -> Numbered:
    """The rows of a source with their values as a task reads them."""
    of_cells = isinstance(source, str) and source.lower().endswith((".csv", ".tsv"))
    clear = (lambda row: pick_row(plain_row(row))) if of_cells else plain_row
    rows = ((number, clear(row) if isinstance(row, dict) else row) for number, row in read_rows(source, split))
    if not task.sparse:
        yield from rows
        return
    filled = list(_filled(rows))
    clear_labels([row for _, row in filled if isinstance(row, dict)], task.label_fields, skip)
    yield from filled


def _filled(rows: Numbered) -> Numbered:
    """The rows, each with all fields that any of them has: those of the others are None in it.

    Lines of a JSONL file often leave out what is empty. The order of its own fields stays each row's.
    """
    read = list(rows)
    names = dict.fromkeys(name for _, row in read if isinstance(row, dict) for name in row)
    for number, row in read:
        yield number, row | {name: None for name in names if name not in row} if isinstance(row, dict) else row


def _report(source: Source, shown: Sequence[str], bad: int, good: int) -> None:
    named = source if isinstance(source, str) else "the rows"
    if not good:
        raise DataError(f"{named}: none of its {bad} rows can be used; the first: {shown[0]}")
    more = f"; and {bad - len(shown)} more" if bad > len(shown) else ""
    _log.warning(
        "%s: %d of %d rows cannot be used and are left out: %s%s", named, bad, bad + good, "; ".join(shown), more
    )


def _identifier(task: Task, row: Record) -> str | None:
    name = task.id_field
    value = row.get(name)
    if value is None:
        if name == "id":
            return None
        state = "is empty" if name in row else f"is missing (the row has {field_names(row)})"
        raise DataError(f"field '{name}', which should name the row, {state}; fill it in, or leave out format.id")
    if isinstance(value, float):
        value = whole_number(value)  # A column of whole numbers with gaps is read as one of fractions by many a tool.
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise DataError(f"field '{name}' is {value!r}; it must be a number or a text, or be absent")
    return str(value)


def _group(task: Task, row: Record) -> str | None:
    if task.group_field is None:
        return None
    if task.group_field not in row:
        raise DataError(f"field '{task.group_field}', of format.group, is missing (the row has {field_names(row)})")
    value = row[task.group_field]
    value = whole_number(value) if isinstance(value, float) else value
    return None if is_missing(value) else str(value).strip() or None


def _draw(items: list[Named], limit: int | None, seed: int) -> list[Named]:
    """At most `limit` items, sorted by id; a larger limit with the same seed only adds to them."""
    ordered = sorted(items, key=lambda item: item.id)
    if limit is None:
        return ordered
    drawn = np.random.default_rng(seed).permutation(len(ordered))[:limit]
    return [ordered[index] for index in sorted(drawn.tolist())]


def _required(source: str | None, name: str, task: Task) -> str:
    if source is None:
        neither = ", or neither of them for the generated benchmark" if task.generate is not None else ""
        raise ConfigError(
            f"data.{name} is not set; task {task.name} needs both data.train and data.test, files or hub names{neither}"
        )
    return source
