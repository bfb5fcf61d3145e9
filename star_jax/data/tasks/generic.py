"""The task that a configuration describes: `data.task: generic` with a `format` section, no code.

The model reads the prompt and writes the response straight after it: the two templates, put together, are the text.
Blanks at the end of a prompt are given to the response, since tokenizers make one token of a blank and the word
after it, and a prompt that kept the blank would end in a token that prompt and response together do not have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from string import ascii_letters, ascii_uppercase
from typing import Any

from star_jax.config import ConfigError, FormatConfig
from star_jax.data.examples import DataError, Prompt
from star_jax.data.tasks.choices import choice_reader
from star_jax.data.tasks.fields import short
from star_jax.data.tasks.numbers import last_number
from star_jax.data.tasks.task import Task, no_group
from star_jax.data.tasks.templates import RowTemplate, UnfilledError

NAME = "generic"
CHAT_DATE = "26 Jul 2024"
"""What chat templates are told of today's date: with the real one, a pool's prompts would change overnight. This is
the date that Llama's templates fall back to."""

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
    blanks = "" if config.chat else _blanks_at_end(config.prompt)
    prompt_template = RowTemplate("format.prompt", config.prompt.removesuffix(blanks))
    response_template = RowTemplate("format.response", config.response)
    parse = _parser(config)
    answers = _closed_answers(config, parse)
    begin = blanks + config.response[: len(config.response) - len(config.response.lstrip())]
    chat = _chat(config, tokenizer) if config.chat else None

    def prompt(row: Mapping[str, Any]) -> str:
        text = prompt_template.render(row)
        if not text.strip():
            raise DataError("the prompt is empty; fill in the fields that format.prompt is made of")
        return text.removesuffix(_blanks_at_end(text)) if chat is None else chat(text)

    def response(row: Mapping[str, Any]) -> str | None:
        try:
            text = response_template.render(row).rstrip()
        except UnfilledError:
            return None
        if not text:
            return None
        answer = parse(text)
        if answers:
            if answer not in answers:
                raise DataError(f"the response is {short(text)}; expected one of {', '.join(config.answers)}")
            return begin + answers[answer]
        if answer is None:
            raise DataError(f"the response is {short(text)}, with no number in it; format.match is {config.match}")
        return blanks + text

    return Task(
        name=NAME,
        prompt=prompt,
        response=response,
        parse=parse,
        candidates=tuple(begin + text for text in answers.values()) or None,
        begin=begin,
        group=no_group if config.group is None else _group,
        add_special_tokens=not config.chat,
        end_id=_end_of_turn(tokenizer) if config.chat else None,
        id_field=config.id,
        group_field=config.group,
    )


def _blanks_at_end(text: str) -> str:
    return text[len(text.rstrip(" \t")) :]


def _group(prompt: Prompt) -> str:
    return prompt.group or "none"


def _parser(config: FormatConfig) -> Parse:
    if config.match == "numeric":
        return last_number
    if config.match == "choice":
        return _choice_parser(config.answers)
    return _normalised


def _normalised(text: str) -> str | None:
    """The text with single blanks and without capitals, or None for no text."""
    return " ".join(text.split()).casefold() or None


def _choice_parser(answers: tuple[str, ...]) -> Parse:
    lettered = all(len(answer) == 1 and answer in ascii_letters for answer in answers)
    letters = "".join(answers).upper() if lettered else ascii_uppercase[: len(answers)]
    read = choice_reader(letters, () if lettered else answers)

    def parse(text: str) -> str | None:
        place = read(text)
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


def _end_of_turn(tokenizer: Any) -> int | None:
    """The special token that the chat template writes after the model's answer; None where it writes none."""
    answer = "the answer"
    turns = [{"role": "user", "content": "a message"}, {"role": "assistant", "content": answer}]
    tail = tokenizer.apply_chat_template(turns, tokenize=False).rpartition(answer)[2]
    tokens = tokenizer(tail.strip(), add_special_tokens=False)["input_ids"]
    added = tokenizer.added_tokens_decoder.items()
    special = {number for number, token in added if token.special} - {tokenizer.unk_token_id}
    return tokens[0] if tokens and tokens[0] in special else None


def _chat(config: FormatConfig, tokenizer: Any) -> Callable[[str], str]:
    """A function message -> text of a conversation that the model is to continue."""
    if getattr(tokenizer, "chat_template", None) is None:
        raise ConfigError(
            "format.chat is true and the model's tokenizer has no chat template; set it to false, or choose a model "
            "that was trained to chat"
        )
    # A macro of the same name goes before the function that transformers offers to templates.
    today = f"{{%- macro strftime_now(format) -%}}{CHAT_DATE}{{%- endmacro -%}}"
    template = today + tokenizer.get_chat_template()
    system = [] if config.system is None else [{"role": "system", "content": config.system}]

    def chat(text: str) -> str:
        return tokenizer.apply_chat_template(
            [*system, {"role": "user", "content": text}],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=True,
        )

    try:
        chat("a message")
    except Exception as error:  # templates refuse what they do not know in ways of their own
        told = "" if config.system is None else "; does it take a system message? If not, set format.system to none"
        raise ConfigError(f"the model's chat template cannot be filled in ({error}){told}") from error
    return chat
