"""What the comparisons with PyTorch share: programs as users run them, and the table of families at the end."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest
from tiny_models import FAMILY_ROW

_HEADER = ("family", "max |Δ logits|", "greedy tokens equal", "repeat with")


@pytest.fixture(autouse=True)
def _optimised_programs() -> Iterator[None]:
    """What is compared is what users run."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints a row for each family that was compared, failed ones included."""
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.getreports(outcome)]
    rows = sorted(row for report in reports for name, row in report.user_properties if name == FAMILY_ROW)
    if not rows:
        return
    table = [_HEADER, *(cells for _, *cells in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    terminalreporter.section("Families against Transformers, float32")
    for cells in table:
        terminalreporter.line("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
