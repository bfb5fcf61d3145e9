"""Documents that others wrote: text, JSON and YAML read strictly, whatever is in the file.

A file may be cut off, of another kind, nested without end, or made to fill the memory. Every reader of the package
goes through here, so that each of these has one sentence, and none a traceback. What a document means is its caller's
business, and so is what the user can do about it.
"""

from star_jax.documents.json_text import parse_json, parse_json_object, read_json_object
from star_jax.documents.kinds import (
    COUNT,
    NUMBER,
    NUMBERS_BY_NAME,
    OBJECT,
    SWITCH,
    TEXT,
    WHOLE,
    WHOLE_NUMBERS,
    Kind,
    check_fields,
    either,
    kind_of,
    list_of,
    shown,
)
from star_jax.documents.text import MOST_BYTES, MOST_DIGITS, MOST_LEVELS, UnreadableError, decoded, exists, read_text
from star_jax.documents.yaml_text import MOST_VALUES, YamlMapping, parse_yaml

__all__ = [
    "COUNT",
    "MOST_BYTES",
    "MOST_DIGITS",
    "MOST_LEVELS",
    "MOST_VALUES",
    "NUMBER",
    "NUMBERS_BY_NAME",
    "OBJECT",
    "SWITCH",
    "TEXT",
    "WHOLE",
    "WHOLE_NUMBERS",
    "Kind",
    "UnreadableError",
    "YamlMapping",
    "check_fields",
    "decoded",
    "either",
    "exists",
    "kind_of",
    "list_of",
    "parse_json",
    "parse_json_object",
    "parse_yaml",
    "read_json_object",
    "read_text",
    "shown",
]
