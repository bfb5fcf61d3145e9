"""Numbers in texts, against Python's own arithmetic."""

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from star_jax.data.tasks.numbers import last_number, numbers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,234 and 5.50, then -3", ["1234", "5.5", "-3"]),
        ("1e-05", ["0.00001"]),
        ("1.50E+3 litres", ["1500"]),
        ("-2e2", ["-200"]),
        ("1e5x 2em", ["1", "5", "2"]),
        ("20-5", ["20", "5"]),
        ("none", []),
    ],
)
def test_numbers_in_order_and_in_canonical_form(text, expected):
    assert numbers(text) == expected
    assert last_number(text) == (expected[-1] if expected else None)


@settings(deadline=None)  # a busy machine is no failure
@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e80, max_value=1e80))
def test_floats_are_read_as_python_writes_them(value):
    for written in (repr(value), f"{value:e}", f"{value:f}"):
        read = last_number(f"it is {written}")
        assert Decimal(read) == Decimal(written)
        assert last_number(read) == read
