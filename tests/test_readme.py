"""README and pages keep their promises: links and files exist, and nothing in them is still to be filled in."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLACES = (".", "experiments/results", "experiments/benchmarks/results")
PAGES = [
    *(ROOT / place / "README.md" for place in PLACES),
    *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


def name_of(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page):
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()) if "://" not in link]
    assert links or page != PAGES[0]
    for link in links:
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        headings = re.findall(r"^#+ (.*)$", target.read_text(), flags=re.M) if target.suffix == ".md" else []
        names = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert not anchor or anchor in names, link


@pytest.mark.parametrize("page", [*PAGES, *sorted((ROOT / "configs").glob("*.yaml"))], ids=name_of)
def test_nothing_is_left_to_fill_in(page):
    assert not re.findall(r"\b[A-Z]+_[A-Z_]*(?:SECTION|SENTENCE|DEMO|TODO)\b|\bTODO\b", page.read_text())


def test_the_readme_is_short():
    assert len(PAGES[0].read_text().splitlines()) <= 120


def test_map_names_folders_that_exist():
    part = PAGES[0].read_text().partition("\nstar_jax/\n")[2].partition("\nconfigs/")[0]
    named = re.findall(r"\b([a-z_]+)/", part)
    assert sorted(named) == sorted(path.parent.name for path in (ROOT / "star_jax").glob("*/__init__.py"))
