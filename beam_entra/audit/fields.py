"""What the fields of audit records are made of: the strings, numbers and times that are taken, and no secret in any."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from itertools import chain
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from beam_entra.audit.guard import SecretInRecord, looks_like_secret

__all__ = [
    "SEGMENT_NAME",
    "Count",
    "Digest",
    "Id",
    "Model",
    "Name",
    "Path",
    "Permission",
    "SegmentName",
    "Step",
    "Text",
    "Time",
    "Uuid",
    "written",
]

_UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"

SEGMENT_NAME = re.compile(rf"segment-{_UUID}-[0-9]{{5}}\.jsonl")


def _utc(time: datetime) -> datetime:
    if time.utcoffset() is None:
        raise ValueError("a time needs its zone")
    if time.tzinfo is UTC:
        return time
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise ValueError("a time within the calendar") from None


def _cut(text: object) -> object:
    return _legible(text[:2000]) if isinstance(text, str) else text


def _cut_label(text: object) -> object:
    return _legible(text[:500]) if isinstance(text, str) else text


def _legible(text: str) -> str:
    """With U+FFFD for half a surrogate pair, which nobody could read back from a line."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


_NO_TEXT = (int, bool, datetime, type(None))


class Named:
    """Marks a field that holds a name which people gave; `looks_like_secret` is more lenient with it."""


class Hex:
    """Marks a field whose pattern takes lower-case hex between fixed words, and so nothing that looks like a secret."""


Time = Annotated[datetime, AfterValidator(_utc)]
Digest = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$"), Hex()]
Uuid = Annotated[str, StringConstraints(pattern=f"^{_UUID}$"), Hex()]
Id = Annotated[str, StringConstraints(pattern="^[A-Za-z0-9._-]{1,128}$")]
Name = Annotated[str, StringConstraints(min_length=1, max_length=500)]
Text = Annotated[str, BeforeValidator(_cut)]  # a sentence for people; cut, because a long error must still be audited
Step = Annotated[str, BeforeValidator(_cut_label), StringConstraints(min_length=1), Named()]  # nested labels grow long
Count = Annotated[int, Field(ge=0)]
SegmentName = Annotated[str, StringConstraints(pattern=f"^{SEGMENT_NAME.pattern}$"), Hex()]
Path = Annotated[
    str,
    StringConstraints(pattern=r"^abfss://[a-z0-9$-]{3,63}@[a-z0-9]{3,24}\.dfs\.core\.windows\.net/", max_length=1200),
    Named(),
]
Permission = Literal["read", "write", "delete", "list", "append"]


class Model(BaseModel):
    """Frozen; nothing is coerced, nothing unknown taken, and no string holds what looks like a secret."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", hide_input_in_errors=True)

    _named: ClassVar[tuple[str, ...]] = ()
    _said: ClassVar[tuple[str, ...]] = ()  # all else that can hold a secret

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: object) -> None:
        fields = cls.model_fields.items()
        cls._named = tuple(name for name, field in fields if any(isinstance(each, Named) for each in field.metadata))
        cls._said = tuple(
            name
            for name, field in fields
            if name not in cls._named and _has_room(Annotated[field.annotation, None, *field.metadata])
        )

    @model_validator(mode="after")
    def _hold_no_secret(self) -> Self:
        """Look at names as names, and at all else strictly; where a text quotes a path, that is left out."""
        held = vars(self)
        names = [text for name in self._named if (text := held[name])]
        texts = [text for name in self._said for text in _texts(held[name])]
        for path in self._paths(names):
            texts = [text.replace(path, " ") for text in texts]
        if looks_like_secret("\n".join(names), named=True) or looks_like_secret("\n".join(texts)):  # all at once: fast
            self._refuse(self._paths(names))
        return self

    @staticmethod
    def _paths(names: list[str]) -> list[str]:
        return [name for name in names if "://" in name]

    def _refuse(self, paths: list[str]) -> None:
        for name in (*self._named, *self._said):
            named = name in self._named
            for text in _texts(getattr(self, name)):
                for path in () if named else paths:
                    text = text.replace(path, " ")
                if what := looks_like_secret(text, named=named):
                    fix = "rename the blob or the step" if named else "take it out of what is named or said there"
                    raise SecretInRecord(f"{name} holds what looks like {what}; an audit record must not: {fix}")


def written(value: object) -> object:
    """As JSON what has no form of its own there: a time, and a model in a record."""
    if isinstance(value, datetime):
        return value.isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"
    if isinstance(value, Model):
        return vars(value)
    raise TypeError(f"{type(value).__name__} is for no record")


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for each in chain.from_iterable(value.items()) for text in _texts(each)]
    if isinstance(value, (list, tuple)):
        return [text for each in value for text in _texts(each)]
    return []  # numbers, times, and models that look after themselves


def _has_room(kind: Any) -> bool:
    """Whether a field of this type can hold text that somebody chose."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return not any(isinstance(each, Hex) for each in parts[1:]) and _has_room(parts[0])
    if origin in (Union, UnionType):
        return any(map(_has_room, parts))
    return origin is not Literal and kind not in _NO_TEXT
