"""Strict TOML: read a file, check it against a model, and say everything that is wrong with it at once.

Each problem is one line, `file: [table] key: cause. next step`. What a file holds is repeated only where a check does
so on purpose; pydantic's habit of quoting the input is never used, for it may be a secret in the wrong place.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from beam_entra.errors import ConfigError, Diagnosis

__all__ = ["Document", "Problem", "Rule", "Table", "check", "parse_toml", "read", "table"]

Document = Mapping[str, Any]
Problem = tuple[tuple[str | int, ...], str]
"""Where (as keys into the document) and what, with the next step."""
Rule = Callable[[Document], Iterable[Problem]]
"""Looks at a raw document, whose types may all be wrong, for what no single key can show."""

_SAYING = {
    "string_type": 'must be text. Put it in quotes: "..."',
    "int_type": "must be a whole number. Write it without quotes",
    "bool_type": "must be true or false. Write it without quotes",
    "list_type": 'must be a list. Write it in brackets: ["...", "..."]',
    "tuple_type": 'must be a list. Write it in brackets: ["...", "..."]',
    "dict_type": "must be a table. Give it a line of its own in brackets, with its keys below",
    "model_type": "must be a table. Give it a line of its own in brackets, with its keys below",
}


class Table(BaseModel):
    """A table of a file: no key that we do not know, no value of another type, never changed."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


M = TypeVar("M", bound=Table)


def read(path: str | PathLike[str], what: str) -> bytes:
    """The file's bytes."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such {what}", Diagnosis(hint=f"check the path of the {what}")) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "the path is malformed"
        hint = f"name the {what}, and see that this user may read it"
        raise ConfigError(f"{path}: the {what} cannot be read: {reason}", Diagnosis(hint=hint)) from None


def parse_toml(data: bytes, file: str) -> dict[str, Any]:
    """The document. A syntax error names line and column."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file}: is not UTF-8 (at line {line}). Save it as UTF-8") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        lines = text.split("\n")
        cause = str(error).replace("at end of document", f"at line {len(lines)}, column {len(lines[-1]) + 1}")
        raise ConfigError(f"{file}: is not TOML: {cause}. Correct that line") from None
    except (ValueError, RecursionError):
        raise ConfigError(f"{file}: is not TOML that can be read: a number is too long or brackets too deep") from None


def check(model: type[M], document: Document, file: str, rules: Iterable[Rule] = ()) -> M:
    """The document as a model.

    Raises:
        ConfigError: One line for each problem, of the model and of the rules.
    """
    problems: list[Problem] = []
    try:
        checked = model.model_validate(document)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False)
        problems = [(detail["loc"], _said(model, detail)) for detail in details]
    problems += [problem for rule in rules for problem in rule(document)]
    if problems:
        lines = (f"{file}: {_place(model, document, where)}: {cause}" for where, cause in problems)
        raise ConfigError("\n".join(dict.fromkeys(lines)))
    return checked


def table(document: Document, name: str) -> Mapping[str, Any]:
    """A table of a raw document; an empty one when it is missing or no table."""
    found = document.get(name)
    return found if isinstance(found, Mapping) else {}


def _place(model: type[Table], document: Document, where: tuple[str | int, ...]) -> str:
    """`[table] key`, and for one of a list `[table] key: entry 2`."""
    entry = f": entry {where[-1] + 1}" if isinstance(where[-1], int) else ""
    keys = [key for key in where if isinstance(key, str) and key != "[key]"]
    names = [key if re.fullmatch(r"[\w-]{1,64}", key, re.ASCII) else ascii(key[:64]) for key in keys]
    if len(names) > 1 and where[-1] != "[key]":
        return f"[{'.'.join(names[:-1])}] {names[-1]}{entry}"
    field = model.model_fields.get(keys[0])
    is_key = field.annotation is str if field else not isinstance(document.get(keys[0]), Mapping)
    return names[0] if is_key else f"[{'.'.join(names)}]"


def _said(model: type[Table], detail: ErrorDetails) -> str:
    """One problem of pydantic's in our words."""
    kind, where = detail["type"], detail["loc"]
    if kind == "value_error":
        error = detail["ctx"]["error"]
        if not isinstance(error, ConfigError):
            return str(error)
        return ". ".join(filter(None, (error.message, error.hint[:1].upper() + error.hint[1:])))
    if kind == "missing":
        example = (_fields(model, where[:-1])[str(where[-1])].examples or ["a table of that name"])[0]
        return f"is missing. Add {example}"
    if kind == "extra_forbidden":
        known = sorted(_fields(model, where[:-1]))
        near = difflib.get_close_matches(str(where[-1]), known, n=1)
        meant = f"Did you mean {near[0]}? " if near else ""
        return f"is not known. {meant}Known here: {', '.join(known)}"
    return _SAYING.get(kind, "is not valid. See the page on the access manifest")


def _fields(model: type[Table], where: tuple[str | int, ...]) -> Mapping[str, FieldInfo]:
    """The fields of the table at `where`; a table of tables is a dict whose values have a model."""
    kind: Any = model
    for key in where:
        values = get_args(kind)
        kind = values[1] if values else kind.model_fields[key].annotation
    fields: Mapping[str, FieldInfo] = kind.model_fields
    return fields
