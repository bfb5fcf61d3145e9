"""Seconds by phase against a schedule played on a clock of its own, and against real compilations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.tracking.timing import (
    PHASES,
    CompileClock,
    Stopwatch,
    added,
    compile_seconds,
    row_seconds,
    total_seconds,
)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def make(clock, began=None):
    compiling = CompileClock(clock)
    return Stopwatch(began, clock, compiling.seconds), compiling


def covered(spans):
    """Length of a union of spans on a grid of hundredths."""
    grid = np.zeros(100_000, bool)
    for start, end in spans:
        grid[round(start * 100) : round(end * 100)] = True
    return grid.sum() / 100


def test_nested_and_repeated_events_count_once(rng, clock):
    """Events end in order and lie inside or beside each other, as those of nested traces do."""
    compiling, spans = CompileClock(clock), []

    def play(depth):
        start = clock.now
        for _ in range(rng.integers(0, 4)):
            clock.now += rng.integers(0, 50) / 100
            if depth:
                play(depth - 1)
        clock.now += rng.integers(1, 50) / 100
        spans.append((start, clock.now))
        compiling.hear("/jax/core/compile/jaxpr_trace_duration", clock.now - start, fun_name="f")

    for _ in range(20):
        clock.now += rng.integers(0, 100) / 100
        play(3)
    assert compiling.seconds() == pytest.approx(covered(spans), abs=1e-6)
    compiling.hear("/jax/compilation_cache/compile_time_saved_sec", 50.0)
    assert compiling.seconds() == pytest.approx(covered(spans), abs=1e-6)


def test_phases_leave_nothing_out_and_compilation_is_apart(clock):
    watch, compiling = make(clock, began=90.0)
    with watch.phase("score"):
        clock.now += 5
        compiling.hear("/jax/core/compile/backend_compile_duration", 3.0)
        with watch.phase("write"):
            clock.now += 2
        clock.now += 1
    clock.now += 4
    assert watch.lap() == pytest.approx({"load": 10.0, "compile": 3.0, "score": 3.0, "write": 2.0, "other": 4.0})

    def interrupted():
        with watch.phase("train"):
            clock.now += 7
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    clock.now += 1
    assert watch.lap() == pytest.approx({"compile": 0.0, "train": 7.0, "other": 1.0})


def test_a_lap_within_a_phase_goes_on_in_it(clock):
    watch, _ = make(clock)
    with watch.phase("train"):
        clock.now += 2
        assert watch.lap()["train"] == pytest.approx(2)
        clock.now += 3
    assert watch.lap()["train"] == pytest.approx(3)


def test_seconds_of_a_phase_are_never_negative(clock):
    """A thread may report, in a short phase, a compilation that it began before."""
    watch, compiling = make(clock)
    clock.now += 10
    with watch.phase("write"):
        clock.now += 1
        compiling.hear("/jax/core/compile/backend_compile_duration", 8.0)
    spent = watch.lap()
    assert spent == pytest.approx({"load": 0.0, "other": 10.0, "write": 0.0, "compile": 1.0})


def test_rows_add_up_to_the_whole(rng):
    rounds = [dict(zip(PHASES, rng.uniform(0, 9, len(PHASES)), strict=True)) for _ in range(5)]
    after = {"write": 0.25, "other": 0.5}
    rows = [{"round": number, **row_seconds(spent)} for number, spent in enumerate(rounds)]
    whole = total_seconds(rows, after)
    assert list(whole) == ["total", *PHASES]
    assert whole["total"] == pytest.approx(sum(sum(spent.values()) for spent in rounds) + 0.75, abs=0.05)
    assert whole["total"] == pytest.approx(sum(whole[name] for name in PHASES), abs=0.01)
    assert whole["write"] == pytest.approx(added(rounds)["write"] + 0.25, abs=0.01)
    old = total_seconds([{"train_seconds": 2.0, "score_seconds": None}])
    assert (old["total"], old["train"], old["load"]) == (2.0, 2.0, 0.0)


def test_jax_reports_what_it_compiles():
    x = jnp.ones(3)
    before = compile_seconds()
    program = jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x))
    program(x).block_until_ready()
    compiled = compile_seconds()
    assert compiled > before
    program(x).block_until_ready()
    assert compile_seconds() == compiled
