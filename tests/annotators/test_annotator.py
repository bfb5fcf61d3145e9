"""The protocol of those who label: what is collected from them, and how one of your own gets its name."""

from pathlib import Path

import pytest

from star_jax.annotators.annotator import AnnotatorContext, Answer, Request, collect, register_annotator
from star_jax.data.examples import Prompt
from star_jax.data.tasks import get_task
from star_jax.errors import ConfigError, LabelsNeeded
from star_jax.registry import ANNOTATORS

REQUESTS = [Request(Prompt(name, f"text of {name}"), rank, 0.5) for rank, name in enumerate("cab")]


class Slow:
    """Knows more with every time that it is asked."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def annotate(self, requests):
        self.asked.append([request.id for request in requests])
        return self.answers[: len(self.asked)]

    def instructions(self, open_requests):
        return f"wait for {', '.join(request.id for request in open_requests)}"


def test_a_request_is_a_prompt_with_why_it_was_picked():
    request = Request(Prompt("a", "1 + 1"), 3, 0.25, "star")
    assert (request.id, request.text, request.rank, request.score, request.strategy) == ("a", "1 + 1", 3, 0.25, "star")
    with pytest.raises(AttributeError):
        request.rank = 0
    with pytest.raises((AttributeError, TypeError)):
        request.response = "2"


def test_answers_come_back_in_the_order_of_the_requests():
    """Whatever the order in which somebody gives them, and with others among them."""
    slow = Slow(Answer("b", "2"), Answer("x", "9"), Answer("a", None, "Ada"), Answer("c", "3"))
    for still_open in ("c, a", "c, a", "c"):
        with pytest.raises(LabelsNeeded, match=f"^wait for {still_open}$"):
            collect(slow, REQUESTS)
    assert collect(slow, REQUESTS) == [Answer("c", "3"), Answer("a", None, "Ada"), Answer("b", "2")]
    assert slow.asked == [["c", "a", "b"]] * 4


def test_a_skipped_example_is_not_open():
    answers = collect(Slow(Answer("a", None)), [REQUESTS[1]])
    assert [answer.skipped for answer in answers] == [True]
    assert not Answer("a", "").skipped
    assert collect(Slow(Answer("a", " [Skip]", "a model")), [REQUESTS[1]]) == [Answer("a", None, "a model")]


def test_nothing_is_asked_for_nothing():
    slow = Slow()
    assert collect(slow, []) == []


@pytest.mark.usefixtures("registries")
def test_an_annotator_of_your_own_is_made_of_what_it_may_know_of_a_run():
    @register_annotator("parrot")
    class Parrot:
        def __init__(self, context):
            self.context = context

        def annotate(self, requests):
            return [Answer(request.id, request.text, "parrot") for request in requests]

        def instructions(self, open_requests):
            return "a parrot answers at once"

    context = AnnotatorContext({}, {"a"}, Path("out"), get_task("gsm8k"))
    parrot = ANNOTATORS.get("parrot")(context)
    assert parrot.context is context
    assert collect(parrot, REQUESTS[:1]) == [Answer("c", "text of c", "parrot")]
    assert ANNOTATORS.names() == ["oracle", "csv", "simulated", "llm", "label_studio", "parrot"]
    with pytest.raises(ConfigError, match=r"^the annotator csv comes with the package; choose another name$"):
        register_annotator("csv")(Parrot)
    with pytest.raises(ConfigError, match=r"annotator names parot, which does not exist \(did you mean parrot\?\)"):
        ANNOTATORS.get("parot", "annotator")


class Hesitant:
    """Answers for what it knows by now, and skips some of it."""

    def __init__(self, skips):
        self.skips, self.known, self.asked = skips, set(), set()

    def annotate(self, requests):
        self.asked.update(one.id for one in requests)
        names = [one.id for one in requests if one.id in self.known]
        return [Answer(name, None if name in self.skips else "x") for name in names]

    def instructions(self, open_requests):
        return f"{len(open_requests)} are open"


def test_what_is_skipped_is_replaced_as_long_as_there_is_something(rng):
    """Against counting by hand, with answers that come little by little."""
    for _ in range(50):
        size, count = 12, int(rng.integers(1, 6))
        order = [Request(Prompt(f"p{number}", "?"), number) for number in range(size)]
        skips = {f"p{number}" for number in range(size) if rng.random() < 0.5}
        kept = [request.id for request in order if request.id not in skips][:count]
        last = size if len(kept) < count else int(kept[-1][1:]) + 1
        person = Hesitant(skips)
        while True:
            try:
                answers = collect(person, order[:count], iter(order[count:]))
            except LabelsNeeded:
                person.known.add(str(rng.choice(sorted(person.asked - person.known))))
                continue
            break
        assert [answer.id for answer in answers] == [request.id for request in order[:last]]
        assert person.asked == {request.id for request in order[:last]}
        assert sum(not answer.skipped for answer in answers) == len(kept)
