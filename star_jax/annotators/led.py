"""An annotator of several processes: the leader's is asked, and all have its answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

from star_jax.annotators.annotator import Annotator
from star_jax.parallel.hosts import several, shared


def led(make: Callable[[], Annotator]) -> Annotator:
    """The annotator that `make` gives, made and asked by the leader alone; of a single process, that annotator itself.

    Raises:
      whatever `make` raises.
    """
    if several() is None:
        return make()
    made: list[Annotator] = []

    def methods() -> list[str]:
        made.append(make())
        return [name for name in dir(made[0]) if not name.startswith("_") and callable(getattr(made[0], name))]

    return cast(Annotator, _Led(made, shared(methods)))


class _Led:
    """Has the methods of the annotator in `made`, which is empty everywhere but in the leader.

    They are attributes, since what an annotator can do besides answering is known by the methods that it has.
    """

    def __init__(self, made: list[Annotator], methods: list[str]) -> None:
        self._made = made
        for name in methods:
            setattr(self, name, partial(self._ask, name))

    def _ask(self, name: str, *arguments: Any) -> Any:
        def answer() -> Any:
            found = getattr(self._made[0], name)(*arguments)
            return list(found) if isinstance(found, Iterator) else found

        return shared(answer)
