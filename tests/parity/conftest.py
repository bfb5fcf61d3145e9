"""What the comparisons with PyTorch share: programs as users run them, and the tables at the end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import pytest
from gguf_models import REAL_ROW
from peft_adapters import ADAPTER_ROW
from tiny_models import FAMILY_ROW


@pytest.fixture(autouse=True)
def _optimised_programs() -> Iterator[None]:
    """What is compared is what users run."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints a row for each family, way an adapter went, and real model that was compared; failed ones included."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    recorded = [pair for report in reports for pair in report.user_properties]
    families = sorted(row for name, row in recorded if name == FAMILY_ROW)
    header = ("family", "max |Δ logits|", "greedy tokens equal", "repeat with")
    _print(terminalreporter, "Families against Transformers, float32", header, [cells for _, *cells in families])

    errors: dict[tuple[str, str], list[float]] = {}
    for name, row in recorded:
        if name == ADAPTER_ROW:
            errors.setdefault(tuple(row[:2]), []).append(row[2])
    adapters = [(*key, str(len(values)), f"{max(values):.1e}") for key, values in sorted(errors.items())]
    header = ("adapters", "family", "kinds", "max |Δ logits|")
    _print(terminalreporter, "Adapters against PEFT, float32", header, adapters)

    figures: dict[str, dict[str, str]] = {}
    for name, row in recorded:
        if name == REAL_ROW:
            figures.setdefault(row[0], {})[row[1]] = row[2]
    kinds = list(dict.fromkeys(kind for cells in figures.values() for kind in cells))
    real = [(name, *(cells.get(kind, "") for kind in kinds)) for name, cells in figures.items()]
    _print(terminalreporter, "Real models against Transformers, float32", ("model", *kinds), real)


def _print(
    terminalreporter: pytest.TerminalReporter, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    if not rows:
        return
    table = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    terminalreporter.section(title)
    for cells in table:
        terminalreporter.line("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
