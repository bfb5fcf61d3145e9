"""A browser that is on this machine already, since one of its own is nothing that playwright can install everywhere."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
"""Programs that are looked for on the path; the environment variable CHROMIUM names another one."""

SHOTS = Path(__file__).parents[2] / "build" / "browser"
"""Where screenshots go, to be looked at."""


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    assert program, f"no browser is installed: none of {', '.join(NAMES)}; install Chromium, or name one in CHROMIUM"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # Without a sandbox of its own, which containers do not let it make: it only ever sees these pages.
        launched = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A fresh profile; a page that asks anything of another machine, or writes to its console, fails the test."""
    context = browser.new_context(viewport={"width": 1180, "height": 800})
    said: list[str] = []
    asked: list[str] = []
    opened = context.new_page()
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    yield opened
    opened.screenshot(path=SHOTS / "last.png", full_page=True)
    context.close()
    assert not said
    assert all(url.startswith(("http://127.0.0.1:", "data:")) for url in asked)


@pytest.fixture
def shoot(request: pytest.FixtureRequest) -> Callable[[Any, str], None]:
    """Takes a numbered screenshot of the whole page."""
    folder = SHOTS / request.node.name
    shutil.rmtree(folder, ignore_errors=True)
    count = 0

    def take(page: Any, name: str) -> None:
        nonlocal count
        count += 1
        page.screenshot(path=folder / f"{count:02d}-{name}.png", full_page=True)

    return take
