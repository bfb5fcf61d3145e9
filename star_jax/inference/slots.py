"""What a device does for continuous batching: a program each to read prompts, to seat them, and to write some tokens.

Rows of different ages are written together. All write at the same slot of their caches, which are rings: a row that
takes the place of another lies with its prompt right before that slot, and has ended before the ring comes round.

Shapes: `B` rows that are written together, `W` rows that wait, `P` prompt tokens, `S` cache slots, `D` model width,
`n` steps, `V` vocabulary.
"""

from __future__ import annotations

from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from star_jax.inference.sampling import Decoding, draw_tokens, folded
from star_jax.inference.scoring import TokenStatistics, distribution_statistics
from star_jax.models.decoding import KVCache, Variables, decode_step, prefill, step_variables, unstacked
from star_jax.models.layer import LayerCache, Slots
from star_jax.models.lm_head import logits, output_head
from star_jax.models.lora import Adapter
from star_jax.models.transformer import LanguageModel
from star_jax.parallel.mesh import by_rows
from star_jax.parallel.parts import anywhere, staying

Array = jax.Array
Model = tuple[LanguageModel, Adapter | None]
Layers = tuple[Variables, ...] | None


class Rows(NamedTuple):
    """Rows on all devices, on each of which they are `B`.

    Attributes:
      hidden: `B×D` of each row's last token, which say what the next one is.
      prompt_lengths: `B` int32.
      number: `B` int32, tokens written.
      done: `B` bool, rows that have ended, and rows that hold nothing yet.
      keys: `B` PRNG keys; None where nothing is drawn.
      layers: caches, `B×G×S×d` each.
      positions: `B×S` position in the text that each slot holds; −1 for none.
    """

    hidden: Array
    prompt_lengths: Array
    number: Array
    done: Array
    keys: Array | None
    layers: tuple[LayerCache, ...]
    positions: Array


class Seats(NamedTuple):
    """Which rows are seated.

    Attributes:
      taken: `B` int32, for each row the number of the waiting one that takes its place; −1 to leave it.
      keys: `B` PRNG keys of those that are seated; None where nothing is drawn.
    """

    taken: Array
    keys: Array | None


class Limits(NamedTuple):
    """Where writing begins and when it ends, on each device.

    Attributes:
      used: slots that are used.
      fewer: writing stops as soon as no more rows than this go on; where devices share a model, on all of them.
    """

    used: Array
    fewer: Array


class Column(NamedTuple):
    """What was written, leaves `B×n`; 0 behind the end of a row."""

    tokens: Array
    statistics: TokenStatistics


class Writing(NamedTuple):
    """How responses are written; known when it is compiled.

    Attributes:
      width: most tokens of a response, the one that ends it included.
      end_ids: tokens that end one.
      decoding: how tokens are drawn; None for the most probable one.
    """

    width: int
    end_ids: tuple[int, ...]
    decoding: Decoding | None = None


@partial(jax.jit, static_argnames=("capacity",))
def read_prompts(model: Model, prompts: tuple[Array, Array], *, capacity: int) -> Rows:
    """Prompts `W×P` of lengths `W`, read to their ends; `capacity` of their tokens are computed on a device."""

    def read(model: Model, prompts: tuple[Array, Array]) -> Rows:
        tokens, lengths = prompts
        hidden, cache = prefill(*model, tokens, lengths, tokens.shape[1], capacity)
        return Rows(hidden, lengths, jnp.zeros_like(lengths), lengths == 0, None, cache.layers, cache.slots.positions)

    found: Rows = by_rows(read, model, prompts)
    return found


@partial(jax.jit, static_argnames=("slots", "drawn"))
def no_rows(waiting: Rows, *, slots: int, drawn: bool) -> Rows:
    """As many rows as wait, with so many slots, that hold nothing; with keys where they are for drawing."""

    def empty(_: Any, waiting: Rows) -> Rows:
        keys = jnp.broadcast_to(jax.random.key(0), waiting.done.shape) if drawn else None
        layers = jax.tree.map(
            lambda leaf: jnp.zeros((*leaf.shape[:2], slots, leaf.shape[3]), leaf.dtype), waiting.layers
        )
        nowhere = jnp.full_like(waiting.positions, -1, shape=_of(waiting.positions, 1, slots))
        return waiting._replace(done=jnp.ones_like(waiting.done), keys=keys, layers=layers, positions=nowhere)

    found: Rows = by_rows(empty, None, waiting)
    return found


@partial(jax.jit, donate_argnames=("rows",))
def seat(rows: Rows, waiting: Rows, seats: Seats, used: Array) -> Rows:
    """Rows with some of them replaced by rows that wait, whose prompts come to lie before the next slot.

    Args:
      rows: those that are written; not to be used any more.
      waiting: those that wait.
      seats: who takes whose place.
      used: slots that each device has used, at least as many as a prompt that waits has.
    """

    def replace(_: Any, given: tuple[Rows, Rows, Seats, Array]) -> Rows:
        rows, waiting, seats, (used,) = given
        new, source = seats.taken >= 0, jnp.maximum(seats.taken, 0)
        slots, width = rows.positions.shape[1], waiting.positions.shape[1]

        def choose(old: Array, fresh: Array) -> Array:
            return jnp.where(new.reshape(-1, *(1,) * (old.ndim - 1)), fresh, old)

        def turn(leaf: Array, axis: int, fill: int) -> Array:
            """`W×…×P×…` as `B×…×S×…`, where the ring stands."""
            room = [(0, slots - width if place == axis else 0) for place in range(leaf.ndim)]
            return jnp.roll(jnp.pad(leaf[source], room, constant_values=fill), used - width, axis)

        layers = jax.tree.map(lambda old, fresh: choose(old, turn(fresh, 2, 0)), rows.layers, waiting.layers)
        return Rows(
            choose(rows.hidden, waiting.hidden[source]),
            choose(rows.prompt_lengths, waiting.prompt_lengths[source]),
            choose(rows.number, jnp.zeros_like(rows.number)),
            choose(rows.done, jnp.zeros_like(rows.done)),
            None if rows.keys is None or seats.keys is None else jnp.where(new, seats.keys, rows.keys),
            layers,
            choose(rows.positions, turn(waiting.positions, 1, -1)),
        )

    found: Rows = by_rows(replace, None, (rows, waiting, seats, used))
    return found


@partial(jax.jit, static_argnames=("slots",))
def with_slots(rows: Rows, used: Array, *, slots: int) -> Rows:
    """The same rows with rings of another size, which hold the last slots that each device has used, where they fit."""

    def move(_: Any, given: tuple[Rows, Array]) -> Rows:
        rows, (used,) = given
        size = rows.positions.shape[1]
        # The last slot that was used and lies here in the new ring, counted from the first one ever.
        last = used - 1 - (used - 1 - jnp.arange(slots)) % slots
        held = (last >= 0) & (last >= used - size)
        layers = jax.tree.map(lambda leaf: jnp.take(leaf, last % size, axis=2), rows.layers)
        return rows._replace(layers=layers, positions=jnp.where(held, rows.positions[:, last % size], -1))

    found: Rows = by_rows(move, None, (rows, used))
    return found


@jax.jit
def some_rows(rows: Rows, chosen: Array) -> Rows:
    """Fewer rows: those of each device that are `chosen` there."""
    found: Rows = by_rows(lambda _, given: jax.tree.map(itemgetter(given[1]), given[0]), None, (rows, chosen))
    return found


@partial(jax.jit, static_argnames=("steps", "writing"), donate_argnames=("rows",))
def write_tokens(
    model: Model, layers: Layers, rows: Rows, limits: Limits, *, steps: int, writing: Writing
) -> tuple[Rows, Column, Array]:
    """Some tokens of each row that goes on.

    Args:
      model: decoder and adapter.
      layers: from `models.decoding.unstacked_on_a_cpu`.
      rows: not to be used any more.
      limits: where to begin, and when to stop.
      steps: n, the most tokens of a row.
      writing: how responses are written.

    Returns:
      The rows, what was written, and the slots that each device has used then.
    """

    def write(shared: tuple[Model, Layers], given: tuple[Rows, Limits]) -> tuple[Rows, Column, Array]:
        (model, layers), (rows, ((used,), (fewer,))) = shared, given
        model = staying(model)
        layers = unstacked(*model) if layers is None else layers
        head, ends = output_head(model[0]), jnp.asarray(writing.end_ids)

        def advance(at: tuple[Array, Rows, Column]) -> tuple[Array, Rows, Column]:
            number, rows, column = at
            scores = logits(rows.hidden, head)
            token = jnp.where(rows.done, 0, _choose(scores, rows, writing.decoding))
            column = _noted(column, number, token, scores, rows.done)
            written = rows.number + ~rows.done
            done = rows.done | jnp.isin(token, ends) | (written >= writing.width)
            positions = jnp.where(done, -1, rows.prompt_lengths + rows.number)
            cache = KVCache(rows.layers, Slots(rows.positions, used + number))
            hidden, cache = decode_step(model[0], step_variables(*model, layers), token, positions, cache)
            rows = rows._replace(
                hidden=hidden, number=written, done=done, layers=cache.layers, positions=cache.slots.positions
            )
            return number + 1, rows, column

        batch = rows.done.shape[0]
        unseen = jnp.zeros((batch, steps))
        nothing = Column(jnp.zeros((batch, steps), jnp.int32), TokenStatistics(unseen, unseen, unseen, unseen, unseen))
        start = (jnp.zeros((), jnp.int32), rows, nothing)

        def goes_on(at: tuple[Array, Rows, Column]) -> Array:
            return anywhere((at[0] < steps) & (jnp.sum(~at[1].done) > fewer), layers)

        number, rows, column = jax.lax.while_loop(goes_on, advance, start)
        return rows, column, (used + number)[None]

    found: tuple[Rows, Column, Array] = by_rows(write, (model, layers), (rows, limits))
    return found


def _of(array: Array, axis: int, size: int) -> tuple[int, ...]:
    """The shape of an array with another size along one axis."""
    return (*array.shape[:axis], size, *array.shape[axis + 1 :])


def _choose(scores: Array, rows: Rows, decoding: Decoding | None) -> Array:
    """The next token `B` of each row by its scores `B×V`."""
    if decoding is None or rows.keys is None:
        return jnp.argmax(scores, axis=-1).astype(jnp.int32)
    return draw_tokens(scores, folded(rows.keys, rows.number), decoding)


def _noted(column: Column, number: Array, token: Array, scores: Array, done: Array) -> Column:
    """With a token `B` more, chosen by `scores` `B×V`; rows that are `done` have none."""
    found = jax.tree.map(lambda leaf: leaf.reshape(-1), distribution_statistics(scores[None], token))
    return jax.tree.map(
        lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, jnp.where(done, 0, part)[:, None], number, 1),
        column,
        Column(token, found),
    )
