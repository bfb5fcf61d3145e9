"""The tokenizer's chat template as the frame of prompts and responses: what stands before, between and behind them.

A model that was trained to chat has only ever seen answers in this frame, so the blanks before an answer and the token
behind it are taken from a conversation that the template itself has written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from star_jax.data.spelling import blanks_at_end
from star_jax.data.tasks.bounded import Compiled, chat_environment, compiled
from star_jax.errors import ConfigError, DataError

CHAT_DATE = "26 Jul 2024"
"""What chat templates are told of today's date: with the real one, a pool's prompts would change overnight. This is
the date that Llama's templates fall back to."""

MESSAGE, ANSWER = "a message", "the answer"
"""Of the conversation that a template is asked to write."""

PROBE = "message 7351"
"""A message that no template has by itself: it shows whether what is asked is written."""

Turns = list[dict[str, str]]


class ChatFormat(NamedTuple):
    """How a conversation is written.

    Attributes:
      prompt: message -> text of a conversation that the model is to continue, without blanks at its end.
      between: the blanks that the template has between such a text and the answer.
      end_id: the token that the template writes behind an answer and the tokenizer knows as one of its own, special or
        merely added; None where it writes none.
    """

    prompt: Callable[[str], str]
    between: str
    end_id: int | None


def chat_format(tokenizer: Any, system: str | None) -> ChatFormat:
    """The frame that a tokenizer's template gives to a message and its answer.

    Args:
      tokenizer: the model's.
      system: the message before the user's, or None.

    Raises:
      ConfigError: there is no template, or it refuses a conversation of one message and one answer.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise ConfigError(
            "format.chat is true and the model's tokenizer has no chat template; set it to false, or choose a model "
            "that was trained to chat"
        )
    opening: Turns = [] if system is None else [{"role": "system", "content": system}]
    question = [*opening, {"role": "user", "content": MESSAGE}]
    try:
        template = _template(tokenizer)
        asked = _written(tokenizer, template, question, open_end=True)
        answered = _written(tokenizer, template, [*question, {"role": "assistant", "content": ANSWER}])
        probed = _written(tokenizer, template, [*opening, {"role": "user", "content": PROBE}], open_end=True)
    except Exception as error:  # templates refuse what they do not know in ways of their own
        told = "" if system is None else "; does it take a system message? If not, set format.system to none"
        raise ConfigError(f"the model's chat template cannot be filled in ({error}){told}") from error
    if PROBE not in probed:
        raise ConfigError(
            "the model's chat template does not write the user's message into the prompt; set format.chat to false, or "
            "take a model whose template does"
        )
    if system is not None and system.strip() not in probed:
        raise ConfigError(
            "the model's chat template does not write the system message into the prompt; set format.system to none"
        )
    blanks = blanks_at_end(asked)

    def prompt(text: str) -> str:
        turns = [*opening, {"role": "user", "content": text}]
        try:
            written = _written(tokenizer, template, turns, open_end=True)
        except Exception as error:  # as above, and of what this message holds
            raise DataError(f"the model's chat template cannot be filled in with this message ({error})") from error
        return written.removesuffix(blanks)

    return ChatFormat(prompt, blanks + _between(asked, answered), _end_of_turn(tokenizer, answered))


def end_of_turn(tokenizer: Any) -> int | None:
    """The token that ends what the model says in a chat, by its template; None where there is none."""
    if getattr(tokenizer, "chat_template", None) is None:
        return None
    try:
        turns = [{"role": "user", "content": MESSAGE}, {"role": "assistant", "content": ANSWER}]
        return _end_of_turn(tokenizer, _written(tokenizer, _template(tokenizer), turns))
    except Exception:  # a template that cannot be filled in concerns only those who chat
        return None


def _template(tokenizer: Any) -> Compiled:
    # A macro of the same name goes before the function that transformers offers to templates.
    today = f"{{%- macro strftime_now(format) -%}}{CHAT_DATE}{{%- endmacro -%}}"
    return compiled(_ENVIRONMENT, today + tokenizer.get_chat_template())


def _written(tokenizer: Any, template: Compiled, turns: Turns, open_end: bool = False) -> str:
    """What Transformers' `apply_chat_template` writes, by a template that has an end."""
    values = {"messages": turns, "tools": None, "documents": None, "add_generation_prompt": open_end}
    return template.render({**tokenizer.special_tokens_map, **values})


_ENVIRONMENT = chat_environment()


def _between(asked: str, answered: str) -> str:
    """What the template adds between prompt and answer where that is blank; text, such as empty thoughts, it is not."""
    if not answered.startswith(asked):
        return ""
    between = answered[len(asked) :].partition(ANSWER)[0]
    return "" if between.strip() else between


def _end_of_turn(tokenizer: Any, answered: str) -> int | None:
    _, found, tail = answered.rpartition(ANSWER)
    tokens = tokenizer(tail.strip(), add_special_tokens=False)["input_ids"] if found else []
    known = tokenizer.added_tokens_decoder.keys() - {tokenizer.unk_token_id}
    return tokens[0] if tokens and tokens[0] in known else None
