"""Continuous batching: where a response has ended, the next prompt takes its place.

The lengths of free answers differ widely. A fixed number of rows is written a few tokens at a time; in between, prompts
that were read are seated where rows have ended (scheduling by iteration: Yu et al., "Orca", OSDI 2022).
Once no prompt waits, the rows that go on are moved to a batch of half the size as soon as they fit into it.

Shapes: `B` rows that a device writes at once, `K` responses of each prompt, `R` new tokens.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.data.batching import Batch
from star_jax.inference.generation import Generated
from star_jax.inference.sampling import folded
from star_jax.inference.scoring import TokenStatistics
from star_jax.inference.slots import (
    Column,
    Limits,
    Model,
    Rows,
    Seats,
    Writing,
    no_rows,
    read_prompts,
    seat,
    some_rows,
    with_slots,
    write_tokens,
)
from star_jax.models.decoding import unstacked_on_a_cpu
from star_jax.models.dropout import row_keys
from star_jax.parallel.mesh import data_mesh

Array = jax.Array

STEPS = 16
"""Tokens of each row that are written at most before the host looks which have ended."""

SIZES = 3
"""Sizes of caches: rows of the first prompts begin with a small one, of which less is read."""

HALVINGS = 2
"""How often the rows are halved at most, once no prompt waits."""

FEWEST_ROWS = 8
"""Rows are not made fewer than this: reading the weights is then most of a step."""

SEATED_AT_ONCE = 8
"""Prompts are seated as soon as one in so many rows is free; seating goes through the whole cache. By count
(`experiments/benchmarks/continuous_batching.py`), 4 and 16 take up to 2 and 6 % longer."""


class Plan(NamedTuple):
    """What is the same for all batches of a pass.

    Attributes:
      writing: how responses are written.
      key: PRNG key of what is drawn, with `writing.decoding`; a response depends on it and on the prompt's number.
    """

    writing: Writing
    key: Array | None = None

    @property
    def samples(self) -> int:
        """K."""
        return 1 if self.writing.decoding is None else self.writing.decoding.samples

    def sizes(self, width: int) -> list[int]:
        """Slots of the caches behind prompts of up to so many tokens; the last size holds the longest response."""
        parts = [-(-self.writing.width * part // SIZES) for part in range(1, SIZES + 1)]
        return [width + -(-part // STEPS) * STEPS for part in parts]


class _Answers:
    """The responses to a batch as they come: `K·rows×R`, the rows of one sample side by side."""

    def __init__(self, batch: Batch, plan: Plan) -> None:
        count, width = len(batch.lengths) * plan.samples, plan.writing.width
        self.batch, self._samples = batch, plan.samples
        self.open = int(batch.row_mask.sum()) * plan.samples
        self._tokens, self._lengths = np.zeros((count, width), np.int32), np.zeros(count, np.int32)
        self._statistics = [np.zeros((count, width), np.float32) for _ in TokenStatistics._fields]

    def add(self, row: int, tokens: np.ndarray, statistics: Iterable[np.ndarray], end: int) -> None:
        """What was written of a row, up to the token before `end`; more may be given."""
        start, self._lengths[row] = self._lengths[row], end
        for whole, part in zip((self._tokens, *self._statistics), (tokens, *statistics), strict=True):
            whole[row, start:end] = part[: end - start]

    def all(self) -> Generated:
        """With the axes that `inference.generation.sample` gives them."""

        def shaped(leaf: np.ndarray) -> Array:
            return jnp.asarray(leaf.reshape(self._samples, -1, *leaf.shape[1:]))

        *each, mixture = map(shaped, self._statistics)
        statistics = TokenStatistics(*[leaf[:, None] for leaf in each], mixture)  # type: ignore[call-arg]
        return Generated(shaped(self._tokens), shaped(self._lengths), statistics)


class _Place(NamedTuple):
    """Which response a row writes.

    Attributes:
      answers: those that it is one of.
      local: the row of its prompt in the device's share of the batch.
      row: its own among the samples of the whole batch.
      width: of the batch, which it has slots for.
    """

    answers: _Answers
    local: int
    row: int
    width: int


def write_responses(model: Model, batches: Iterable[Batch], plan: Plan) -> Iterator[tuple[Batch, Generated]]:
    """Responses to the prompts of each batch, in order.

    Args:
      model: decoder and adapter, on all devices.
      batches: of prompts, all of as many rows; each is read when rows are free for it.
      plan: how responses are written.

    Yields:
      Each batch with its responses, on the host, leaves `K×rows×R`; rows that only fill the batch up have none.
    """
    table, source, order = _Table(model, plan), iter(batches), deque[_Answers]()
    following = next(source, None)
    while following is not None or table.busy:
        if following is not None and table.has_room_for(following):
            order.append(table.read(following))
            following = next(source, None)
        table.advance(more=following is not None)
        while order and not order[0].open:
            done = order.popleft()
            yield done.batch, done.all()


class _Table:
    """The rows that are written, those that wait, and whose they are."""

    def __init__(self, model: Model, plan: Plan) -> None:
        self._model, self._plan, self._devices = model, plan, data_mesh().size
        self._layers = unstacked_on_a_cpu(*model)
        self._rows: Rows | None = None
        self._read: Rows | None = None
        self._keys: Array | None = None
        self._places: list[list[_Place | None]] = [[] for _ in range(self._devices)]
        self._waiting: list[deque[_Place]] = [deque() for _ in range(self._devices)]
        self._used = np.zeros(self._devices, np.int32)
        self._width = self._halvings = 0

    @property
    def _going(self) -> np.ndarray:
        """Responses that each device is writing."""
        return np.asarray([sum(place is not None for place in places) for places in self._places])

    @property
    def _rows_each(self) -> int:
        """B."""
        return len(self._places[0])

    @property
    def _few(self) -> int:
        """Where no more rows of a device than this go on, others are seated."""
        return self._rows_each - max(1, self._rows_each // SEATED_AT_ONCE)

    @property
    def busy(self) -> bool:
        """Whether a response is being written, or a prompt waits."""
        return any(self._waiting) or bool(self._going.any())

    def has_room_for(self, batch: Batch) -> bool:
        """Whether a batch should be read: nothing waits, and enough rows are free on a device that have the slots."""
        if any(self._waiting) or not self._going.any():
            return not any(self._waiting)
        return batch.tokens.shape[1] <= self._width and bool(self._going.min() <= self._few)

    def read(self, batch: Batch) -> _Answers:
        """Reads the prompts of a batch, which then wait."""
        answers, key = _Answers(batch, self._plan), self._plan.key
        self._read = read_prompts(self._model, (batch.tokens, batch.lengths), capacity=batch.capacity)
        self._keys = None if key is None else row_keys(key, jnp.asarray(batch.index))
        rows, width = batch.tokens.shape
        share = rows // self._devices
        for row in np.flatnonzero(batch.row_mask).tolist():
            self._waiting[row // share] += [
                _Place(answers, row % share, number * rows + row, width) for number in range(self._plan.samples)
            ]
        return answers

    def advance(self, more: bool) -> None:
        """Some tokens of every response; `more` batches may come."""
        most = self._few if self._going.any() else 0
        if any(waiting and count <= most for waiting, count in zip(self._waiting, self._going, strict=True)):
            self._seat()
        comes = [more or bool(waiting) for waiting in self._waiting]
        if not any(comes):
            self._halve()
        going = self._going
        if self._rows is None or not going.any():
            return
        half = self._next_half()
        fewer = np.asarray([self._few if one else half for one in comes], np.int32)
        used = jnp.asarray(self._used)
        self._width = max(place.width for place in chain(*self._places, *self._waiting) if place)
        sizes = self._plan.sizes(self._width)
        slots = next((size for size in sizes if size >= self._used.max() + STEPS), sizes[-1])
        if slots != self._rows.positions.shape[1]:
            self._rows = with_slots(self._rows, used, slots=slots)
        limits = Limits(used, jnp.asarray(np.where(fewer < going, fewer, 0)))
        self._rows, column, used = write_tokens(
            self._model, self._layers, self._rows, limits, steps=STEPS, writing=self._plan.writing
        )
        column, self._used, number, done = jax.device_get((column, used, self._rows.number, self._rows.done))
        self._note(column, number, done)

    def _seat(self) -> None:
        """Prompts that wait on rows that are free; on fresh caches where all are."""
        assert self._read is not None
        width = self._read.positions.shape[1]
        if not self._going.any():
            self._width, self._halvings = width, 0
            self._rows = no_rows(self._read, slots=self._plan.sizes(width)[0], drawn=self._keys is not None)
            self._used = np.full(self._devices, width, np.int32)
            self._places = [[None] * (len(self._rows.done) // self._devices) for _ in self._places]
        assert self._rows is not None
        taken = np.full((self._devices, self._rows_each), -1, np.int32)
        rows = np.zeros((self._devices, self._rows_each), np.int32)
        for device, (places, waiting) in enumerate(zip(self._places, self._waiting, strict=True)):
            for number in range(len(places)):
                if places[number] is None and waiting:
                    place = places[number] = waiting.popleft()
                    taken[device, number], rows[device, number] = place.local, place.row
        seats = Seats(jnp.asarray(taken.reshape(-1)), self._keys_of(rows.reshape(-1)))
        self._rows = seat(self._rows, self._read, seats, jnp.asarray(self._used))
        if not any(self._waiting):
            self._read = None  # its memory is free for what is read next

    def _keys_of(self, rows: np.ndarray) -> Array | None:
        """A PRNG key for each response to a batch."""
        if self._keys is None:
            return None
        number, row = np.divmod(rows, self._keys.shape[0])
        return folded(self._keys[row], jnp.asarray(number))

    def _next_half(self) -> int:
        """The rows that all may be moved to next; 0 where they may not."""
        half = self._rows_each // 2
        return half if self._halvings < HALVINGS and half >= FEWEST_ROWS else 0

    def _halve(self) -> None:
        """Half the rows, where those that go on fit into them on every device."""
        half = self._next_half()
        if not half or self._going.max() > half:
            return
        chosen = []
        for device, places in enumerate(self._places):
            first = np.argsort([place is None for place in places], kind="stable")[:half].tolist()
            self._places[device] = [places[number] for number in first]
            chosen += first
        assert self._rows is not None
        self._rows = some_rows(self._rows, jnp.asarray(chosen, jnp.int32))
        self._halvings += 1

    def _note(self, column: Column, number: np.ndarray, done: np.ndarray) -> None:
        """Puts what was written where it belongs, and frees the rows that have ended."""
        size = self._rows_each
        for row, (end, ended) in enumerate(zip(number.tolist(), done.tolist(), strict=True)):
            places, here = self._places[row // size], row % size
            place = places[here]
            if place is None:
                continue
            parts = [np.asarray(leaf)[row] for leaf in column.statistics]
            place.answers.add(place.row, np.asarray(column.tokens)[row], parts, end)
            if ended:
                place.answers.open -= 1
                places[here] = None
