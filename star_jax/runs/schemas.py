"""What the files of a run folder hold: the type of every field that anything computes with.

Fields that are not named here may be anything, so that a folder of a later release can be read as far as it goes; a
field of a former release that is not there is not missed.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from star_jax.config import ExperimentConfig
from star_jax.documents import (
    COUNT,
    NUMBER,
    NUMBERS_BY_NAME,
    SWITCH,
    TEXT,
    WHOLE,
    Kind,
    check_fields,
    either,
    list_of,
)
from star_jax.tracking.timing import PHASES

_FIGURES = (
    *("accuracy", "nll", "brier", "ece", "ece_equal_mass", "auroc", "auroc_base", "aubc", "lora_b_norm"),
    *("train_loss", "score_length_correlation", "validation_accuracy", "validation_nll", "base_accuracy", "label_cost"),
    *(f"{phase}_seconds" for phase in PHASES),
)

METRICS: dict[str, Kind] = {
    **dict.fromkeys(("round", "labelled"), COUNT),
    **dict.fromkeys(_FIGURES, NUMBER.or_null()),
    **dict.fromkeys(
        ("train_steps", "skipped", "corrected", "audited", "audit_agreed", "label_tokens", "validation_examples"),
        COUNT.or_null(),
    ),
    **dict.fromkeys(("group_accuracy", "picked_groups"), NUMBERS_BY_NAME.or_null()),
}
"""Of a row of metrics.jsonl."""

METRICS_REQUIRED = ("round", "labelled")

PREDICTION: dict[str, Kind] = {
    "id": TEXT,
    "correct": SWITCH,
    **dict.fromkeys(("confidence", "uncertainty", "base_uncertainty"), NUMBER.or_null()),
    **dict.fromkeys(("prompt", "prediction", "reference", "group"), TEXT.or_null()),
}
"""Of a row of predictions.jsonl."""

QUERIED: dict[str, Kind] = {
    "id": TEXT,
    "response": TEXT.or_null(),
    "rank": COUNT,
    **dict.fromkeys(("score", "uncertainty", "base_uncertainty", "full_uncertainty", "cost"), NUMBER.or_null()),
    **dict.fromkeys(("prompt", "prediction", "group", "annotator", "labelled_at", "audited"), TEXT.or_null()),
}
"""Of a row of queried.jsonl."""

QUERIED_REQUIRED = ("id", "response")

SUMMARY: dict[str, Kind] = {
    "strategy": TEXT,
    **dict.fromkeys(("seed", "rounds", "labelled"), COUNT),
    **dict.fromkeys(("accuracy", "base_accuracy", "ece", "aubc", "label_cost"), NUMBER.or_null()),
    **dict.fromkeys(("skipped", "corrected", "audited", "audit_agreed", "label_tokens"), COUNT.or_null()),
    "stopped": TEXT.or_null(),
    "seconds": Kind(
        f"an object of numbers with total and {', '.join(PHASES)}",
        lambda value: NUMBERS_BY_NAME.holds(value) and {"total", *PHASES} <= value.keys(),
    ),
}
"""Of summary.json."""

SUMMARY_REQUIRED = ("strategy", "seed", "labelled", "accuracy", "ece", "aubc")

ENVIRONMENT: dict[str, Kind] = dict.fromkeys(("started", "command", "device"), TEXT.or_null())
"""Of environment.json."""


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuses settings of a config.yaml that are of another type than they can be, whichever release wrote it.

    What a value means is not looked at: a former release may have had others, or other limits.

    Raises:
      UnreadableError: naming the section or the setting.
    """
    hints = typing.get_type_hints(ExperimentConfig)
    sections = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    check_fields(settings, {name: Kind("a section", lambda value: isinstance(value, dict)) for name in sections})
    check_fields(settings, {name: _kind(hint) for name, hint in hints.items() if name not in sections})
    for name, hint in sections.items():
        kinds = {key: _kind(inner) for key, inner in typing.get_type_hints(hint).items()}
        check_fields(settings.get(name, {}), kinds)


def _kind(hint: Any) -> Kind:
    """What a declared type takes; texts of which only some are taken count as texts."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        kinds = [_kind(argument) for argument in arguments if argument is not types.NoneType]
        kind = either(*kinds)
        return kind.or_null() if types.NoneType in arguments else kind
    if origin is tuple:
        return list_of(_kind(arguments[0]))
    return {bool: SWITCH, int: WHOLE, float: NUMBER}.get(hint, TEXT)
