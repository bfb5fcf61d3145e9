"""Requests go to Label Studio as tasks, annotations come back. Against a server in this process."""

import dataclasses
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit
from xml.etree import ElementTree

import pytest

from star_jax.annotators.annotator import AnnotatorContext, Request, Rereadable, collect
from star_jax.annotators.label_studio.annotator import PROJECT_FILE, label_studio
from star_jax.annotators.label_studio.tasks import labelling_interface
from star_jax.config import ExperimentConfig, FormatConfig, LabelStudioConfig
from star_jax.data.examples import Prompt
from star_jax.data.tasks import get_task
from star_jax.errors import ConfigError, DataError, LabelsNeeded

TOKEN = "0123456789abcdef0123456789abcdef01234567"
REQUESTS = [
    Request(Prompt(f"e{number}", f"is {number} even?"), number, 0.5, "star", 0.25, "yes", "star") for number in range(4)
]


class FakeServer:
    """Projects and their tasks, by number; `annotate` does what a person does."""

    def __init__(self):
        self.projects, self.tasks, self.seen = [], {}, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                size = int(self.headers.get("Content-Length") or 0)
                self.answer(json.loads(self.rfile.read(size) or "null"))

            def do_GET(self):
                self.answer(None)

            def answer(self, body):
                path, authorization = urlsplit(self.path).path, self.headers.get("Authorization")
                outer.seen.append((self.command, path, body))
                status, content = outer.reply(path, body, authorization)
                payload = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *parts):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def reply(self, path, body, authorization):
        if path == "/api/token/refresh":
            return 200, {"access": f"access of {body['refresh']}"}
        if authorization not in (f"Token {TOKEN}", "Bearer access of a.b.c"):
            return 401, {"detail": f"bad token {authorization}"}
        if path == "/api/projects/":
            self.projects.append(body)
            self.tasks[len(self.projects)] = []
            return 201, {"id": len(self.projects)}
        number, action = re.fullmatch(r"/api/projects/(\d+)/(\w+)", path).groups()
        if int(number) not in self.tasks:
            return 404, {}
        tasks = self.tasks[int(number)]
        if action == "import":
            tasks += [{"annotations": [], **task, "id": len(tasks) + place} for place, task in enumerate(body)]
            return 201, {"task_count": len(body)}
        return 200, tasks

    def annotate(self, name, text, kind="choices", when="2026-11-28T10:00:00Z", project=1, **fields):
        key = "choices" if kind == "choices" else "text"
        result = [] if text is None else [{"type": kind, "value": {key: [text]}}]
        task = next(task for task in self.tasks[project] if task["data"]["id"] == name)
        fields = {"completed_by": {"email": "ann@example.org"}, "updated_at": when, **fields}
        task["annotations"].append({"result": result, "was_cancelled": text is None, **fields})

    def close(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", TOKEN)
    opened = FakeServer()
    yield opened
    opened.close()


@pytest.fixture
def make(server, tmp_path):
    def annotator(labels=None, answers=("yes", "no"), check=lambda example: None, columns=None, **changes):
        settings = LabelStudioConfig(**{"url": server.url, **changes})
        task = get_task("generic", FormatConfig(answers=answers))
        ids = [request.id for request in REQUESTS]
        context = AnnotatorContext(labels or {}, ids, tmp_path, task, check, label_studio=settings)
        return label_studio(dataclasses.replace(context, columns=columns or {}))

    return annotator


def said(answers):
    return {answer.id: answer.response for answer in answers}


def test_requests_become_tasks_once_and_annotations_come_back(make, server, tmp_path):
    assert isinstance(make(), Rereadable)
    with pytest.raises(LabelsNeeded, match=rf"4 examples need a label: annotate the tasks in {server.url}/projects/1"):
        collect(make(columns={"e1": {"topic": "parity"}}), REQUESTS)
    task = server.tasks[1][1]
    assert task["data"] == {
        **{"topic": "parity", "rank": 1, "score": 0.5, "uncertainty": 0.25, "picked_by": "star", "strategy": "star"},
        **{"id": "e1", "prompt": "is 1 even?"},
    }
    assert task["predictions"][0]["result"][0]["value"] == {"choices": ["yes"]}
    for number, text in enumerate(["yes", "no", None]):
        server.annotate(f"e{number}", text)
    with pytest.raises(LabelsNeeded, match="1 examples need a label"):
        collect(make(), REQUESTS)
    server.annotate("e3", "no")
    answers = collect(make(), REQUESTS)
    assert said(answers) == {"e0": "yes", "e1": "no", "e2": None, "e3": "no"}
    assert {one.annotator for one in answers} == {"ann@example.org"}
    assert (len(server.projects), len(server.tasks[1])) == (1, 4)
    assert json.loads((tmp_path / PROJECT_FILE).read_text()) == {"url": server.url, "project": 1}
    assert not any(TOKEN in file.read_text() for file in tmp_path.iterdir())


def test_what_the_pool_has_is_not_asked_for(make, server):
    known = {request.id: "yes" for request in REQUESTS}
    assert len(collect(make(known), REQUESTS)) == 4
    assert not server.seen
    with pytest.raises(LabelsNeeded, match="1 examples"):
        collect(make(dict.fromkeys(("e0", "e1", "e2"), "yes")), REQUESTS)
    assert [task["data"]["id"] for task in server.tasks[1]] == ["e3"]


def test_the_latest_annotation_counts_and_ground_truth_before_it(make, server):
    with pytest.raises(LabelsNeeded):
        collect(make(), REQUESTS[:1])
    server.annotate("e0", "yes", when="2026-11-28T10:00:00Z")
    server.annotate("e0", "no", when="2026-11-28T11:00:00Z")
    assert said(make().current(REQUESTS[:1])) == {"e0": "no"}
    server.annotate("e0", "yes", when="2026-11-28T09:00:00Z", ground_truth=True)
    assert said(make().current(REQUESTS[:1])) == {"e0": "yes"}


def test_free_answers_are_written(make, server):
    with pytest.raises(LabelsNeeded):
        collect(make(answers=()), REQUESTS[:1])
    server.annotate("e0", "it is", kind="textarea")
    assert said(collect(make(answers=()), REQUESTS[:1])) == {"e0": "it is"}


def test_what_cannot_be_used_is_named_by_its_task(make, server):
    with pytest.raises(LabelsNeeded):
        collect(make(), REQUESTS)
    server.annotate("e0", "perhaps")
    server.annotate("e1", "")
    server.tasks[1][2]["data"]["prompt"] = "another"
    with pytest.raises(DataError) as refused:
        make().annotate(REQUESTS)
    for words in ("task 0", "expected one of yes, no", "task 2", "its prompt is not that of the pool", "projects/1"):
        assert words in str(refused.value)

    def check(example):
        raise DataError("it is too long")

    server.tasks[1] = server.tasks[1][3:]
    server.annotate("e3", "no")
    with pytest.raises(DataError, match=r"task 3: it is too long \(id 'e3'\)"):
        make(check=check).annotate(REQUESTS[3:])


def test_tasks_of_others_in_a_project_of_ones_own_are_left_alone(make, server):
    server.tasks[7] = [{"id": 0, "data": {"text": "not ours"}, "annotations": [{"result": []}]}]
    with pytest.raises(LabelsNeeded, match="projects/7"):
        collect(make(project=7), REQUESTS[:1])
    assert not server.projects
    assert len(server.tasks[7]) == 2
    with pytest.raises(ConfigError, match=r"has no /api/projects/8/export; correct label_studio.project"):
        make(project=8).review()


def test_both_kinds_of_token_are_known_and_neither_is_shown(make, server, monkeypatch):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "a.b.c")
    with pytest.raises(LabelsNeeded):
        collect(make(), REQUESTS[:1])
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "wrong-token")
    with pytest.raises(ConfigError, match="refuses the access token") as refused:
        make().review()
    assert "wrong-token" not in str(refused.value)
    monkeypatch.delenv("LABEL_STUDIO_API_KEY")
    with pytest.raises(ConfigError, match="the environment variable LABEL_STUDIO_API_KEY is not set"):
        make()


def test_a_server_that_is_not_there_is_said_in_a_sentence(make, tmp_path):
    (tmp_path / PROJECT_FILE).write_text(json.dumps({"url": "http://127.0.0.1:9", "project": 1}))
    with pytest.raises(ConfigError, match=r"Label Studio at http://127.0.0.1:9 cannot be reached"):
        make(url="http://127.0.0.1:9").review()
    with pytest.raises(ConfigError, match=r"names a project at http://127.0.0.1:9, and label_studio.url is"):
        make().review()


def test_answers_are_quoted_in_the_interface():
    tree = ElementTree.fromstring(labelling_interface(['a "b" <c> & d', "no"]))
    assert [one.get("value") for one in tree.iter("Choice")] == ['a "b" <c> & d', "no"]
    assert ElementTree.fromstring(labelling_interface(None)).find("TextArea").get("toName") == "prompt"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"url": "localhost:8080"}, "label_studio.url is no address"),
        ({"url": "http://me:secret@host"}, "has a user, a password or a query"),
        ({"key_variable": TOKEN}, "label_studio.key_variable is no name"),
        ({"project": 0}, "label_studio.project is 0"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message) as refused:
        LabelStudioConfig(**changes)
    assert "secret" not in str(refused.value)
    assert TOKEN not in str(refused.value)
    with pytest.raises(ConfigError, match="label_studio is the section of annotator label_studio"):
        ExperimentConfig(label_studio=LabelStudioConfig(project=2))
