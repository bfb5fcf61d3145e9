"""What stands for an example that cannot be labelled, and what must not be taken for a label."""

import pytest

from star_jax.data.skips import is_skip, refuse_near_skip
from star_jax.errors import DataError


@pytest.mark.parametrize(
    ("text", "skip", "want"),
    [
        ("[skip]", "[skip]", True),
        (" [ SKIP ]\n", "[skip]", True),
        ("skip", "[skip]", False),
        ("[skip] it", "[skip]", False),
        ("", "[skip]", False),
        ("Cannot  Label", "cannot label", True),
        ("STRASSE", "straße", True),
    ],
)
def test_capitals_and_blanks_do_not_matter(text, skip, want):
    assert is_skip(text, skip) is want


@pytest.mark.parametrize(("text", "skip"), [("skip", "[skip]"), ("<Skip>", "[skip]"), ("[skip]", "-"), ("n.a.", "n/a")])
def test_what_only_looks_like_it_is_refused(text, skip):
    with pytest.raises(DataError, match=r"for an example that cannot be labelled, or set labels\.skip"):
        refuse_near_skip(text, skip)


@pytest.mark.parametrize(("text", "skip"), [("skipping", "[skip]"), ("7", "[skip]"), ("—", "-"), ("", "-")])
def test_labels_are_left_alone(text, skip):
    refuse_near_skip(text, skip)
