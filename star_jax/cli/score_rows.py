"""What `star-jax score` writes: one object an example, made when it is written, for a pool may be large."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    import numpy as np

    from star_jax.data.examples import Prompt


class ScoredRows(Sequence[dict[str, Any]]):
    """Rows of the output, in the order of the examples.

    Args:
      prompts: `N`.
      columns: measure -> `N`.
      response: gives the text of an example's response by its number; None where it is the file's own.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        columns: Mapping[str, np.ndarray],
        response: Callable[[int], str] | None,
    ) -> None:
        self._prompts, self._columns, self._response = prompts, columns, response

    def __len__(self) -> int:
        return len(self._prompts)

    @overload
    def __getitem__(self, place: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, place: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self._row(number) for number in range(*place.indices(len(self)))]
        return self._row(range(len(self))[place])

    def _row(self, number: int) -> dict[str, Any]:
        figures = {name: values[number].item() for name, values in self._columns.items()}
        response = {} if self._response is None else {"response": self._response(number)}
        return {"id": self._prompts[number].id, **figures, **response}
