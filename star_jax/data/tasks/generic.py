"""The task that a configuration describes: `data.task: generic` with a `format` section, no code.

The model reads the prompt and writes the response straight after it: the two templates, put together, are the text.
Blanks at the end of a prompt are given to the response, since tokenizers make one token of a blank and the word
after it, and a prompt that kept the blank would end in a token that prompt and response together do not have.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from string import ascii_letters, ascii_uppercase
from typing import Any, Literal

from star_jax.config import FormatConfig
from star_jax.data.examples import Prompt
from star_jax.data.spelling import blanks_at_end
from star_jax.data.tasks.chat import chat_format
from star_jax.data.tasks.choices import choice_reader
from star_jax.data.tasks.fields import short, whole_number
from star_jax.data.tasks.numbers import last_number
from star_jax.data.tasks.task import Task, no_group
from star_jax.data.tasks.templates import RowTemplate, UnfilledError
from star_jax.errors import ConfigError, DataError

NAME = "generic"
PROBE = "7351"
"""An answer that shows whether a template prints its column; digits, for a template may ask for a number."""

Parse = Callable[[str], str | None]


def generic_task(config: FormatConfig, tokenizer: Any = None) -> Task:
    """The task of a `format` section.

    Args:
      config: the section.
      tokenizer: the model's, whose chat template is used where `format.chat` says so.

    Raises:
      ConfigError: a template is not valid, there is no chat template or it refuses the message, or an answer cannot
        be read back from its own text.
    """
    chat = chat_format(tokenizer, config.system) if config.chat else None
    blanks = blanks_at_end(config.prompt) if chat is None else chat.between
    prompt_template = RowTemplate("format.prompt", config.prompt.removesuffix(blanks_at_end(config.prompt)))
    response_template = RowTemplate("format.response", config.response)
    parse = _parser(config)
    answers = _closed_answers(config, parse)
    leading = config.response[: len(config.response) - len(config.response.lstrip())]
    begin = blanks + (leading if chat is None else "")

    def prompt(row: Mapping[str, Any]) -> str:
        text = prompt_template.render(row)
        if not text.strip():
            raise DataError("the prompt is empty; fill in the fields that format.prompt is made of")
        if chat is not None:
            return chat.prompt(text.rstrip())
        # Blanks of a column stay where the format has none of its own: the row's response gets them.
        return text.removesuffix(blanks_at_end(text)) if begin else text

    def checked(text: str, before: str) -> str:
        """The response of that text, or of the closed answer that it names."""
        answer = parse(text)
        if answers:
            answer = answer if answer in answers else parse(whole_number(text))
            if answer not in answers:
                raise DataError(f"the response is {short(text)}; expected one of {', '.join(config.answers)}")
            return begin + answers[answer]
        if answer is None:
            raise DataError(f"the response is {short(text)}, with no number in it; format.match is {config.match}")
        return before + text

    def response(row: Mapping[str, Any]) -> str | None:
        try:
            # A column of whole numbers with gaps is one of fractions to many a program.
            whole = {name: whole_number(value) if isinstance(value, float) else value for name, value in row.items()}
            text = response_template.render(whole).rstrip()
        except UnfilledError:
            return None
        if not text:
            return None
        return checked(text, blanks) if chat is None else checked(text.lstrip(), blanks)

    answer_column = None if answers else _answer_column(response_template)

    def from_text(text: str) -> str:
        if answer_column is None:
            return checked(text.strip(), begin)
        written = response({answer_column: text})
        if written is None:
            raise DataError(f"the response is {short(text)}, of which format.response makes nothing")
        return written

    return Task(
        name=NAME,
        prompt=prompt,
        response=response,
        parse=parse,
        candidates=tuple(begin + text for text in answers.values()) or None,
        from_text=from_text,
        group=no_group if config.group is None else _group,
        add_special_tokens=chat is None,
        end_id=None if chat is None else chat.end_id,
        id_field=config.id,
        group_field=config.group,
        label_fields=response_template.columns - prompt_template.columns,
        sparse=True,
        shown=None if chat is None else lambda row: prompt_template.render(row).strip(),
    )


def _answer_column(template: RowTemplate) -> str | None:
    """The column that a person's answer stands for; None where what a person writes is the whole response.

    That is so where the response is made of several columns, and where its only column does not show in it: of
    `{{ 'yes' if label == 1 else 'no' }}`, a person writes what it says.
    """
    if template.only_column is None:
        return None
    try:
        shown = template.render({template.only_column: PROBE})
    except DataError:
        return None
    return template.only_column if PROBE in shown else None


def _group(prompt: Prompt) -> str:
    return prompt.group or "none"


def _parser(config: FormatConfig) -> Parse:
    if config.match == "numeric":
        return last_number
    if config.match == "choice":
        return _choice_parser(config.answers)
    return _normalised


def _normalised(text: str) -> str | None:
    """The text with single blanks and without capitals, or None for no text.

    A letter and its accent are the same in one character or two.
    """
    return " ".join(unicodedata.normalize("NFC", text).split()).casefold() or None


def _choice_parser(answers: tuple[str, ...]) -> Parse:
    lettered = all(len(answer) == 1 and answer in ascii_letters for answer in answers)
    letters = "".join(answers).upper() if lettered else ascii_uppercase[: len(answers)]
    # Some tokenizers write ligatures, wide letters and the like as plain ones, so texts are read as if all did.
    plain = [unicodedata.normalize("NFKC", answer) for answer in answers]
    form: Literal["NFC", "NFKC"] = "NFKC" if len(set(map(_normalised, plain))) == len(answers) else "NFC"
    read = choice_reader(letters, () if lettered else [unicodedata.normalize(form, answer) for answer in answers])

    def parse(text: str) -> str | None:
        place = read(unicodedata.normalize(form, text))
        return None if place is None else answers[place]

    return parse


def _closed_answers(config: FormatConfig, parse: Parse) -> dict[str, str]:
    """What `parse` makes of each closed answer -> its text."""
    answers: dict[str, str] = {}
    for text in config.answers:
        answer = parse(text)
        if answer is None:
            raise ConfigError(f"format.answers holds {short(text)}, which format.match {config.match} cannot read")
        if answer in answers:
            raise ConfigError(
                f"format.answers holds {short(answers[answer])} and {short(text)}, which are one and the same to "
                f"format.match {config.match}"
            )
        answers[answer] = text
    return answers
