"""What a compiler says."""

from __future__ import annotations

from typing import NamedTuple


class Compiled(NamedTuple):
    arguments: float
    temporaries: float
    total: float
