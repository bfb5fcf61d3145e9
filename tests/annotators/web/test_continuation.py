"""The run goes on when all is labelled, once, and says why where it does not."""

import time

import pytest

from star_jax.annotators.web import continuation
from star_jax.annotators.web.continuation import Continuation, Phase, last_line
from star_jax.errors import DataError


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def going(desk, runs, clock, tmp_path):
    made = Continuation(runs, desk, tmp_path / "labelling.log", 5.0, clock)
    yield made
    made.stop()


def fill(desk):
    for name in "abc":
        desk.answer(name, "light", "ann")


def until(going, *phases):
    """Looks until the phase is one of these; processes end in their own time."""
    for _ in range(2000):
        if (found := going.look()).phase in phases:
            return found
        time.sleep(0.01)
    raise AssertionError(f"still {going.status}")


def test_it_waits_for_the_last_label_and_then_a_moment(desk, runs, going, clock, tmp_path):
    runs.script = f"echo once >> {tmp_path}/started; exit 3"
    assert going.look().phase is Phase.LABELLING
    fill(desk)
    assert going.look() == (Phase.FULL, "", 5.0)
    clock.now = 4
    assert going.look() == (Phase.FULL, "", 1.0)
    desk.take_back("b", "ann")
    assert going.look().phase is Phase.LABELLING
    desk.answer("b", "light", "ann")
    clock.now = 8
    assert going.look().seconds == 5.0  # counted from the last label
    clock.now = 13
    assert going.look().phase is Phase.RUNNING
    until(going, Phase.FAILED)  # it asks for labels, and the table shows none
    assert (tmp_path / "started").read_text() == "once\n"


def test_what_the_run_asks_for_next_is_labelled_next(desk, runs, going, clock, tmp_path):
    fill(desk)
    runs.script = f"""printf '"d","fresh",""\n' >> {tmp_path}/labels.csv; exit 3"""
    table = tmp_path / "labels.csv"
    table.write_text("\n".join(",".join(line.split(",")[:3]) for line in table.read_text().splitlines()) + "\n")
    going.go_on()
    assert until(going, Phase.LABELLING).line == ""
    assert [name for name, cell in desk.sheet().cells.items() if not cell.text] == ["d"]


def test_a_run_that_fails_is_not_started_again_before_something_has_changed(desk, runs, going, clock):
    fill(desk)
    runs.script = "echo 'star_jax: error: line 3: (id '\"'b'\"') is wrong' >&2; exit 2"
    going.go_on()
    assert until(going, Phase.FAILED).line == "line 3: (id 'b') is wrong"
    clock.now += 100
    assert going.look().phase is Phase.FAILED
    desk.answer("b", "sound", "ann")
    assert going.look().phase is Phase.FULL
    runs.script = "exit 7"
    going.go_on()
    assert "exit code 7" in until(going, Phase.FAILED).line
    runs.script = "exit 0"
    going.go_on()
    runs.over = True
    assert until(going, Phase.FINISHED).line == ""


def test_a_run_that_cannot_be_started_is_told_of_and_tried_again_when_asked(desk, runs, going, clock, monkeypatch):
    fill(desk)
    monkeypatch.setattr(runs, "command", lambda: ["/nowhere/python"])
    going.go_on()
    assert going.status == (Phase.FAILED, "the run cannot be started: /nowhere/python: No such file or directory", 0.0)
    monkeypatch.undo()
    runs.script = "exit 0"
    assert going.look().phase is Phase.FAILED
    going.go_on()
    assert going.status.phase is Phase.RUNNING


def test_what_cannot_be_looked_at_is_told_of_until_it_can(desk, runs, going, clock, monkeypatch):
    def refuse():
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(runs, "busy", refuse)
    assert going.look() == (Phase.FAILED, "Too many open files", 0.0)
    monkeypatch.undo()
    assert going.look().phase is Phase.LABELLING


def test_another_process_at_work_is_waited_for(desk, runs, going, clock):
    fill(desk)
    runs.at_work, runs.script = True, "exit 9"
    clock.now = 50
    assert going.look().phase is Phase.RUNNING
    assert not going.may_take_back()
    runs.at_work = False
    assert going.look().phase is Phase.FULL
    assert going.may_take_back()


def test_two_that_start_at_once_are_no_failure(desk, runs, going, clock):
    fill(desk)
    runs.script = f"echo 'star_jax: error: out/star/seed-0 {continuation.IN_USE}; wait for it'; exit 2"
    going.go_on()
    assert until(going, Phase.FULL).seconds > 0


def test_a_table_that_cannot_be_read_is_not_full(desk, runs, going, tmp_path):
    fill(desk)
    (tmp_path / "labels.csv").write_text("id,prompt\n1,2\n")
    with pytest.raises(DataError):
        desk.missing()
    assert going.look().phase is Phase.LABELLING


def test_somebody_who_labels_before_the_run_has_ended_is_no_failure(desk, runs, going, tmp_path):
    """A run that has asked writes its report, and what it asks for is on the page already."""
    fill(desk)
    table = tmp_path / "labels.csv"
    plain = "\n".join(",".join(line.split(",")[:3]) for line in table.read_text().splitlines())
    table.write_text(plain + "\n")
    wait = f"while ! grep -q '\"sound\"' {table}; do sleep 0.01; done"
    runs.script = f"""printf '"d","fresh",""\\n' >> {table}; {wait}; exit 3"""
    going.go_on()
    for _ in range(2000):
        if desk.missing():
            break
        time.sleep(0.01)
    desk.answer("d", "sound", "ann")
    assert until(going, Phase.FULL, Phase.FAILED).phase is Phase.FULL


def test_the_last_line_is_shown_while_it_runs_and_stopping_is_asked_for_as_by_ctrl_c(desk, runs, going, tmp_path):
    fill(desk)
    runs.script = f"trap 'echo stopped > {tmp_path}/end; exit 130' INT; echo first; echo ready; sleep 60 & wait"
    going.go_on()
    for _ in range(2000):
        if going.look().line == "ready":
            break
        time.sleep(0.01)
    assert going.status == (Phase.RUNNING, "ready", 0.0)
    going.stop()
    assert (tmp_path / "end").read_text() == "stopped\n"
    going.stop()  # twice does no harm


def test_the_last_line_of_a_long_log(tmp_path):
    log = tmp_path / "log"
    assert last_line(log) == ""
    log.write_text("x" * 50_000 + "\n  the end \n\n")
    assert last_line(log) == "the end"
    assert last_line(log, log.stat().st_size) == ""
