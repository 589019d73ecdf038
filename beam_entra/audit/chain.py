"""What a writer holds in its hands: where the chain ends, lines to be added, and groups of lines on their way."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from pydantic import ValidationError

from beam_entra.audit.record import ZEROS, Record, digest_of, explain
from beam_entra.errors import AuditError

__all__ = ["LINE_BYTES", "Chain", "Draft", "Group"]

LINE_BYTES = 64 * 1024  # a longer record is a mistake


class Group:
    """Records that go to the store in one append."""

    __slots__ = ("chunks", "creates", "durable", "offset", "segment", "settled", "size")

    def __init__(self, segment: str, offset: int) -> None:
        self.segment, self.offset = segment, offset
        self.creates: list[str] = []  # files to make first
        self.chunks: list[bytes] = []
        self.size = 0
        self.durable = False
        self.settled = threading.Event()  # durable, or never will be


class Chain(NamedTuple):
    """Where the next record goes."""

    number: int
    segment: str
    seq: int = 0
    prev: str = ZEROS
    size: int = 0
    time: datetime | None = None

    def after(self, line: bytes, time: datetime) -> Chain:
        return Chain(
            number=self.number,
            segment=self.segment,
            seq=self.seq + 1,
            prev=digest_of(line),
            size=self.size + len(line) + 1,
            time=time,
        )


@dataclass(slots=True)
class Draft:
    """Lines that will be added together, or not at all."""

    chain: Chain
    lines: list[tuple[Chain, bytes]] = field(default_factory=list)

    def add(self, model: type[Record], now: datetime, bundle: str | None, facts: Mapping[str, Any]) -> None:
        chain = self.chain
        time = now if chain.time is None or now > chain.time else chain.time
        try:
            line = model(seq=chain.seq, prev=chain.prev, time=time, bundle=bundle, **facts).line()
        except (ValidationError, TypeError) as error:
            reason = explain(error) if isinstance(error, ValidationError) else "an envelope field was given"
            raise AuditError(f"not a valid {model.__name__} record: {reason}") from None
        if len(line) >= LINE_BYTES:
            raise AuditError(f"a {model.__name__} record of {len(line)} bytes is longer than {LINE_BYTES}")
        self.lines.append((chain, line + b"\n"))
        self.chain = chain.after(line, time)
