"""The README keeps its promises: its links and files exist, and nothing in it is still to be filled in."""

import re
from pathlib import Path

import pytest

from star_jax.registry import STRATEGIES

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / place / "README.md" for place in (".", "experiments/results", "experiments/benchmarks/results")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page):
    links = [link for link in re.findall(r"\]\(([^)]+)\)", page.read_text()) if "://" not in link]
    assert links or page.parent != ROOT
    for link in links:
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        headings = re.findall(r"^#+ (.*)$", target.read_text(), flags=re.M) if target.suffix == ".md" else []
        names = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert not anchor or anchor in names, link


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "configs").glob("*.yaml"))], ids=lambda page: page.name)
def test_nothing_is_left_to_fill_in(page):
    assert not re.findall(r"\b[A-Z]+_[A-Z_]*(?:SECTION|SENTENCE|DEMO|TODO)\b|\bTODO\b", page.read_text())


def test_every_strategy_is_described():
    text = PAGES[0].read_text()
    assert all(f"`{name}`" in text for name in STRATEGIES.names())


def test_map_names_folders_that_exist():
    named = re.findall(r"^  ([a-z_]+)/ ", PAGES[0].read_text(), flags=re.M)
    assert set(named) == {path.parent.name for path in (ROOT / "star_jax").glob("*/__init__.py")}
