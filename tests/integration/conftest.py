"""Servers that are started for these tests."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import LOGS, ROOT, TOKEN, Server, free_port, program, running


@pytest.fixture(scope="session")
def label_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """On SQLite in a folder of its own, with one account."""
    start, port, folder = (
        program("LABEL_STUDIO", ROOT / ".venv-label-studio" / "bin" / "label-studio"),
        free_port(),
        tmp_path_factory.mktemp("label-studio"),
    )
    account = ("--username", "ann@example.org", "--password", "not-a-secret", "--user-token", TOKEN)
    places = ("--internal-host", "127.0.0.1", "--port", str(port), "--data-dir", str(folder))
    settings = {
        **{"LABEL_STUDIO_BASE_DATA_DIR": str(folder), "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true"},
        **{"COLLECT_ANALYTICS": "false", "LATEST_VERSION_CHECK": "false", "SENTRY_DSN": "", "FRONTEND_SENTRY_DSN": ""},
    }
    url = f"http://127.0.0.1:{port}"
    with running("label-studio", [start, "start", "--no-browser", *places, *account], f"{url}/health", **settings):
        yield Server(url)


@pytest.fixture(scope="session")
def language_model() -> Iterator[Server]:
    """SmolLM2-135M behind `transformers serve`, which speaks OpenAI's protocol and knows no `response_format`."""
    start = program("TRANSFORMERS", Path(sys.executable).parent / "transformers")
    folder = program("SMOLLM2", ROOT / "models" / "smollm2")
    url, port = "http://127.0.0.1", free_port()
    command = [start, "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", folder]
    with running("transformers-serve", command, f"{url}:{port}/health", HF_HUB_OFFLINE="1"):
        yield Server(f"{url}:{port}/v1")


@pytest.fixture
def transcript(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Lines that are written into a file of the test's name, whatever becomes of it."""
    lines: list[str] = []
    yield lines
    LOGS.mkdir(parents=True, exist_ok=True)
    (LOGS / f"{request.node.name}.txt").write_text("\n".join(lines) + "\n")
