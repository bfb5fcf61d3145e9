"""What processes say to each other, with a coordination service of this process and a thread for each of them."""

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from star_jax.annotators.annotator import Answer, Request, Rereadable
from star_jax.annotators.led import led
from star_jax.data.examples import Prompt
from star_jax.errors import ConfigError, DataError, LabelsNeeded
from star_jax.parallel import cluster as clusters
from star_jax.parallel import hosts
from star_jax.parallel.cluster import Cluster
from star_jax.parallel.hosts import gathered, leads, readable, several, shared


class Service:
    """Keys and barriers as JAX's service has them, for two processes."""

    def __init__(self):
        self.known, self.changed, self.barriers = {}, threading.Condition(), {}

    def key_value_set_bytes(self, name, value):
        with self.changed:
            if name in self.known:
                raise jax.errors.JaxRuntimeError("ALREADY_EXISTS")
            self.known[name] = value
            self.changed.notify_all()

    def key_value_set(self, name, value):
        self.key_value_set_bytes(name, value.encode())

    def blocking_key_value_get_bytes(self, name, milliseconds):
        with self.changed:
            if not self.changed.wait_for(lambda: name in self.known, milliseconds / 1000):
                raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: it took too long")
            return self.known[name]

    def blocking_key_value_get(self, name, milliseconds):
        return self.blocking_key_value_get_bytes(name, milliseconds).decode()

    def key_value_delete(self, name):
        with self.changed:
            for key in [key for key in self.known if key.startswith(f"{name}/")]:
                del self.known[key]

    def wait_at_barrier(self, name, milliseconds):
        with self.changed:
            barrier = self.barriers.setdefault(name, threading.Barrier(2))
        try:
            barrier.wait(milliseconds / 1000)
        except threading.BrokenBarrierError:
            raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: it took too long") from None


@pytest.fixture
def together():
    """Calls a function with the cluster of each of two processes at once; what each returns or raises."""
    service, both = Service(), []

    def call(function, patience=20.0):
        if not both:
            both.extend(Cluster(service, index, 2, patience) for index in range(2))

        def outcome(cluster):
            try:
                return function(cluster)
            except Exception as error:
                return error

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(outcome, both))

    call.service = service
    yield call
    for cluster in both:
        cluster.begin_end()  # ends the thread that watches


def test_a_process_by_itself_shares_with_nobody():
    assert several() is None
    assert leads()
    assert shared(lambda: 2 + 2) == 4
    arrays = {"a": np.arange(3), "b": jax.numpy.arange(3)}
    assert readable(arrays) is arrays
    assert gathered(arrays)["b"] is arrays["b"]
    hosts.check_same({"settings": "1"})


def test_one_process_works_and_all_have_what_it_found(together):
    ran = []

    def work(cluster):
        return cluster.shared(lambda: ran.append(cluster.index) or {"found": cluster.index})

    assert together(work) == [{"found": 0}, {"found": 0}]
    assert together(work) == [{"found": 0}, {"found": 0}]
    assert ran == [0, 0]


def test_a_large_result_comes_in_pieces_and_does_not_stay(together, monkeypatch):
    monkeypatch.setattr(clusters, "_PIECE", 1000)
    monkeypatch.setattr(clusters, "_KEPT", 100)
    wanted = np.arange(2000)
    one, other = together(lambda cluster: cluster.shared(lambda: wanted))
    assert one is wanted
    np.testing.assert_array_equal(other, wanted)
    assert not [key for key in together.service.known if "shared" in key]


@pytest.mark.parametrize("error", [ConfigError("lora.rank is 0"), DataError("row 2"), LabelsNeeded("label these")])
def test_an_error_of_the_first_is_raised_by_all(together, error):
    def fail():
        raise error

    one, other = together(lambda cluster: cluster.shared(fail))
    assert one is error
    assert (type(other), str(other)) == (type(error), str(error))


def test_an_error_that_cannot_be_sent_is_told_in_words(together):
    class Odd(Exception):
        def __init__(self, one, two):
            super().__init__(f"{one} and {two}")

    def fail():
        raise Odd(1, 2)

    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        pickle.loads(pickle.dumps(Odd(1, 2)))
    assert [str(end) for end in together(lambda cluster: cluster.shared(fail))] == ["1 and 2", "1 and 2"]


def test_what_the_first_shares_within_what_it_shares_is_its_own(together):
    def work(cluster):
        return cluster.shared(lambda: cluster.shared(lambda: 1) + 1)

    assert together(work) == [2, 2]


def test_a_process_gives_up_where_the_other_does_something_else(together):
    def work(cluster):
        return cluster.shared(lambda: 1) if cluster.index == 0 else None

    error, nothing = together(work, patience=0.2)
    assert nothing is None
    assert isinstance(error, ConfigError)
    assert "process 0 has waited 0 seconds for the other 1" in str(error)


def test_waiting_is_said(together, monkeypatch, capfd):
    monkeypatch.setattr(clusters, "SAID_AFTER", 0.05)
    free = threading.Event()
    timer = threading.Timer(0.5, free.set)
    timer.start()
    together(lambda cluster: cluster.shared(free.wait))
    timer.join()
    assert "star_jax: process 1 of 2 waits for process 0, which works alone\n" in capfd.readouterr().err


def test_other_settings_are_named(together, monkeypatch):
    def work(cluster):
        facts = cluster.facts_of_all({"setting lora.rank": str(cluster.index), "versions": "1"})
        return cluster.shared(lambda: hosts.compare(facts))

    for end in together(work):
        assert isinstance(end, ConfigError)
        assert str(end).startswith("process 1 has other setting lora.rank than process 0; ")


class Sheet:
    """An annotator whose answers can be read again."""

    def __init__(self, asked):
        self.asked = asked

    def annotate(self, requests):
        self.asked.append([request.id for request in requests])
        return [Answer(request.id, "yes") for request in requests]

    def instructions(self, open_requests):
        return f"{len(open_requests)} are open"

    def review(self):
        raise DataError("row 3")

    def current(self, requests):
        return [Answer(request.id, "no") for request in requests]


def test_the_annotator_of_the_first_process_answers_for_all(together, monkeypatch):
    own, asked = threading.local(), []
    monkeypatch.setattr("star_jax.annotators.led.several", lambda: own.cluster)
    monkeypatch.setattr("star_jax.annotators.led.shared", lambda function: own.cluster.shared(function))
    requests = [Request(Prompt("a", "A?"))]

    def work(cluster):
        own.cluster = cluster
        annotator = led(lambda: Sheet(asked))
        with pytest.raises(DataError, match="row 3"):
            annotator.review()
        assert isinstance(annotator, Rereadable)
        told = annotator.annotate(requests), annotator.current(requests), annotator.instructions(requests)
        return [[answer.response for answer in part] for part in told[:2]] + [told[2]]

    assert together(work) == [[["yes"], ["no"], "1 are open"]] * 2
    assert asked == [["a"]]
