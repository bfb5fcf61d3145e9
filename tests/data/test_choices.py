"""Choices named by letter or by text."""

from string import ascii_uppercase

import pytest

from star_jax.data.tasks.choices import choice_reader


@pytest.mark.parametrize("count", [2, 5, 26])
def test_as_many_letters_as_there_are_choices(count):
    letters = ascii_uppercase[:count]
    read = choice_reader(letters)
    for place, letter in enumerate(ascii_uppercase):
        expected = place if place < count else None
        for text in (
            letter,
            f"({letter.lower()})",
            f"The answer is {letter}.",
            f"{letter}) it",
            f"Because option {letter}",
        ):
            assert read(text) == expected, text


TEXTS = ("light", "light bulb", "C3 plants", "it's dark", "yes")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("light", 0),
        ("Light Bulb.", 1),
        ("light\n  bulb", 1),
        ("It\u2019s dark", 3),
        ("the answer is light bulb, not light", 1),
        ('the answer is: "c3 plants"', 2),
        ("the answer is C", 2),
        ("B", 1),
        ("I think light bulb", 1),
        ("A lamp, so yes", 4),
        ("it may be light or light bulb", None),
        ("they say light and light again", 0),
        ("it is not light", None),
        ("that is not light but yes", 4),
        ("lightning", None),
        ("yesterday", None),
        ("option B or yes", None),
        ("", None),
    ],
)
def test_texts_stand_for_their_letters(text, place):
    assert choice_reader("ABCDE", TEXTS)(text) == place


def test_each_choice_is_read_back_from_its_own_text_whatever_it_holds():
    texts = ("a.b", "(x)", "100 %", "\u0130stanbul", "stra\u00dfe", "C++", "[y|n]", "a")
    read = choice_reader("ABCDEFGH", texts)
    assert [read(text) for text in texts] == list(range(len(texts)))
