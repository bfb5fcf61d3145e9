"""YAML read strictly, without the surprises of its version 1.1, and with an end."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import yaml

from star_jax.documents.kinds import kind_of
from star_jax.documents.text import MOST_DIGITS, MOST_LEVELS, UnreadableError

MOST_VALUES = 1_000_000
"""Values of a YAML document once its aliases are written out: a few lines of them can stand for a billion."""


class YamlMapping(NamedTuple):
    """A YAML document: its mapping, and the node that knows the lines; None for a document that is empty."""

    value: dict[str, Any]
    node: yaml.Node | None


def parse_yaml(text: str) -> YamlMapping:
    """The mapping of a YAML text; an empty text is an empty mapping.

    Raises:
      UnreadableError: it is not YAML, no mapping, nested too deeply, larger than `MOST_VALUES` once its aliases are
        written out, or has a number of thousands of digits.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        _refuse_large(node)
        mapping = {} if node is None else loader.construct_document(node)
    except UnreadableError:
        raise
    except yaml.MarkedYAMLError as error:
        line = None if error.problem_mark is None else error.problem_mark.line + 1
        raise UnreadableError(
            f"is not valid YAML: {error.problem}; check indentation, colons and quotes here", line
        ) from (error)
    except yaml.reader.ReaderError as error:
        raise UnreadableError(
            f"is not valid YAML: the character #x{int(error.character):04x} may not be in a text",
            text.count("\n", 0, error.position) + 1,
        ) from error
    except RecursionError as error:
        raise UnreadableError(f"is not valid YAML: nested more than {MOST_LEVELS} levels deep") from error
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, yaml.YAMLError) as error:
        # What a tag such as `!!int` or `!!timestamp` makes of a text that is none fails in ways of its own.
        raise UnreadableError(f"is not valid YAML: a value is not what its tag says ({_on_one_line(error)})") from error
    if not isinstance(mapping, dict):
        raise UnreadableError(f"holds {kind_of(mapping)} and no keys", 1)
    return YamlMapping(mapping, node)


class _Loader(yaml.SafeLoader):
    """Plain scalars without the surprises of YAML 1.1, where `off` is false, `010` is 8 and `1:30` is 90.

    Every text that `yaml.safe_dump` leaves unquoted is a text here too, so that what it writes reads back.
    """


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+][0-9]+)?", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first)


def _refuse_large(node: yaml.Node | None) -> None:
    """Refuses what would not fit once its aliases are written out, and what contains itself."""
    sizes: dict[int, tuple[int, int]] = {}
    open_nodes: set[int] = set()

    def measured(part: yaml.Node, level: int) -> tuple[int, int]:
        """Values of a node, and its levels."""
        if isinstance(part, yaml.ScalarNode):
            if part.tag.endswith(":int") and len(part.value) > MOST_DIGITS:
                raise UnreadableError(f"has a number of {len(part.value):,} digits", part.start_mark.line + 1)
            return 1, 0
        if id(part) in sizes:
            return sizes[id(part)]
        line = part.start_mark.line + 1
        if id(part) in open_nodes:
            raise UnreadableError("is not valid YAML: an alias is part of what it stands for", line)
        if level > MOST_LEVELS:
            raise UnreadableError(f"is not valid YAML: nested more than {MOST_LEVELS} levels deep", line)
        open_nodes.add(id(part))
        inner = [one for pair in part.value for one in (pair if isinstance(pair, tuple) else (pair,))]
        found = [measured(one, level + 1) for one in inner]
        open_nodes.discard(id(part))
        size, levels = 1 + sum(count for count, _ in found), 1 + max((depth for _, depth in found), default=0)
        if size > MOST_VALUES:
            raise UnreadableError("is not valid YAML: its aliases stand for more than a million values", line)
        if levels > MOST_LEVELS:
            raise UnreadableError(f"is not valid YAML: nested more than {MOST_LEVELS} levels deep", line)
        sizes[id(part)] = size, levels
        return size, levels

    if node is not None:
        measured(node, 0)


def _on_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
