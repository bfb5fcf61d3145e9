"""The page over HTTP: what it shows, what its forms do, and that nobody without the address sees anything."""

import html
import re
import threading
import time
from contextlib import contextmanager

import pytest
from starlette.testclient import TestClient

from star_jax.annotators.label_table import LabelTable
from star_jax.annotators.web.continuation import Continuation
from star_jax.annotators.web.desk import LONGEST_TEXT, Desk
from star_jax.annotators.web.pages import Pages
from star_jax.annotators.web.server import LARGEST_FORM, TOO_LARGE, bind, make_app
from star_jax.annotators.web.view import Look

BASE = "/secret/"


@pytest.fixture
def make_client(runs, tmp_path, monkeypatch):
    def make(table, who="ann", **look):
        desk = Desk(table)
        pages = Pages(desk, Continuation(runs, desk, tmp_path / "labelling.log", 1000.0), runs, Look("mine", **look))
        app = make_app(pages, "secret")
        app.state.who = who
        return TestClient(app, base_url="http://127.0.0.1")

    return make


@pytest.fixture
def client(make_client, make_table):
    return make_client(make_table())


def text_of(page):
    """What a person reads."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page.text)).split())


def test_the_next_example_is_shown_with_the_guess_and_why_it_was_picked(client):
    page = client.get(BASE)
    assert page.status_code == 200
    said = text_of(page)
    assert "is it light?" in said
    assert "the model answers sound" in said
    assert "picked as number 1 by star" in said
    assert "uncertainty 2 (lowest of 3 in this round) score 0.5" in said
    assert "0 of 3 labelled" in said
    assert "round 1 of 2" in said
    assert re.search(r'value="sound" data-key="2">.*?<small>model</small>', page.text, re.DOTALL)


def test_nothing_is_taken_for_html(client):
    client.post(f"{BASE}answer", data={"id": "a", "response": "light"})
    page = client.get(BASE)
    assert "is it &lt;b&gt;sound&lt;/b&gt;?" in page.text
    assert "is it <b>" not in page.text


def test_an_answer_is_on_disk_before_the_page_moves_on(client, rows):
    answer = client.post(f"{BASE}answer", data={"id": "a", "seen": "", "response": "light"}, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, BASE)
    assert (rows()["a"]["response"], rows()["a"]["annotator"]) == ("light", "ann")
    assert "1 of 3 labelled" in text_of(client.get(BASE))


def test_skip_undo_and_correct(client, rows, runs):
    client.post(f"{BASE}skip", data={"id": "a", "reason": "", "other": "my own reason"})
    assert (rows()["a"]["response"], rows()["a"]["skip_reason"]) == ("[skip]", "my own reason")
    assert "1 of 3 labelled, 1 skipped" in text_of(client.get(BASE))
    answer = client.post(f"{BASE}undo", data={}, follow_redirects=False)
    assert answer.headers["location"] == f"{BASE}?id=a"
    assert rows()["a"]["response"] == ""
    client.post(f"{BASE}answer", data={"id": "a", "response": "light"})
    runs.trained = frozenset("a")  # then it cannot be emptied, only corrected
    answer = client.post(f"{BASE}undo", data={})
    assert rows()["a"]["response"] == "light"
    assert "a correction counts from the next training on" in text_of(answer)
    client.post(f"{BASE}answer", data={"id": "a", "seen": "light", "response": "sound"})
    assert rows()["a"]["response"] == "sound"


def test_nothing_is_emptied_while_a_training_may_read_it(client, rows, runs):
    client.post(f"{BASE}answer", data={"id": "a", "response": "light"})
    runs.at_work = True
    client.post(f"{BASE}undo", data={})
    assert rows()["a"]["response"] == "light"


@pytest.mark.parametrize("taken", ["at work", "finished"])
def test_a_run_that_is_started_by_hand_within_an_undo_keeps_the_answer(client, rows, runs, monkeypatch, taken):
    """It locks its folder, waits for the table, and reads the answer that the page was about to empty."""
    client.post(f"{BASE}answer", data={"id": "a", "response": "light"})
    whole = LabelTable.locked

    @contextmanager
    def locked(table):
        runs.at_work, runs.trained = taken == "at work", frozenset("a") if taken == "finished" else frozenset()
        with whole(table):
            yield

    monkeypatch.setattr(LabelTable, "locked", locked)
    answer = client.post(f"{BASE}undo", data={})
    assert answer.status_code == 422
    assert "a run that was started in the meantime has this answer; correct it instead" in text_of(answer)
    assert "is it light?" in text_of(answer)
    assert rows()["a"]["response"] == "light"


def test_nothing_to_undo_is_said(client):
    answer = client.post(f"{BASE}undo", data={})
    assert (answer.status_code, "there is nothing to undo" in text_of(answer)) == (422, True)


def test_what_is_refused_is_said_where_it_was_entered(client, rows):
    answer = client.post(f"{BASE}answer", data={"id": "b", "response": "dark"})
    assert answer.status_code == 422
    assert "choose one of light, sound" in text_of(answer)
    assert 'data-id="b"' in answer.text
    assert rows()["b"]["response"] == ""


def test_a_second_person_is_shown_nothing_of_the_first_and_agreement_is(client, rows):
    for name, label in (("a", "light"), ("b", "sound"), ("c", "light")):
        client.post(f"{BASE}answer", data={"id": name, "response": label})
    client.post(f"{BASE}name", data={"who": "bob ü"})
    page = client.get(f"{BASE}?second=1")
    assert "A second opinion" in text_of(page)
    assert "aria-current" not in page.text
    assert "<small>now</small>" not in page.text
    for name, label in (("a", "light"), ("b", "light")):
        client.post(f"{BASE}answer", data={"id": name, "response": label, "seen": "", "second": "1"})
    assert (rows()["b"]["response"], rows()["b"]["response (bob ü)"]) == ("sound", "light")
    page = client.get(BASE)
    assert "1 of 2 pairs of labels agree (50 %, Cohen's kappa 0.00)" in text_of(page)
    assert "decide b" in text_of(page)
    page = client.get(f"{BASE}?id=b")
    assert "People disagree here" in text_of(page)
    client.post(f"{BASE}answer", data={"id": "b", "response": "light", "decide": "1"})
    assert (rows()["b"]["response"], rows()["b"]["decided_by"]) == ("light", "bob ü")
    assert "decide b" not in text_of(client.get(BASE))


def test_two_people_at_once_are_shown_two_examples(make_client, make_table):
    client = make_client(make_table())
    assert 'data-id="a"' in client.get(BASE).text
    client.post(f"{BASE}name", data={"who": "bob"})
    assert 'data-id="b"' in client.get(BASE).text
    client.post(f"{BASE}name", data={"who": "ann"})
    assert 'data-id="a"' in client.get(BASE).text


def test_free_answers_begin_with_the_guess(make_client, make_table):
    page = make_client(make_table(answers=(), columns={"a": {"topic": "physics"}})).get(BASE)
    assert re.search(r"<textarea[^>]*>sound</textarea>", page.text)
    assert "topic physics" in text_of(page)


def test_the_guess_may_be_hidden_and_costs_and_guidelines_shown(make_client, make_table):
    client = make_client(
        make_table(), guess=False, cost_per_label=0.5, currency="EUR", guidelines="<p>be <em>kind</em></p>"
    )
    client.post(f"{BASE}answer", data={"id": "b", "response": "light"})
    page = client.get(BASE)
    assert "the model answers" not in text_of(page)
    assert "<small>model</small>" not in page.text
    assert "cost: 0.50 of 1.50 EUR this round, 0.50 so far" in text_of(page)
    assert "<em>kind</em>" in page.text


def test_more_answers_than_keys_are_searched(make_client, make_table):
    page = make_client(make_table(answers=tuple(f"topic {n}" for n in range(12)))).get(BASE)
    assert page.text.count('data-key="9"') == 0
    assert 'id="search"' in page.text
    assert page.text.count('<button name="response"') == 12


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/", 404), ("/secre/", 404), ("/secret2/", 404), ("/page.js", 404), (f"{BASE}page.js", 200), (BASE, 200)],
)
def test_nobody_without_the_token_sees_anything(client, path, expected):
    assert client.get(path).status_code == expected


def test_no_form_is_heard_without_the_token(client, rows):
    before = rows()
    assert client.post("/answer", data={"id": "a", "response": "light"}).status_code == 404
    assert client.post("/wrong/answer", data={"id": "a", "response": "light"}).status_code == 404
    assert client.post(f"{BASE}format-the-disk", data={}).status_code == 404
    assert client.get(BASE, headers={"Host": "evil.example"}).status_code == 400
    assert rows() == before


def test_the_browser_is_told_to_ask_nobody_else(client):
    for path in (BASE, f"{BASE}page.css", f"{BASE}page.js", f"{BASE}state"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert (headers["Referrer-Policy"], headers["Cache-Control"]) == ("no-referrer", "no-store")
    page = client.get(BASE).text + client.get(f"{BASE}page.css").text + client.get(f"{BASE}page.js").text
    assert not re.findall(r"https?://", page)


def test_a_form_that_is_too_large_is_refused_and_none_of_it_kept(client, rows):
    answer = client.post(f"{BASE}answer", data={"id": "a", "response": "light", "more": "x" * LARGEST_FORM})
    assert (answer.status_code, TOO_LARGE in text_of(answer)) == (413, True)
    assert rows()["a"]["response"] == ""


def test_the_longest_answer_fits_into_a_form_twice(make_client, make_table, rows):
    client = make_client(make_table(answers=()))
    text = "\U0001f642" * LONGEST_TEXT
    client.post(f"{BASE}answer", data={"id": "a", "response": text})
    answer = client.post(f"{BASE}answer", data={"id": "a", "seen": text, "response": text[1:]}, follow_redirects=False)
    assert (answer.status_code, rows()["a"]["response"] == text[1:]) == (303, True)


def test_one_person_corrects_what_another_has_written(client, rows):
    """What counts is another label then, in an answer as in a skip, and the first person's is kept."""
    client.post(f"{BASE}answer", data={"id": "a", "response": "light"})
    client.post(f"{BASE}name", data={"who": "bob"})
    page = client.get(f"{BASE}?id=a")
    assert "ann has labelled this one; what you choose now counts" in text_of(page)
    assert page.text.count('name="decide" value="1"') == 2
    form = {"id": "a", "seen": "light", "decide": "1"}
    client.post(f"{BASE}answer", data=form | {"response": "sound"})
    row = rows()["a"]
    assert (row["response"], row["annotator"], row["response (ann)"], row["decided_by"]) == (
        *("sound", "bob", "light", "bob"),
    )
    answer = client.post(f"{BASE}skip", data=form | {"reason": "too late"})
    assert "has been labelled 'sound' in the meantime" in text_of(answer)
    client.post(f"{BASE}skip", data=form | {"seen": "sound", "reason": "unclear"})
    assert (rows()["a"]["response"], rows()["a"]["skip_reason"]) == ("[skip]", "unclear")
    assert "decide" not in client.get(f"{BASE}?second=1").text


def test_cookies_of_other_servers_of_this_machine_do_no_harm(client):
    client.post(f"{BASE}name", data={"who": "eve ü"})
    (mine,) = client.cookies.jar
    assert mine.path == BASE
    page = client.get(BASE, headers={"Cookie": f"a/b=1; {mine.name}={mine.value}; x=[1]"})
    assert 'value="eve ü"' in page.text


def test_a_broken_table_is_told_of_and_the_page_goes_on_when_it_is_put_right(client, tmp_path):
    table = tmp_path / "labels.csv"
    whole = table.read_text("utf-8")
    version = client.get(f"{BASE}state").json()
    table.write_text(whole + '"a","x",""\n', "utf-8")
    assert client.get(f"{BASE}state").json() != version
    assert "line 5: id 'a' is already that of line 2" in text_of(client.get(BASE))
    table.write_text(whole, "utf-8")
    assert "is it light?" in text_of(client.get(BASE))


def test_states_of_the_run_are_said(client, runs):
    for name in "abc":
        client.post(f"{BASE}answer", data={"id": name, "response": "light"})
    assert "This round is full" in text_of(client.get(BASE))
    runs.at_work, runs.round = True, (1, 2)
    said = text_of(client.get(BASE))
    assert "The model learns from your labels" in said
    assert "accuracy after round 1: 25.0 %" in said
    runs.at_work, runs.over, runs.trained = False, True, frozenset("abc")
    said = text_of(client.get(BASE))
    assert "All rounds are done" in said
    assert "3 labelled altogether" in said


def test_a_run_that_names_an_example_leads_to_it(client, runs):
    for name in "abc":
        client.post(f"{BASE}answer", data={"id": name, "response": "light"})
    runs.script = "echo \"star_jax: error: labels.csv, line 3: it is too long (id 'b')\"; exit 2"
    client.post(f"{BASE}go-on", data={})
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        page = client.get(BASE)
        if "The run has stopped" in text_of(page):
            break
        threading.Event().wait(0.01)
    assert "line 3: it is too long (id 'b')" in text_of(page)
    assert f'href="{BASE}?id=b"' in page.text


def test_a_port_that_is_taken_is_refused_and_only_this_machine_is_listened_on():
    with bind(0) as bound:
        host, port = bound.getsockname()
        assert host == "127.0.0.1"
        with pytest.raises(OSError, match="in use"):
            bind(port)
