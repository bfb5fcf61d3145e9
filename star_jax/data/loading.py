"""From a file or a hub name to examples: the only place where rows from outside enter.

What belongs here: reading JSONL, CSV, Parquet and hub data sets, turning each row into an `Example` or a `Prompt`
through its task, naming file and line of a row that will not do, and drawing the subsets that the limits ask for.
"""

from __future__ import annotations

import csv
import glob
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from star_jax.config import ConfigError, DataConfig
from star_jax.data import skills_benchmark
from star_jax.data.examples import DataError, Example, Prompt
from star_jax.data.tasks import Task, get_task

Row = dict[str, Any]
Item = TypeVar("Item")

TEST_DRAW_SEED = 20240301
"""Seed of the draw that `data.test_limit` makes: the same test set for every run, whatever its own seed."""

_HUB_NAME = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[\w.-]+))?(?:@(?P<split>[\w.-]+))?")


class LoadedData(NamedTuple):
    """What a run works on.

    Attributes:
      pool: examples whose responses only the annotator may see, sorted by id.
      test: the test set, sorted by id.
      duplicate_prompts: pool examples whose prompt text an earlier one of the pool already has.
      test_overlap: pool examples whose prompt text is also in the test set.
    """

    pool: list[Example]
    test: list[Example]
    duplicate_prompts: int
    test_overlap: int


def load_pool_and_test(config: DataConfig, seed: int) -> LoadedData:
    """Pool and test set of a run.

    The pool's subset is drawn with the run's `seed`, the test set's with a fixed one. Duplicates are kept and
    counted, since what to do about them is the user's decision.

    Raises:
      ConfigError: unknown task, or `data.train` or `data.test` is needed and not given.
      DataError: a source cannot be used; see `load_rows` and `load_examples`.
    """
    task = get_task(config.task)
    if task.name == "skills" and config.train is None and config.test is None:
        pool = skills_benchmark.pool_examples(config.regime, seed, config.pool_size)
        test = skills_benchmark.test_examples()
    else:
        sources = _required(config.train, "train", task), _required(config.test, "test", task)
        pool, test = (
            load_examples(task, source, split) for source, split in zip(sources, ("train", "test"), strict=True)
        )
    pool = _draw(pool, config.pool_limit, seed)
    test = _draw(test, config.test_limit, TEST_DRAW_SEED)
    test_texts = {example.prompt.text for example in test}
    return LoadedData(
        pool=pool,
        test=test,
        duplicate_prompts=len(pool) - len({example.prompt.text for example in pool}),
        test_overlap=sum(example.prompt.text in test_texts for example in pool),
    )


def load_examples(task: Task, source: str, split: str) -> list[Example]:
    """All rows of a source as labelled examples, in the source's order.

    An example's id is its row's `id` field, or else the source's name and the line number.

    Raises:
      DataError: the source cannot be read, or a row lacks a field, has one of the wrong type, has no response, or
        repeats an id. The message begins with file and line.
    """

    def build(prompt: Prompt, row: Row) -> Example:
        response = task.response(row)
        if response is None:
            raise DataError("the row has no response; label it, or leave it out of this file")
        return Example(prompt, response)

    return _build(task, source, split, build)


def load_prompts(task: Task, source: str, split: str) -> list[Prompt]:
    """All rows of a source as unlabelled prompts, in the source's order; responses, if any, are not looked at.

    Raises:
      DataError: as `load_examples`, but for what concerns responses.
    """
    return _build(task, source, split, lambda prompt, row: prompt)


def load_rows(source: str, split: str) -> Iterator[tuple[int, Row]]:
    """Raw rows with their numbers, counted from 1: lines of a JSONL or CSV file, rows of anything else.

    Args:
      source: a .jsonl, .json (one object a line), .csv or .parquet file, or a hub name,
        `NAME[:CONFIG][@SPLIT]`, such as `openai/gsm8k:main` or `google/boolq@validation`.
      split: the hub data set's split, unless `source` names one; a file is read whole.

    Raises:
      DataError: no such file or data set, an unknown format, a row that cannot be read, or no row at all.
    """
    path = Path(source)
    reader = _READERS.get(path.suffix.lower())
    if reader is None and path.exists():
        raise DataError(f"{source}: no format is known by this name; use a file that ends in {', '.join(_READERS)}")
    if reader is not None and not path.is_file():
        raise DataError(f"{source}: there is no such file; check the path")
    number = 0
    try:
        for number, row in _read_hub(source, split) if reader is None else reader(path):
            yield number, row
    except OSError as error:
        raise DataError(f"{source}: cannot be read ({error.strerror or error})") from error
    if number == 0:
        raise DataError(f"{source}: holds no rows; it needs at least one")


def _build(task: Task, source: str, split: str, build: Callable[[Prompt, Row], Item]) -> list[Item]:
    items: list[Item] = []
    lines: dict[str, int] = {}
    for number, row in load_rows(source, split):
        try:
            identifier = _identifier(row, source, split, number)
            if identifier in lines:
                raise DataError(
                    f"id '{identifier}' is already that of {_unit(source)} {lines[identifier]}; make ids unique"
                )
            lines[identifier] = number
            items.append(build(Prompt(identifier, task.prompt(row)), row))
        except DataError as error:
            raise DataError(f"{_place(source, number)}: {error}") from error
    return items


def _identifier(row: Row, source: str, split: str, number: int) -> str:
    value = row.get("id")
    if value is None:
        match = None if _is_file(source) else _HUB_NAME.fullmatch(source)
        stem = Path(source).stem if match is None else f"{Path(match['name']).name}-{match['split'] or split}"
        return f"{stem}-{number:06d}"
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise DataError(f"field 'id' is {value!r}; it must be a number or a text, or be absent")
    return str(value)


def _draw(examples: list[Example], limit: int | None, seed: int) -> list[Example]:
    """At most `limit` examples, sorted by id; a larger limit with the same seed only adds to them."""
    ordered = sorted(examples, key=lambda example: example.id)
    if limit is None:
        return ordered
    drawn = np.random.default_rng(seed).permutation(len(ordered))[:limit]
    return [ordered[index] for index in sorted(drawn.tolist())]


def _required(source: str | None, name: str, task: Task) -> str:
    if source is None:
        neither = ", or neither of them for the generated benchmark" if task.name == "skills" else ""
        raise ConfigError(
            f"data.{name} is not set; task {task.name} needs both data.train and data.test, files or hub names{neither}"
        )
    return source


def _is_file(source: str) -> bool:
    return Path(source).suffix.lower() in _READERS


def _unit(source: str) -> str:
    return "line" if Path(source).suffix.lower() in _LINE_FORMATS else "row"


def _place(source: str, number: int) -> str:
    return f"{source}, {_unit(source)} {number}"


# JSONL and CSV are read here and not through `datasets`: it would lose the line numbers, and a malformed row in the
# middle of a file would be reported as a failed conversion of the whole.
def _read_jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.isspace():
                continue
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                raise DataError(f"{_place(str(path), number)}: is not UTF-8; save the file in that encoding") from error
            except ValueError as error:
                raise DataError(
                    f"{_place(str(path), number)}: is not valid JSON ({error}); write one object a line"
                ) from error
            if not isinstance(row, dict):
                raise DataError(
                    f"{_place(str(path), number)}: is a {type(row).__name__}, not an object; write one object a line"
                )
            yield number, row


def _read_csv(path: Path) -> Iterator[tuple[int, Row]]:
    next_line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            next_line = reader.line_num + 1
            for cells in reader:
                number, next_line = next_line, reader.line_num + 1
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise DataError(
                        f"{_place(str(path), number)}: has {len(cells)} cells where the header has {len(header)}; "
                        f"quote a cell that holds a comma"
                    )
                yield number, dict(zip(header, cells, strict=True))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8; save the file in that encoding") from error
    except csv.Error as error:
        raise DataError(f"{_place(str(path), next_line)}: is not valid CSV ({error}); check its quotes") from error


def _read_parquet(path: Path) -> Iterator[tuple[int, Row]]:
    import datasets  # takes seconds to import; most runs read JSONL

    try:
        # Streaming reads the file where it lies; otherwise a copy of it would go to the user's cache.
        rows = datasets.load_dataset("parquet", data_files=glob.escape(str(path)), split="train", streaming=True)
        yield from enumerate(rows, start=1)
    except Exception as error:  # the reader below has many exception types, and all of them mean this
        raise DataError(f"{path}: is not a valid Parquet file ({_first_line(error)}); write it again") from error


def _read_hub(source: str, split: str) -> Iterator[tuple[int, Row]]:
    match = _HUB_NAME.fullmatch(source)
    if match is None:
        raise DataError(f"{source}: is neither a file nor a hub name, NAME[:CONFIG][@SPLIT]; check the path")
    import datasets  # takes seconds to import; most runs read local files

    try:
        rows = datasets.load_dataset(match["name"], match["config"], split=match["split"] or split)
    except Exception as error:  # client, network and file system each have their own; the user can do the same
        raise DataError(
            f"{source}: is no file here, and cannot be loaded from the hub ({_first_line(error)}); check the name "
            f"(NAME[:CONFIG][@SPLIT]) and the connection, or give a local file"
        ) from error
    yield from enumerate(rows, start=1)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


_READERS: dict[str, Callable[[Path], Iterator[tuple[int, Row]]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
_LINE_FORMATS = (".jsonl", ".json", ".csv")
