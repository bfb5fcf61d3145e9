"""Text to tokens: rows of one example each, within the limits of a run.

Whatever needs the tokenizer belongs here; what becomes of the rows, batches of static shape, is in `batching`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from star_jax.config import TooLong
from star_jax.data.examples import Example, Prompt
from star_jax.data.spelling import Joint, Reader, blanks_at_end, loses_text, response_tokens
from star_jax.data.tasks.chat import end_of_turn
from star_jax.data.tasks.fields import short
from star_jax.data.tasks.task import Task
from star_jax.errors import DataError

_log = logging.getLogger(__name__)

LONG_NAMED = 5
"""Examples over a limit that a message names; it counts the others."""


class TokenizedExample(NamedTuple):
    """One tokenised example: all tokens, and how many of them are the prompt."""

    tokens: np.ndarray
    prompt_length: int


@dataclass(frozen=True)
class Limits:
    """Longest prompt and response in tokens, and what to do with longer ones."""

    prompt: int
    response: int
    too_long: TooLong = "error"


class Fitting(NamedTuple):
    """What the limits leave of some prompts and their responses.

    Attributes:
      kept: the prompts that are used, in order.
      prompts_left_out: over the limit and dropped.
      prompts_cut: over the limit and cut on the left.
      responses_cut: of the prompts kept, those whose response is known, over the limit and cut on the right.
    """

    kept: list[Prompt]
    prompts_left_out: int
    prompts_cut: int
    responses_cut: int


class Encoder:
    """A tokenizer with a task's format and the limits of a run.

    Attributes:
      limits: of prompts and responses.
      eos_id: the token that ends a response in training.
      end_ids: every token that ends a generated response.
    """

    def __init__(
        self, tokenizer: Any, task: Task, limits: Limits, *, vocab_size: int | None = None, end_ids: Sequence[int] = ()
    ) -> None:
        """An encoder.

        Args:
          tokenizer: of the model.
          task: what a prompt and a response are.
          limits: of prompts and responses.
          vocab_size: the model's; tokens that it does not have are refused. None for no check.
          end_ids: tokens that end a response besides the tokenizer's end-of-sequence and the task's own.

        Raises:
          DataError: the token that ends a response is none of the model's.
        """
        self.tokenizer = tokenizer
        self.limits = limits
        self.append_eos = task.append_eos
        self.add_special_tokens = task.add_special_tokens
        self.joint_tokens = task.joint_tokens
        self.eos_id: int = tokenizer.eos_token_id if task.end_id is None else task.end_id
        self.end_ids: tuple[int, ...] = tuple(sorted({*end_ids, tokenizer.eos_token_id, self.eos_id}))
        frame = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, end_of_turn(tokenizer))
        self._reader = Reader(tokenizer, [token for token in frame if token is not None])
        self._vocab_size = vocab_size
        self._check_vocabulary("the end of a response", [self.eos_id])

    def prompts(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        """Tokens of each prompt, with special tokens as the tokenizer adds them, unless the text has its own.

        What the tokenizer adds behind the text is left out: a prompt goes on in its response. Blanks at its end are
        the response's, since tokenizers make one token of a blank and the word behind it.

        Raises:
          DataError: a prompt is longer than the limit and `too_long` is not `truncate-left`; `within_limits`
            leaves such prompts out beforehand where it is `drop`.
        """
        encoded = self._asked(prompts)
        if self.limits.too_long != "truncate-left":
            self._refuse_long("prompt", prompts, [len(text.ids) for text in encoded])
        return [self._fit_prompt(prompt, text.ids) for prompt, text in zip(prompts, encoded, strict=True)]

    def examples(self, examples: Sequence[Example], *, counted: bool = False) -> list[TokenizedExample]:
        """Tokens of each prompt followed by its response.

        A row begins with the tokens that `prompts` gives, and the response is spelled as what follows them. Where the
        task has `joint_tokens`, the text is tokenised as one instead, and a token belongs to the response if it ends
        behind the last character of the prompt. End-of-sequence is part of the response where the task says so.
        Responses that are cut are counted and logged.

        Args:
          examples: prompts with responses.
          counted: whether `within_limits` has said already how many of these are cut.

        Raises:
          DataError: a prompt or a response is empty, or over its limit where that is an error.
        """
        rows, cut = self._fit_responses(examples, self._split(examples))
        if cut and not counted:
            self._say_cut(cut, len(rows))
        return rows

    def candidates(self, prompts: Sequence[Prompt], candidates: Sequence[str]) -> list[TokenizedExample]:
        """Tokens of every prompt with every candidate behind it, the candidates of a prompt side by side.

        Raises:
          DataError: as `examples`; and a candidate is over the limit, whatever `too_long` says, since two answers
            that are cut may become one and the same.
        """
        examples = [Example(prompt, text) for prompt in prompts for text in candidates]
        rows = []
        for example, (prompt, response) in zip(examples, self._split(examples), strict=True):
            if len(response) > self.limits.response:
                raise DataError(
                    f"the answer {example.response!r} has {len(response)} tokens after the prompt of example "
                    f"{example.id}, over the limit of {self.limits.response}; raise data.max_response_tokens, for an "
                    "answer of a closed set is never cut"
                )
            rows.append(_row(prompt, response))
        return rows

    def within_limits(self, prompts: Sequence[Prompt], labels: Mapping[str, str]) -> Fitting:
        """Applies `too_long` before a run starts, so that no round fails over a length; counts are logged too.

        Where it is `drop`, prompts over the limit are left out. A response over the limit is cut when it is trained
        on: leaving its example out would let a hidden response decide what the pool is.

        Args:
          prompts: all of them, labelled or not.
          labels: id -> response, for as many as are known.

        Raises:
          DataError: `too_long` is `error` and a prompt or a response is over its limit, or one has no tokens.
        """
        encoded = self._asked(prompts)
        if self.limits.too_long == "error":
            self._refuse_long("prompt", prompts, [len(text.ids) for text in encoded])
        kept, long = [], 0
        for prompt, text in zip(prompts, encoded, strict=True):
            over = len(text.ids) > self.limits.prompt
            long += over
            if not (over and self.limits.too_long == "drop"):
                self._fit_prompt(prompt, text.ids)
                kept.append(prompt)
        if long:
            verb = "left out" if self.limits.too_long == "drop" else "cut on the left"
            _log.warning("%d of %d prompts are over %d tokens and are %s", long, len(prompts), self.limits.prompt, verb)
        labelled = [Example(prompt, labels[prompt.id]) for prompt in kept if prompt.id in labels]
        parts = self._split(labelled)
        responses_cut = self._fit_responses(labelled, parts)[1]
        if responses_cut:
            self._say_cut(responses_cut, len(labelled))
        self._say_unwritable(labelled, [tokens for _, tokens in parts])
        left_out = len(prompts) - len(kept)
        return Fitting(kept, left_out, long - left_out, responses_cut)

    def text(self, tokens: Sequence[int] | np.ndarray) -> str:
        """Text of response tokens without those that begin, end or fill up a text; others that are special stay."""
        ended = len(tokens) > 0 and int(tokens[-1]) in self.end_ids
        return self._reader.text(tokens[:-1] if ended else tokens)

    def readings(self, examples: Sequence[Example]) -> list[str]:
        """What `text` makes of each response that is written with the very tokens that are trained on, uncut.

        It differs from the response where the tokenizer changes characters or blanks; where it loses some, the response
        itself is given.
        """
        parts = zip(examples, self._split(examples), strict=True)
        return [self._reading(example, tokens) for example, (_, tokens) in parts]

    def _reading(self, example: Example, tokens: Sequence[int]) -> str:
        return example.response if self._loses(example, tokens) else self.text(tokens)

    def _fit_responses(
        self, examples: Sequence[Example], parts: Sequence[tuple[np.ndarray, list[int]]]
    ) -> tuple[list[TokenizedExample], int]:
        """The rows, and how many responses were cut; `parts` as `_split` makes them."""
        if self.limits.too_long == "error":
            self._refuse_long("response", examples, [len(response) for _, response in parts])
        rows, cut = [], 0
        for _, (prompt, response) in zip(examples, parts, strict=True):
            if len(response) > self.limits.response:
                response, cut = response[: self.limits.response], cut + 1
            rows.append(_row(prompt, response))
        return rows, cut

    def _split(self, examples: Sequence[Example]) -> list[tuple[np.ndarray, list[int]]]:
        """Tokens of each prompt, within the limit, and of its response, whatever its length."""
        tails = [self._tail(example) for example in examples]
        texts = [self._text_asked(example.prompt) + tail for example, tail in zip(examples, tails, strict=True)]
        encoded = self._tokenize([example.id for example in examples], texts, return_offsets_mapping=True)
        prompts = [] if self.joint_tokens else list({example.prompt: None for example in examples})
        asked = dict(zip(prompts, self._asked(prompts), strict=True))
        parts = []
        for example, text, tail in zip(examples, encoded, tails, strict=True):
            end = len(self._text_asked(example.prompt))
            if self.joint_tokens:
                start = next((i for i, (_, stop) in enumerate(text.offsets) if stop > end), len(text.ids))
                # Leaving out a prompt that is too long only with this response behind it would tell of the response.
                prompt = self._fit_prompt(example.prompt, text.ids[:start], ("truncate-left", "drop"))
                response = list(text.ids[start:])
            else:
                tokens = asked[example.prompt].ids
                prompt = self._fit_prompt(example.prompt, tokens)
                response = response_tokens(self.tokenizer, tokens, text, end, tail)
            parts.append((prompt, self._ended(example, response)))
        return parts

    def _ended(self, example: Example, response: list[int]) -> list[int]:
        """The tokens of a response with the one that ends it."""
        self._check_vocabulary(f"example {example.id}", response)
        if not response and example.response.strip():
            raise DataError(
                f"example {example.id}: the model's tokenizer has no tokens for the response "
                f"{short(example.response)}; write it otherwise or leave the row out"
            )
        if self.append_eos and response[-1:] != [self.eos_id]:  # a file's text may spell the end itself
            response = [*response, self.eos_id]
        if not response:
            raise DataError(f"example {example.id}: the response is empty; give it a text or leave the row out")
        return response

    def _asked(self, prompts: Sequence[Prompt]) -> list[Joint]:
        """Tokens of each prompt as the model is asked with it, whatever their number."""
        return self._tokenize([prompt.id for prompt in prompts], [self._text_asked(prompt) for prompt in prompts])

    def _text_asked(self, prompt: Prompt) -> str:
        return prompt.text if self.joint_tokens else prompt.text.removesuffix(blanks_at_end(prompt.text))

    def _tail(self, example: Example) -> str:
        """What follows the text that the model is asked with: blanks of the prompt, and the response."""
        blanks = "" if self.joint_tokens else blanks_at_end(example.prompt.text)
        # One blank on either side is one that was meant twice.
        return example.response if blanks == " " and example.response.startswith(" ") else blanks + example.response

    def _say_cut(self, cut: int, of: int) -> None:
        limit = self.limits.response
        _log.warning("%d of %d responses are over %d tokens and are cut on the right", cut, of, limit)

    def _say_unwritable(self, examples: Sequence[Example], responses: Sequence[list[int]]) -> None:
        """Logs how many responses the model cannot write as they stand; `responses` are their tokens."""
        ends = [one for one, tokens in zip(examples, responses, strict=True) if self._ends_early(tokens)]
        if ends:
            _log.warning(
                "%d of %d responses hold a token that ends a response before their end, as example %s does with %s; "
                "the model will stop there",
                *(len(ends), len(examples), ends[0].id, short(ends[0].response)),
            )
        lost = [one for one, tokens in zip(examples, responses, strict=True) if self._loses(one, tokens)]
        if lost:
            _log.warning(
                "%d of %d responses have characters that the model's tokenizer does not know, as example %s does with "
                "%s; no answer will equal them",
                *(len(lost), len(examples), lost[0].id, short(lost[0].response)),
            )

    def _ends_early(self, tokens: Sequence[int]) -> bool:
        return not set(self.end_ids).isdisjoint(tokens[:-1])

    def _loses(self, example: Example, tokens: Sequence[int]) -> bool:
        spelled = example.response.rstrip().endswith(self.tokenizer.convert_ids_to_tokens(self.eos_id))
        written = tokens if spelled or tokens[-1:] != [self.eos_id] else tokens[:-1]
        return self._reader.unknown in written or loses_text(example.response, self._reader.spelled(written))

    def _tokenize(self, names: Sequence[str], texts: list[str], **options: Any) -> list[Joint]:
        """Tokens of each text without those that the tokenizer adds behind it; `names` are those of the examples."""
        if not texts:
            return []
        options |= {"add_special_tokens": self.add_special_tokens, "return_special_tokens_mask": True}
        try:
            encoded = self.tokenizer(texts, **options)
        except Exception as error:  # The tokenizers library raises plain `Exception`.
            raise DataError(
                f"the model's tokenizer cannot read these texts ({error}); are model and task meant for each other?"
            ) from error
        tokens = []
        for place, (name, ids, added) in enumerate(
            zip(names, encoded["input_ids"], encoded["special_tokens_mask"], strict=True)
        ):
            stop = len(ids) - next((i for i, flag in enumerate(reversed(added)) if not flag), len(ids))
            offsets = encoded["offset_mapping"][place][:stop] if "offset_mapping" in encoded else ()
            self._check_vocabulary(f"example {name}", ids[:stop])
            tokens.append(Joint(list(ids[:stop]), offsets))
        return tokens

    def _check_vocabulary(self, what: str, ids: Sequence[int]) -> None:
        largest = max(ids, default=0)
        if self._vocab_size is not None and largest >= self._vocab_size:
            raise DataError(
                f"{what}: the tokenizer's token {self.tokenizer.convert_ids_to_tokens(largest)!r} has the number "
                f"{largest} and the model's vocab_size is {self._vocab_size}; use the tokenizer that the model was "
                "trained with"
            )

    def _fit_prompt(
        self, prompt: Prompt, ids: Sequence[int], cut_where: Sequence[TooLong] = ("truncate-left",)
    ) -> np.ndarray:
        if not ids:
            raise DataError(f"example {prompt.id}: the prompt has no tokens; give it a text or leave the row out")
        limit = self.limits.prompt
        if len(ids) > limit:
            if self.limits.too_long not in cut_where:
                raise DataError(_said_of_long("prompt", [(prompt.id, len(ids))], 1, limit))
            # The left is cut, but not the mark of the beginning, which a model is never without.
            start = list(ids[:1]) if ids[0] == self.tokenizer.bos_token_id else []
            ids = start + list(ids[len(ids) - limit + len(start) :])
        return np.asarray(ids, np.int32)

    def _refuse_long(
        self, part: Literal["prompt", "response"], whose: Sequence[Prompt | Example], lengths: Sequence[int]
    ) -> None:
        """Refuses all prompts, or all responses, that are over their limit at once; `lengths` in tokens."""
        limit = getattr(self.limits, part)
        long = [(one.id, length) for one, length in zip(whose, lengths, strict=True) if length > limit]
        if long:
            raise DataError(_said_of_long(part, long, len(lengths), limit))


def _said_of_long(part: str, long: Sequence[tuple[str, int]], of: int, limit: int) -> str:
    advice = f"raise max_{part}_tokens, or set too_long to drop or truncate-left"
    if len(long) == 1:
        name, length = long[0]
        return f"example {name}: the {part} has {length} tokens, over the limit of {limit}; {advice}"
    named = ", ".join(f"{name} with {length}" for name, length in long[:LONG_NAMED])
    more = f" and {len(long) - LONG_NAMED} more" if len(long) > LONG_NAMED else ""
    longest = max(length for _, length in long)
    return (
        f"{len(long)} of {of} {part}s are over the limit of {limit} tokens ({named}{more}), the longest has {longest}; "
        f"{advice}"
    )


def _row(prompt: np.ndarray, response: Sequence[int]) -> TokenizedExample:
    return TokenizedExample(np.concatenate([prompt, np.asarray(response, np.int32)]), len(prompt))
