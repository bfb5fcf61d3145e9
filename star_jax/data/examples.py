"""The two things an example can be: a prompt, which anyone may see, and a prompt with its response.

The scorer and the strategies only ever receive `Prompt`s. A gold response lives in an `Example`, and
examples are held by the annotator alone, so that a label cannot leak into a selection.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Prompt:
    """An unlabelled example.

    Attributes:
      id: unique name within the pool; ties between scores break by it.
      text: what the model reads, template applied.
      group: what the data say of its kind, where a task reads that from a field; for reports, and for
        strategies that need `Group`.
      shown: what a person reads instead of `text`, where that has marks that are meant for the model alone.
    """

    id: str
    text: str
    group: str | None = None
    shown: str | None = field(default=None, compare=False)

    @property
    def readable(self) -> str:
        """What a person reads: the user's own text, without the marks of a chat template."""
        return self.text if self.shown is None else self.shown


@dataclass(frozen=True, slots=True)
class Example:
    """A labelled example.

    Attributes:
      prompt: the prompt the label belongs to.
      response: the text the model should answer with, without end-of-sequence.
    """

    prompt: Prompt
    response: str

    @property
    def id(self) -> str:
        """The prompt's id."""
        return self.prompt.id
