"""Axes that show nothing impossible, and names in fonts that have them."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from star_jax.report.drawing import DEFAULT_FONT, drawable, fonts_for, limit_labels, limit_rounds, limit_share


@pytest.fixture
def axes():
    return Figure().subplots()


@pytest.mark.parametrize("values", [[0, 0, 0], [1.0], [0.0, 1.0], [0.5], [0.97, 0.99], [0.01, 0.02], [], [0.3, 0.34]])
def test_shares_lie_between_0_and_1(axes, values):
    limit_share(axes, values)
    low, high = axes.get_ylim()
    assert 0 <= low < high <= 1
    assert high - low >= 0.0999 or (low, high) == (0, 1)
    assert all(low <= value <= high for value in values)
    assert all(0 <= tick <= 1 for tick in axes.get_yticks() if low <= tick <= high)


@pytest.mark.parametrize("labels", [[0], [1], [60], [0, 5], [1, 2, 3], [60, 460], []])
def test_numbers_of_labels_are_whole_and_not_negative(axes, labels):
    limit_labels(axes, labels)
    low, high = axes.get_xlim()
    assert 0 <= low < high
    assert all(low <= value <= high for value in labels)
    assert all(float(tick).is_integer() for tick in axes.get_xticks())


@pytest.mark.parametrize("count", [1, 2, 6, 13, 40])
def test_rounds_have_whole_ticks_within_those_there_are(axes, count):
    limit_rounds(axes, range(count))
    ticks = axes.get_xticks()
    assert set(ticks) <= set(range(count))
    assert len(ticks) <= 13
    assert np.ptp(ticks) > 0 or count == 1


def test_a_name_is_written_with_what_fonts_there_are():
    assert drawable("star Ωмега") == "star Ωмега"
    assert fonts_for(["star"]) == [DEFAULT_FONT]
    nobody = "\U0010fffd"  # private use: no font has it but by accident
    assert drawable(f"a{nobody}b") in ("a.b", f"a{nobody}b")
    assert fonts_for([f"a{nobody}"])[0] == DEFAULT_FONT
