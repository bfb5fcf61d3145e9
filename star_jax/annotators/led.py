"""An annotator of several processes: the leader's is asked, and all have its answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from star_jax.annotators.annotator import Annotator, Answer, Request, Rereadable
from star_jax.parallel.hosts import several, shared


def led(make: Callable[[], Annotator]) -> Annotator:
    """The annotator that `make` gives, made and asked by the leader alone; of a single process, that annotator itself.

    Raises:
      whatever `make` raises.
    """
    if several() is None:
        return make()
    made: list[Annotator] = []

    def rereadable() -> bool:
        made.append(make())
        return isinstance(made[0], Rereadable)

    return (_LedRereadable if shared(rereadable) else _Led)(made)


class _Led:
    """Asks the annotator in `made`, which is empty everywhere but in the leader."""

    def __init__(self, made: Sequence[Any]) -> None:
        self._made = made

    def annotate(self, requests: Sequence[Request]) -> list[Answer]:
        return shared(lambda: list(self._made[0].annotate(requests) or ()))

    def instructions(self, open_requests: Sequence[Request]) -> str:
        return str(shared(lambda: self._made[0].instructions(open_requests)))


class _LedRereadable(_Led):
    """The same for one whose answers can be read again."""

    def review(self) -> None:
        shared(lambda: self._made[0].review())

    def current(self, requests: Sequence[Request]) -> list[Answer]:
        return shared(lambda: list(self._made[0].current(requests)))
