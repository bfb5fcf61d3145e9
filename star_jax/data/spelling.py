"""Between texts and tokens: what spells a response behind its prompt, and what tokens read as.

A model is asked with the tokens of the prompt alone, so these, and no others, must come first in what it is trained and
scored on. The tokens of both texts as one often begin with others: GPT-2's tokenizer makes one token of two line breaks
at the end of a text and two of them before a word, and a tokenizer that knows no words may make one token of the last
letter of a prompt and the first of its response. Here the response is then spelled as what follows.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

ANCHORS = ("a", "\n", "1", ".", "\u4e2d", "</")
"""Texts of different kinds: a tokenizer that joins one of them with the beginning of a response leaves another apart.
Behind them a response is written as it goes on, and not as it would begin a text, with a blank of the tokenizer's own
in front or without the mark of a word that goes on."""


class Joint(NamedTuple):
    """Prompt and response tokenised as one text.

    Attributes:
      ids: tokens.
      offsets: where in the text each begins and ends, as far as the tokenizer says.
    """

    ids: Sequence[int]
    offsets: Sequence[tuple[int, int]]


def blanks_at_end(text: str) -> str:
    """The blanks and tabs that a text ends in; in a prompt they belong to its response."""
    return text[len(text.rstrip(" \t")) :]


def response_tokens(tokenizer: Any, prompt: Sequence[int], joint: Joint, end: int, response: str) -> list[int]:
    """Tokens that spell the response behind the prompt's.

    These are the ones that the joint text has behind the prompt's tokens, wherever it begins with them. Otherwise they
    are the first of these that read as the two texts do: those that the joint text has behind the prompt; those that
    the response has behind another text, which it does not merge with; those of the response alone.

    Args:
      tokenizer: the model's.
      prompt: tokens of the prompt alone.
      joint: of prompt and response.
      end: length of the prompt in the joint text, in characters.
      response: text behind it.
    """
    # A token that reaches over the boundary may have the number of one that does not, if it stands for the unknown.
    count = len(prompt)
    if list(joint.ids[:count]) == list(prompt) and (not count or joint.offsets[count - 1][1] <= end):
        return list(joint.ids[count:])
    # Tokens that swallow the blanks beside them swallow those of the prompt from the joint text.
    wanted = (_read(tokenizer, joint.ids), unicodedata.normalize("NFC", _read(tokenizer, prompt) + response))
    found = [one for one in _spellings(tokenizer, joint, end, response) if one]
    fitting = (one for one in found if _read(tokenizer, [*prompt, *one]) in wanted)
    return next(fitting, found[-1] if found else [])


def _spellings(tokenizer: Any, joint: Joint, end: int, response: str) -> Iterator[list[int]]:
    first = next((place for place, (_, stop) in enumerate(joint.offsets) if stop > end), len(joint.ids))
    if all(start >= end for start, _ in joint.offsets[first:]):
        yield list(joint.ids[first:])
    for anchor in ANCHORS:
        before, both = _ids(tokenizer, anchor), _ids(tokenizer, anchor + response)
        if before and both[: len(before)] == before:
            yield both[len(before) :]
    yield _ids(tokenizer, response)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _read(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of tokens; a letter and its accent are the same in one character or two."""
    text = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return unicodedata.normalize("NFC", text)


class Reader:
    """Reads tokens back.

    Args:
      tokenizer: the model's.
      left_out: tokens that are no text, such as those of the beginning and the end.

    Attributes:
      unknown: the token that stands for whatever the tokenizer cannot spell; None where it has none.
    """

    def __init__(self, tokenizer: Any, left_out: Collection[int]) -> None:
        self._tokenizer = tokenizer
        unknown = tokenizer.unk_token_id
        # Tokenizers that can spell everything often call the end of a text unknown as well.
        self.unknown: int | None = None if unknown in left_out else unknown
        self._left_out = frozenset([*left_out, unknown])
        # Decoders of byte-level tokenizers take the letters of added tokens for bytes; only ASCII survives that.
        added = {number: token.content for number, token in tokenizer.added_tokens_decoder.items()}
        self._added = {
            number: text for number, text in added.items() if not text.isascii() and self._decode([number]) != text
        }

    def text(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of tokens as it was written: special tokens stay, and blanks before punctuation."""
        return self.spelled([token for token in tokens if int(token) not in self._left_out])

    def spelled(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The text of all tokens, none left out."""
        kept = [int(token) for token in tokens]
        if self._added.keys().isdisjoint(kept):
            return self._decode(kept)
        runs = ((added, list(run)) for added, run in itertools.groupby(kept, self._added.__contains__))
        return "".join(
            "".join(map(self._added.__getitem__, run)) if added else self._decode(run) for added, run in runs
        )

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


def loses_text(text: str, reading: str) -> bool:
    """Whether a reading has fewer characters than the text, not counting blanks, accents and ways to write a character.

    Tokenizers may change characters for others, which is no loss, or leave out those that they do not know.
    """
    return len(_bare(reading)) < len(_bare(text))


def _bare(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text)
    return "".join(one for one in decomposed if not unicodedata.combining(one) and not one.isspace())
