"""A language model labels: what it costs, what is kept, what stops it, and who audits it. Against a fake endpoint."""

import csv
import dataclasses
import json
import time

import pytest
from fake_endpoint import FakeEndpoint

from star_jax.annotators.annotator import AnnotatorContext, Request, collect
from star_jax.annotators.csv_file import LABELS_FILE
from star_jax.annotators.llm.annotator import llm
from star_jax.annotators.llm.calls import CALLS_FILE, Call, CallLog
from star_jax.annotators.llm.messages import is_audited
from star_jax.config import ExperimentConfig, FormatConfig, LlmConfig
from star_jax.data.examples import Prompt
from star_jax.data.tasks import get_task
from star_jax.errors import ConfigError, DataError, LabelsNeeded

KEY = "sk-test-0123456789abcdef"
REQUESTS = [Request(Prompt(f"e{number}", f"is {number} even?")) for number in range(12)]
COST = (100 * 2 + 10 * 10) / 1e6
"""Of a call of the fake endpoint at the prices of `settings`."""


def even(body):
    """What a model that can do it answers to the last question."""
    number = int(body["messages"][-1]["content"].split()[1])
    return json.dumps({"answer": "no" if number % 2 else "yes"})


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    opened = FakeEndpoint(even)
    yield opened
    opened.close()


@pytest.fixture
def make(endpoint, tmp_path):
    def annotator(labels=None, answers=("yes", "no"), check=lambda example: None, **changes):
        settings = LlmConfig(model="fake", base_url=endpoint.url, input_price=2, output_price=10, retries=2)
        task = get_task("generic", FormatConfig(answers=answers))
        ids = [request.id for request in REQUESTS]
        settings = dataclasses.replace(settings, **changes)
        return llm(AnnotatorContext(labels or {}, ids, tmp_path, task, check, llm=settings))

    return annotator


def said(answers):
    return {answer.id: answer.response for answer in answers}


def truth(requests=REQUESTS):
    return {one.id: "no" if int(one.id[1:]) % 2 else "yes" for one in requests}


def fill_in(table, response):
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    filled = [row | {"response": row["response"] or response(row["id"])} for row in rows]
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(filled)
    return [row["id"] for row in rows if not row["response"]]


def test_it_labels_counts_and_asks_nothing_twice(make, endpoint, tmp_path):
    answers = collect(make(), REQUESTS)
    assert said(answers) == truth()
    assert all(one.cost == pytest.approx(COST) and one.annotator == "fake" and one.labelled_at for one in answers)
    assert len(endpoint.seen) == len(REQUESTS)
    body = endpoint.seen[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("fake", 0.0, 512)
    assert body["response_format"]["json_schema"]["schema"]["properties"]["answer"]["enum"] == ["yes", "no", None]
    assert set(endpoint.keys) == {f"Bearer {KEY}"}
    assert said(collect(make(), REQUESTS)) == truth()
    assert len(endpoint.seen) == len(REQUESTS)
    log = CallLog(tmp_path / CALLS_FILE)
    assert log.spent() == pytest.approx(len(REQUESTS) * COST)
    assert not any(KEY in file.read_text() for file in tmp_path.rglob("*") if file.is_file())


def test_what_the_pool_has_is_not_paid_for(make, endpoint):
    assert said(collect(make({"e3": "yes"}), REQUESTS[2:5])) == {"e2": "yes", "e3": "yes", "e4": "yes"}
    assert sorted(endpoint.questions()) == ["is 2 even?", "is 4 even?"]


def test_answers_that_cannot_be_used_are_asked_for_again_with_the_reason(make, endpoint):
    bad = iter(["I think so", '{"answer": "perhaps"}'])
    endpoint.reply = lambda body: next(bad, '{"answer": "yes"}')
    answer = collect(make(parallel=1), REQUESTS[:1])[0]
    assert (answer.response, answer.cost) == ("yes", pytest.approx(3 * COST))
    assert all(question.startswith("is 0 even?") for question in endpoint.questions())
    assert "no JSON object" in endpoint.questions()[1]
    assert "expected one of yes, no" in endpoint.questions()[2]


def test_what_it_cannot_answer_is_skipped_and_paid_for(make, endpoint):
    endpoint.reply = lambda body: '{"answer": null}' if "is 1 " in str(body) else "no idea"
    answers = collect(make(), REQUESTS[:2])
    assert [one.skipped for one in answers] == [True, True]
    assert [one.cost for one in answers] == [pytest.approx(3 * COST), pytest.approx(COST)]
    assert len(endpoint.seen) == 4
    assert all(one.skipped for one in collect(make(), REQUESTS[:2]))
    assert len(endpoint.seen) == 4


def test_a_label_that_cannot_be_trained_on_is_asked_for_again(make, endpoint):
    def check(example):
        if len(example.response) > 9:
            raise DataError("the response is too long")

    replies = iter(['{"answer": "a very long one"}'])
    endpoint.reply = lambda body: next(replies, '{"answer": "short"}')
    assert said(collect(make(answers=(), check=check), REQUESTS[:1])) == {"e0": "short"}
    assert "the response is too long" in endpoint.questions()[1]


def test_a_server_that_fails_is_asked_again_and_then_waited_for(make, endpoint):
    failures = iter([(500, "oops"), (429, "slow down")])
    endpoint.reply = lambda body: next(failures, None) or even(body)
    assert said(collect(make(parallel=1), REQUESTS[:1])) == {"e0": "yes"}
    endpoint.reply = lambda body: (503, f"overloaded, {KEY}")
    with pytest.raises(LabelsNeeded, match=r"1 examples wait for a label: .* did not answer in 3 tries") as waits:
        collect(make(parallel=1), REQUESTS[:2])
    assert KEY not in str(waits.value)
    endpoint.reply = even
    assert said(collect(make(), REQUESTS[:2])) == truth(REQUESTS[:2])


def test_a_refused_key_is_no_reason_to_show_it(make, endpoint):
    endpoint.reply = lambda body: (401, f"Incorrect API key provided: {KEY}")
    with pytest.raises(ConfigError, match=r"refuses the call .*Incorrect API key provided: \[key\]"):
        collect(make(), REQUESTS[:3])
    # Nor a part of it, where the message is cut off.
    for before in range(200, 320, 10):
        endpoint.reply = lambda body, before=before: (401, "x" * before + KEY)
        with pytest.raises(ConfigError) as refused:
            collect(make(), REQUESTS[:1])
        assert KEY[:8] not in str(refused.value)


def test_the_spending_limit_holds_keeps_everything_and_can_be_raised(make, endpoint, tmp_path):
    most = COST * 6.5 + 512 * 10 / 1e6
    with pytest.raises(LabelsNeeded, match=r"the spending limit llm.spending_limit .* is reached"):
        collect(make(spending_limit=most), REQUESTS)
    log = CallLog(tmp_path / CALLS_FILE)
    paid = len(endpoint.seen)
    assert 0 < paid < len(REQUESTS)
    assert log.spent() == pytest.approx(paid * COST)
    assert log.spent() <= most
    with pytest.raises(LabelsNeeded):
        collect(make(spending_limit=most), REQUESTS)
    assert len(endpoint.seen) == paid
    assert said(collect(make(spending_limit=1.0), REQUESTS)) == truth()
    assert len(endpoint.seen) == len(REQUESTS)


def test_a_limit_that_is_reached_ends_calls_that_wait_for_others(make, endpoint):
    """Prices whose sums are rounded: what calls under way may cost comes back to nothing all the same."""
    unequal = [Request(Prompt(f"e{number}", f"is {number} even?" + " so" * number**2)) for number in range(12)]
    endpoint.reply = lambda body: time.sleep(0.01) or even(body)
    for limit in (0.0011, 0.0012, 0.0013, 0.0014):
        with pytest.raises(LabelsNeeded, match=r"the spending limit .* is reached"):
            collect(make(spending_limit=limit, input_price=0.3, output_price=11.7, max_tokens=20, parallel=8), unequal)


def test_a_call_that_nobody_counts_is_kept_and_counts_as_the_most_that_it_may_cost(make, endpoint, tmp_path):
    endpoint.reply = lambda body: endpoint.completion(body, even(body)) | {"usage": None}
    most = 512 * 10 / 1e6
    with pytest.raises(LabelsNeeded, match=r"the spending limit .* is reached"):
        collect(make(spending_limit=3 * most), REQUESTS)
    spent, paid = CallLog(tmp_path / CALLS_FILE).spent(), len(endpoint.seen)
    assert 0 < paid * most < spent <= 3 * most
    assert said(collect(make(spending_limit=1.0), REQUESTS)) == truth()
    assert len(endpoint.seen) == len(REQUESTS)


def test_a_person_audits_a_share_without_seeing_the_labels(make, endpoint, tmp_path):
    audited = {one.id for one in REQUESTS if is_audited(one.id, 0.5)}
    assert 0 < len(audited) < len(REQUESTS)
    with pytest.raises(LabelsNeeded, match=rf"{len(audited)} examples need a label.*this audits it"):
        collect(make(audit=0.5), REQUESTS)
    table = tmp_path / LABELS_FILE
    assert set(fill_in(table, lambda name: "no")) == audited
    answers = collect(make(audit=0.5), REQUESTS)
    assert {one.id for one in answers if one.other is not None} == audited
    assert {one.id: one.other for one in answers if one.other} == {n: v for n, v in truth().items() if n in audited}
    assert said(answers) == truth() | dict.fromkeys(audited, "no")
    assert all(one.cost == pytest.approx(COST) for one in answers)
    # What people say is corrected in the table; what the model says stays.
    text = table.read_text().replace(",no", ",[skip]", 1)
    table.write_text(text)
    changed = {one.id for one in make(audit=0.5).current(REQUESTS) if one.skipped}
    assert len(changed) == 1
    assert changed <= audited
    assert len(endpoint.seen) == len(REQUESTS)


def test_labels_so_far_are_its_examples_and_those_of_people_come_first(make, endpoint):
    annotator = make({"e9": "yes"}, shots=3)
    assert annotator.current(REQUESTS[9:10])
    collect(annotator, REQUESTS[:4])
    assert [len(body["messages"]) for body in endpoint.seen] == [4] * 4
    collect(annotator, REQUESTS[4:5])
    messages = endpoint.seen[-1]["messages"]
    assert len(messages) == 2 + 2 * 3
    assert (messages[-3]["content"], messages[-2]["content"]) == ("is 9 even?", '{"answer": "yes"}')


def test_half_a_line_is_passed_over_and_ended(tmp_path):
    log = CallLog(tmp_path / CALLS_FILE)
    one, two = (Call(name, "q", "é\nü", 1, 2, 0.5, "m", "t") for name in "ab")
    log.add(one)
    with log.path.open("ab") as file:
        file.write('{"id": "x", "said": "ü'.encode()[:-1])  # within a letter
    log.add(two)
    assert log.calls() == [one, two]


def test_the_price_of_a_label_is_that_of_calls_so_far(make):
    annotator = make()
    before = annotator.price(REQUESTS)
    assert all(price > 0 for price in before)
    longer = Request(Prompt("e1", "is 1 even?" + " really" * 100))
    collect(annotator, REQUESTS[:4])
    few, many = annotator.price([REQUESTS[5], longer])
    assert few < many
    assert (few + many) / 2 == pytest.approx(COST)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ""}, "llm.model is empty"),
        ({"guidelines": "missing.md"}, "llm.guidelines: missing.md cannot be read"),
        ({"prompt": "{{ prompt"}, "llm.prompt is no valid Jinja template"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(make, changes, message):
    with pytest.raises(ConfigError, match=message):
        make(**changes)


def test_without_a_key_or_a_server_of_ones_own_nothing_starts(make, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="the environment variable OPENAI_API_KEY is not set"):
        make(base_url=None)
    assert make()


def test_a_key_in_the_settings_is_refused_without_being_shown():
    with pytest.raises(ConfigError, match=r"llm.key_variable is no name") as refused:
        LlmConfig(key_variable=KEY)
    assert KEY not in str(refused.value)
    for address in (f"https://me:{KEY}@host/v1", f"https://host/v1?key={KEY}"):
        with pytest.raises(ConfigError, match=r"llm.base_url has a user, a password or a query") as refused:
            LlmConfig(base_url=address)
        assert KEY not in str(refused.value)


def test_its_section_belongs_to_it():
    with pytest.raises(ConfigError, match="llm is the section of annotator llm, and annotator is auto"):
        ExperimentConfig(llm=LlmConfig(model="x"))
