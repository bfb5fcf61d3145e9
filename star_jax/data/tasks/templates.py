"""Jinja templates over the columns of a row: what `format.prompt` and `format.response` are.

A column that is missing, or empty in this row, may be asked about (`if`, `or`, `default`) but not printed, and a list
or an object is never printed: a prompt that says "None" or "['a', 'b']" is a mistake nobody would notice. Null, NaN
and blank text are one and the same, since a CSV file has no other way to say that nothing is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, UndefinedError, meta, nodes

from star_jax.data.tasks.bounded import BoundedEnvironment, BoundsError, compiled
from star_jax.data.tasks.fields import check_unicode, field_names, is_missing, short
from star_jax.errors import ConfigError, DataError

WHOLE_ROW = "row"
"""Name by which a template reads columns whose names are no identifiers: `{{ row['Question text'] }}`."""


class UnfilledError(DataError):
    """A column that the template prints is missing or empty in this row."""


class RowTemplate:
    """A template of the configuration.

    Args:
      option: its dotted name, for messages.
      source: Jinja text.

    Attributes:
      columns: those that it reads, as far as it names them.
      only_column: the one column that the text is made of; None where there are several, or none.

    Raises:
      ConfigError: the text is no template.
    """

    def __init__(self, option: str, source: str) -> None:
        self._option = option
        try:
            self._template = compiled(_ENVIRONMENT, source)
        except BoundsError as error:
            raise ConfigError(f"{option} is no template that can be used: {error.message}") from None
        except TemplateSyntaxError as error:
            line = f" in its line {error.lineno}" if "\n" in source else ""
            raise ConfigError(
                f"{option} is no valid Jinja template: {error.message}{line}; a column is written {{{{ name }}}}"
            ) from None
        tree = self._template.tree
        self._columns = meta.find_undeclared_variables(tree) - {WHOLE_ROW}
        columns = self._columns.difference(_ENVIRONMENT.globals) | _columns_of_row(tree)
        self.columns = frozenset(name for name in columns if name is not None)
        self.only_column = columns.pop() if len(columns) == 1 else None

    def render(self, row: Mapping[str, Any]) -> str:
        """The template with the row's columns filled in.

        Raises:
          UnfilledError: a printed column is missing or empty.
          DataError: a printed column is a list or an object, or the template fails on this row.
        """
        columns = {name: _cell(row, name) for name in self._columns if name in row or name not in _ENVIRONMENT.globals}
        try:
            text = self._template.render({WHOLE_ROW: {name: _cell(row, name) for name in row}} | columns)
        except UndefinedError as error:
            raise UnfilledError(f"{error.message}, and {self._option} needs it") from None
        except DataError as error:
            raise DataError(f"{self._option} prints {error}") from None
        except Exception as error:  # the user's own expressions run in there, and can fail in any way
            raise DataError(f"{self._option} cannot be filled in: {error}") from error
        check_unicode(text, f"the text of {self._option}")
        return text


class _Empty(StrictUndefined):
    """A column with nothing in it: false where it is asked about, an error where it is printed."""

    __slots__ = ()

    def __bool__(self) -> bool:  # type: ignore[override]
        return False


def _columns_of_row(tree: nodes.Template) -> set[str | None]:
    """The columns that a template reads by `WHOLE_ROW`; None among them for those that only a row could tell."""
    named = {
        id(read.node): read.arg.value
        for read in tree.find_all(nodes.Getitem)
        if isinstance(read.arg, nodes.Const) and isinstance(read.arg.value, str)
    }
    return {named.get(id(name)) for name in tree.find_all(nodes.Name) if name.name == WHOLE_ROW}


def _cell(row: Mapping[str, Any], name: str) -> Any:
    value = row.get(name)
    if name not in row:
        return StrictUndefined(hint=f"field '{name}' is missing (the row has {field_names(row)})", name=name)
    if is_missing(value) or (isinstance(value, str) and not value.strip()):
        return _Empty(hint=f"field '{name}' is empty", name=name)
    return value


def _printed(value: Any) -> Any:
    if value is None or isinstance(value, Mapping | list | tuple | set | bytes):
        raise DataError(f"{short(value)}; print a text or a number of it, such as {{{{ name[0] }}}}")
    return value


_ENVIRONMENT = BoundedEnvironment(undefined=StrictUndefined, finalize=_printed, keep_trailing_newline=True)
