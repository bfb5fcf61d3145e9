"""Seconds by phase against a schedule played on a clock of its own, and against real compilations."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.tracking.timing import (
    PHASES,
    CompileClock,
    Forecast,
    Stopwatch,
    added,
    compile_seconds,
    compiling_now,
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


def test_a_program_is_being_compiled_from_its_lowering_on_until_it_is_compiled():
    clock = CompileClock()
    lowered, compiled = (f"/jax/core/compile/{name}_duration" for name in ("jaxpr_to_mlir_module", "backend_compile"))
    assert not clock.compiling()
    clock.hear("/jax/core/compile/jaxpr_trace_duration", 0.1)
    assert not clock.compiling()
    clock.hear(lowered, 0.1)
    assert clock.compiling()
    other = threading.Thread(target=lambda: (clock.hear(lowered, 0.1), clock.hear(compiled, 0.1)))
    other.start()
    other.join()
    assert clock.compiling()  # another thread's program is not this one's
    clock.hear(compiled, 0.1)
    assert not clock.compiling()


def test_jax_reports_when_it_compiles():
    """The names of the events are JAX's own: this fails where a new version has others."""
    seen = []
    compile_seconds()  # begins to listen

    def look(event, seconds, **_):
        seen.append((event.rpartition("/")[2], compiling_now()))

    jax.monitoring.register_event_duration_secs_listener(look)
    try:
        jax.jit(lambda x: x * 3 + 1)(jnp.ones(3)).block_until_ready()
    finally:
        jax.monitoring.unregister_event_duration_listener(look)
    assert ("jaxpr_to_mlir_module_duration", True) in seen
    assert seen[-1] == ("backend_compile_duration", False)


def row(number, labelled, **seconds):
    return {"round": number, "labelled": labelled} | {f"{name}_seconds": value for name, value in seconds.items()}


def test_a_forecast_knows_that_trainings_grow_and_first_rounds_score_nothing():
    """0.1 s a label, 2 s of scoring in later rounds of star, 1 s of the rest; nothing compiles or loads again."""
    labels = [10, 20, 30]
    forecast = Forecast(dict.fromkeys(("star", "random"), labels), ["star", "random"])
    assert (forecast.rounds, forecast.done, forecast.left) == (6, 0, None)
    forecast.add("star", row(0, 10, train=1.0, evaluate=1.0, compile=40.0, load=9.0))
    assert forecast.left == pytest.approx(0.1 * (20 + 30 + 60) + 5 * 1.0)  # scoring is not known of yet
    forecast.add("star", row(1, 20, train=2.0, evaluate=1.0, score=2.0))
    # Random's first round is as star's; its later ones are taken for star's until one has been seen.
    assert forecast.left == pytest.approx(0.1 * (30 + 60) + 3.0 + (1.0 + 3.0 + 3.0))
    assert forecast.left_after_next == pytest.approx(forecast.left - 0.1 * 30 - 3.0)
    forecast.add("star", row(2, 30, train=3.0, evaluate=1.0, score=2.0))
    forecast.add("random", row(0, 10, train=1.0, evaluate=1.0))
    forecast.add("random", row(1, 20, train=2.0, evaluate=1.0))
    assert forecast.left == pytest.approx(0.1 * 30 + 1.0)
    forecast.add("random", row(2, 30, train=3.0, evaluate=1.0))
    assert (forecast.done, forecast.left) == (6, 0)


def test_a_forecast_leaves_out_what_earlier_sessions_have_done():
    forecast = Forecast({"star": [10, 20, 30]}, ["star", "star"])
    forecast.skip("star", 3)
    forecast.skip("star", 1)
    assert (forecast.done, forecast.left) == (4, None)
    forecast.add("star", row(1, 20, train=2.0))
    assert forecast.left == pytest.approx(3.0)


def test_a_round_without_seconds_or_labels_is_no_division_by_nothing():
    forecast = Forecast({"star": [0, 0]}, ["star"])
    forecast.add("star", row(0, 0, train=None))
    assert forecast.left == 0
