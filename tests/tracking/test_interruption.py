"""Ctrl-C: heeded at the next step, whatever has dropped the exception."""

import contextlib
import gc
import signal
import subprocess
import sys
import threading

import pytest

from star_jax.cli.guard import guarded_main
from star_jax.errors import ConfigError
from star_jax.tracking import interruption
from star_jax.tracking.console import Progress


def in_a_callback_of_the_collector():
    """Ctrl-C while the garbage collector runs a callback, which is where XLA's own has dropped it."""

    def callback(phase, info):
        gc.callbacks.remove(callback)
        signal.raise_signal(signal.SIGINT)

    gc.callbacks.append(callback)
    gc.collect()


def in_a_finaliser():
    class Dying:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    Dying()


def in_a_library_that_makes_an_error_of_it():
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt as interrupt:
        raise RuntimeError("INTERNAL: callback failed") from interrupt


def in_code_that_catches_everything():
    with contextlib.suppress(BaseException):
        signal.raise_signal(signal.SIGINT)


WAYS = (in_a_callback_of_the_collector, in_a_finaliser, in_a_library_that_makes_an_error_of_it)
WAYS += (in_code_that_catches_everything, lambda: signal.raise_signal(signal.SIGINT))


@pytest.mark.parametrize("mode", ["silent", "lines"])
@pytest.mark.parametrize("press", WAYS, ids=lambda way: way.__name__.strip("<>"))
@pytest.mark.parametrize("at", [0, 3, 9])
def test_no_more_than_the_step_under_way_is_done(press, at, mode, capfd):
    done = []

    def work(argv):
        with Progress(mode).task("train", 10, "steps") as tick:
            for number in range(10):
                if number == at:
                    press()
                done.append(number)
                tick(1)
        return 0

    before = signal.getsignal(signal.SIGINT)
    assert guarded_main(work, [], "interrupted; all is kept") == 130
    assert done in (list(range(at)), list(range(at + 1)))
    shown = capfd.readouterr().err
    assert shown.endswith("star_jax: interrupted; all is kept\n")
    assert "Traceback" not in shown
    assert ("stops after this step; Ctrl-C again stops at once" in shown) == (press in WAYS[:2])
    assert signal.getsignal(signal.SIGINT) is before


def test_a_task_does_not_begin_after_it(capfd):
    def work(argv):
        in_code_that_catches_everything()
        with Progress("silent").task("evaluate"):
            pytest.fail("a task began")

    assert guarded_main(work, []) == 130


def test_the_next_command_knows_nothing_of_it():
    with interruption.heeded():
        in_code_that_catches_everything()
        assert interruption.asked()
    assert guarded_main(lambda argv: int(interruption.asked()), []) == 0
    assert guarded_main(lambda argv: interruption.stop_if_asked() or 0, []) == 0


def test_errors_without_an_interrupt_stay_what_they_are(capfd):
    def refuse(argv):
        raise ConfigError("a.yaml:3: wrong")

    assert guarded_main(refuse, []) == 2
    with pytest.raises(ZeroDivisionError):
        guarded_main(lambda argv: 1 // 0, [])


def test_other_unraisable_errors_are_told_of_as_ever(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)

    class Dying:
        def __del__(self):
            raise ValueError("at the end")

    with interruption.heeded():
        Dying()
    assert [found.exc_type for found in told] == [ValueError]


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda number, frame: None], ids=["ignored", "somebody else's"])
def test_a_handler_that_is_there_stays(handler):
    before = signal.signal(signal.SIGINT, handler)
    try:
        with interruption.heeded():
            assert signal.getsignal(signal.SIGINT) is handler
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_of_the_main_thread_nothing_changes():
    codes = []
    thread = threading.Thread(target=lambda: codes.append(guarded_main(lambda argv: 7, [])))
    thread.start()
    thread.join()
    assert codes == [7]


def test_the_second_one_ends_the_process_at_once():
    program = (
        "import signal\n"
        "from star_jax.cli.guard import guarded_main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored, if the tests run in the background
        "def work(argv):\n"
        "    for _ in range(5):\n"
        "        try:\n"
        "            signal.raise_signal(signal.SIGINT)\n"
        "        except BaseException:\n"
        "            pass\n"
        "guarded_main(work, [])\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert answer.returncode == -signal.SIGINT
    assert "Traceback" not in answer.stderr
