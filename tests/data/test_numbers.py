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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Blanks: ordinary, no-break, thin, narrow no-break, figure.
        ("1 234 567", ["1234567"]),
        ("12 345,67 \u20ac", ["12345.67"]),
        ("it is 80 000.5.", ["80000.5"]),
        ("1\u00a0234\u00a0567,5", ["1234567.5"]),
        ("1\u2009234.5", ["1234.5"]),
        ("-1\u202f234", ["-1234"]),
        ("999\u2007999", ["999999"]),
        # Apostrophes and underscores.
        ("1'234'567.50", ["1234567.5"]),
        ("1\u2019234", ["1234"]),
        ("1_000_000", ["1000000"]),
        # As in India.
        ("12,34,567.80", ["1234567.8"]),
        ("1,00,000", ["100000"]),
        ("1,23,45,678", ["12345678"]),
        # Decimal commas, where nothing else can be meant.
        ("1.234,50", ["1234.5"]),
        ("1,234.50", ["1234.5"]),
        ("-1.234.567,8", ["-1234567.8"]),
        ("1.234.567", ["1234567"]),
        ("0,125", ["0.125"]),
        ("1.234", ["1.234"]),
        # LaTeX.
        ("1{,}234", ["1234"]),
        ("1{,}234{,}567.5", ["1234567.5"]),
        ("12{,}34{,}567", ["1234567"]),
        ("2{,}5", ["2.5"]),
        ("1\\,234", ["1234"]),
        ("1\\ 234~567", ["1234567"]),
        ("-\\$1{,}234", ["-1234"]),
        ("\\$5 and 7\\%", ["5", "7"]),
        # Currencies behind the sign, signs of other keyboards.
        ("-\u20ac5", ["-5"]),
        ("-$ 5", ["-5"]),
        ("\uff0d5", ["-5"]),
        # Digits that are not ASCII.
        ("\uff11\uff12\uff0c\uff13\uff14\uff15", ["12345"]),
        ("\u0661\u0662\u066c\u0663\u0664\u0665\u066b\u0665", ["12345.5"]),
        ("x\u00b2", []),
        # Several numbers stay several.
        ("3 1 4", ["3", "1", "4"]),
        ("1 234 56", ["1", "234", "56"]),
        ("5 100 200 7", ["5", "100", "200", "7"]),
        ("2024 100", ["2024", "100"]),
        ("0 123", ["0", "123"]),
        ("1, 234", ["1", "234"]),
        ("12,34", ["12", "34"]),
        ("1,2,345", ["1", "2345"]),
        ("3.5 100", ["3.5", "100"]),
        ("1'2", ["1", "2"]),
        ("1\\,23", ["1", "23"]),
        ("(3,14)", ["3", "14"]),
        ("1.2.3", ["1.2", "3"]),
        ("[0,100]", ["0", "100"]),
        ("(1,0,125)", ["1", "0", "125"]),
        ("x in {0,1}", ["0", "1"]),
    ],
)
def test_digits_are_grouped_in_many_ways(text, expected):
    assert numbers(text) == expected
    assert numbers(f"so {text}.") == expected
    assert numbers(" and ".join(expected)) == expected


@settings(deadline=None)
@given(
    st.integers(10**3, 10**12).flatmap(lambda size: st.sampled_from([size, -size])),
    st.integers(0, 999),
    st.sampled_from([",.", ".,", " ,", " .", "\u202f,", "\u00a0.", "'.", "\u2019,", "_."]),
)
def test_a_grouped_number_is_the_number(whole, thousandths, marks):
    written = f"{whole:,}".replace(",", marks[0]) + f"{marks[1]}{thousandths:03d}"
    read = last_number(f"it is {written}")
    assert Decimal(read) == Decimal(f"{whole}.{thousandths:03d}")


@settings(deadline=None)  # a busy machine is no failure
@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e80, max_value=1e80))
def test_floats_are_read_as_python_writes_them(value):
    for written in (repr(value), f"{value:e}", f"{value:f}"):
        read = last_number(f"it is {written}")
        assert Decimal(read) == Decimal(written)
        assert last_number(read) == read
