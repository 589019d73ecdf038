"""What the fields of audit records are made of: the strings, numbers and times that are taken, and no secret in any."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import chain
from typing import Annotated, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
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
]

_UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"

SEGMENT_NAME = re.compile(rf"segment-{_UUID}-[0-9]{{5}}\.jsonl")


def _utc(time: datetime) -> datetime:
    if time.utcoffset() is None:
        raise ValueError("a time needs its zone")
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise ValueError("a time within the calendar") from None


def _iso(time: datetime) -> str:
    return time.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def _cut(text: object) -> object:
    return text[:2000] if isinstance(text, str) else text


def _cut_label(text: object) -> object:
    return text[:500] if isinstance(text, str) else text


class Named:
    """Marks a field that holds a name which people gave; `looks_like_secret` is more lenient with it."""


Time = Annotated[datetime, AfterValidator(_utc), PlainSerializer(_iso)]
Digest = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
Uuid = Annotated[str, StringConstraints(pattern=f"^{_UUID}$")]
Id = Annotated[str, StringConstraints(pattern="^[A-Za-z0-9._-]{1,128}$")]
Name = Annotated[str, StringConstraints(min_length=1, max_length=500)]
Text = Annotated[str, BeforeValidator(_cut)]  # a sentence for people; cut, because a long error must still be audited
Step = Annotated[str, BeforeValidator(_cut_label), StringConstraints(min_length=1), Named()]  # nested labels grow long
Count = Annotated[int, Field(ge=0)]
SegmentName = Annotated[str, StringConstraints(pattern=f"^{SEGMENT_NAME.pattern}$")]
Path = Annotated[
    str,
    StringConstraints(pattern=r"^abfss://[a-z0-9$-]{3,63}@[a-z0-9]{3,24}\.dfs\.core\.windows\.net/", max_length=1200),
    Named(),
]
Permission = Literal["read", "write", "delete", "list", "append"]


class Model(BaseModel):
    """Frozen; nothing is coerced, nothing unknown taken, and no string holds what looks like a secret."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", hide_input_in_errors=True)

    _named: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: object) -> None:
        cls._named = frozenset(
            name for name, field in cls.model_fields.items() if any(isinstance(each, Named) for each in field.metadata)
        )

    @model_validator(mode="after")
    def _hold_no_secret(self) -> Self:
        """Look at names as names, and at all else strictly; where a text quotes a path, that is left out."""
        names = {name: [text] for name in self._named if (text := getattr(self, name))}
        fields = {name: _texts(value) for name, value in vars(self).items() if name not in names}
        for name in (text for (text,) in names.values() if "://" in text):
            fields = {field: [text.replace(name, " ") for text in texts] for field, texts in fields.items()}
        for found, named in ((names, True), (fields, False)):
            if looks_like_secret("\n".join(chain.from_iterable(found.values())), named=named):  # at all, for speed
                self._refuse(found, named)
        return self

    @staticmethod
    def _refuse(fields: Mapping[str, list[str]], named: bool) -> None:
        fix = "rename the blob or the step" if named else "take it out of what is named or said there"
        for name, texts in fields.items():
            for text in texts:
                if what := looks_like_secret(text, named=named):
                    raise SecretInRecord(f"{name} holds what looks like {what}; an audit record must not: {fix}")


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for text in chain.from_iterable(value.items()) if isinstance(text, str)]
    return []  # numbers, times, and models that look after themselves
