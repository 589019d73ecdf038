"""The rows: which sides there are, on which data, over which round-trip time, and what ours must reach."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks import data

__all__ = ["GROUPS", "Group", "Measure", "Row", "Side", "groups_of"]

Measure = Literal["rate", "wall", "peak", "sample"]
_MB = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One way of doing it.

    Attributes:
        name: In the results.
        does: `module.function` below `benchmarks.sides`.
        shown: For people.
        given: Arguments, with the sizes for a scale.
    """

    name: str
    does: str
    shown: str
    given: Callable[[float], Mapping[str, Any]] = lambda scale: {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table: one side against another, or against a limit.

    Attributes:
        ours, theirs: Names of sides; no `theirs` for a limit.
        measure: `rate`: units a second; `wall`: seconds; `peak`: memory above the idle worker; `sample`: the side's own
            timings.
        least: How many times better ours must be.
        most: What ours must not exceed: bytes for `peak`, seconds for `sample`, the ratio to theirs for `wall`.
    """

    name: str
    shown: str
    ours: str
    theirs: str = ""
    measure: Measure = "wall"
    least: float | None = None
    most: float | None = None
    unit: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Rows that share data and sides. In each round every side runs once, in this order.

    Attributes:
        blobs: The data, for a scale.
        rtt_ms: Added round-trip time.
    """

    name: str
    shown: str
    blobs: Callable[[float], data.Blobs]
    sides: tuple[Side, ...]
    rows: tuple[Row, ...] = field(default=())
    rtt_ms: float = 0
    writes: bool = False


def _count(of: float, scale: float, least: int = 1) -> int:
    return max(round(of * scale), least)


def _text_size(scale: float) -> int:
    return _count(60 * _MB, scale)


_TEXT = Group(
    name="text",
    shown="JSON Lines, 4 x 60 MB",
    blobs=lambda scale: data.json_lines(4, _text_size(scale)),
    sides=(
        Side(
            name="azfs",
            does="reading.azfs_text",
            shown="azfs, ReadFromText",
            given=lambda scale: {"pattern": "lines/*"},
        ),
        Side(
            name="ours",
            does="reading.our_text",
            shown="ReadFromBlob(Lines())",
            given=lambda scale: {"pattern": "lines/*"},
        ),
        Side(
            name="batched",
            does="reading.our_batches",
            shown="ReadFromBlob(Lines(), batched=True)",
            given=lambda scale: {"pattern": "lines/*"},
        ),
        Side(
            name="memory",
            does="floors.lines_in_memory",
            shown="floor: the same lines from memory",
            given=lambda scale: {"blobs": 4, "size_bytes": _text_size(scale)},
        ),
        Side(
            name="gets",
            does="floors.gets",
            shown="floor: plain range GETs (bytes)",
            given=lambda scale: {"blobs": 4, "size_bytes": _text_size(scale), "name": "in/lines/{}.jsonl"},
        ),
    ),
    rows=(
        Row(
            name="text",
            shown="4 x 60 MB of lines, element by element",
            ours="ours",
            theirs="azfs",
            measure="rate",
            least=3.0,
            unit="records/s",
        ),
        Row(
            name="text-batches",
            shown="the same as batches",
            ours="batched",
            theirs="azfs",
            measure="rate",
            least=8.0,
            unit="records/s",
        ),
    ),
)

_SUMS = Group(
    name="sums",
    shown="JSON to (key, number), summed per key, 4 x 60 MB",
    blobs=lambda scale: data.json_lines(4, _text_size(scale)),
    sides=(
        Side(
            name="azfs",
            does="reading.azfs_sums",
            shown="azfs, ReadFromText, json.loads in a Map",
            given=lambda scale: {"pattern": "lines/*"},
        ),
        Side(
            name="ours",
            does="reading.our_sums",
            shown="ReadFromBlob(JsonLines())",
            given=lambda scale: {"pattern": "lines/*"},
        ),
        Side(
            name="batched",
            does="reading.our_sums_of_batches",
            shown="ReadFromBlob(JsonLines(), batched=True)",
            given=lambda scale: {"pattern": "lines/*"},
        ),
    ),
    rows=(
        Row(
            name="sums", shown="JSON summed per key, Arrow batches", ours="batched", theirs="azfs", least=6.0, unit="s"
        ),
        Row(name="sums-elements", shown="the same, element by element", ours="ours", theirs="azfs", unit="s"),
    ),
)

_ORDERS_LINES = 2_000_000  # ten times the demo's

_ORDERS = Group(
    name="orders",
    shown="the main job on ten times the demo's data",
    blobs=lambda scale: data.orders(_count(_ORDERS_LINES, scale, 100)),
    writes=True,
    sides=(
        Side(name="azfs", does="orders.azfs_orders", shown="the same transforms, azfs and Beam's own text I/O"),
        Side(name="ours", does="orders.our_orders", shown="pipelines.orders"),
        Side(name="unscoped", does="orders.unscoped_orders", shown="the same, static container SAS, no audit"),
        Side(name="batched", does="orders.our_batched_orders", shown="pipelines.orders_batched"),
    ),
    rows=(
        Row(name="orders", shown="pipelines.orders", ours="ours", theirs="azfs", least=1.5, unit="s"),
        Row(
            name="orders-batched", shown="pipelines.orders_batched", ours="batched", theirs="azfs", least=4.0, unit="s"
        ),
        Row(
            name="identity",
            shown="price of identity and audit",
            ours="ours",
            theirs="unscoped",
            most=1.03,
            unit="s",
        ),
    ),
)


def _small(rtt_ms: float, least: float, some: float) -> Group:
    name = f"small-{rtt_ms:.0f}ms"

    def blobs(scale: float) -> int:
        return _count(1000, scale)

    return Group(
        name=name,
        shown=f"1,000 blobs of 10 KB, {rtt_ms:.0f} ms",
        blobs=lambda scale: data.small(blobs(scale), 10_000, some=_count(1000 * some, scale)),
        rtt_ms=rtt_ms,
        sides=(
            Side(
                name="azfs",
                does="reading.azfs_text",
                shown="azfs, ReadFromText",
                given=lambda scale: {"pattern": "some/*", "units": _count(1000 * some, scale)},
            ),
            Side(
                name="ours",
                does="reading.our_text",
                shown="ReadFromBlob(Lines())",
                given=lambda scale: {"pattern": "small/*", "units": blobs(scale)},
            ),
            Side(
                name="gets",
                does="floors.gets",
                shown="floor: plain GETs",
                given=lambda scale: {
                    "blobs": blobs(scale),
                    "size_bytes": 10_000,
                    "name": "in/small/{:05d}.jsonl",
                    "count": "blobs",
                },
            ),
        ),
        rows=(
            Row(
                name=name,
                shown=f"1,000 blobs of 10 KB, {rtt_ms:.0f} ms",
                ours="ours",
                theirs="azfs",
                measure="rate",
                least=least,
                unit="blobs/s",
                note="" if some == 1 else f"azfs reads {some:.0%} of the blobs: it takes one after the other",
            ),
        ),
    )


_LARGE = Group(
    name="large",
    shown="10 blobs of 100 MB, 20 ms, raw bytes",
    blobs=lambda scale: data.large(10, _count(100 * _MB, scale)),
    rtt_ms=20,
    sides=(
        Side(
            name="azfs",
            does="reading.azfs_bytes",
            shown="azfs, ReadMatches",
            given=lambda scale: {"pattern": "large/*"},
        ),
        Side(
            name="ours",
            does="reading.our_bytes",
            shown="ReadFromBlob(Bytes())",
            given=lambda scale: {"pattern": "large/*"},
        ),
        Side(
            name="blocks",
            does="reading.our_blocks",
            shown="our blocks, not decoded",
            given=lambda scale: {"pattern": "large/*"},
        ),
        Side(
            name="gets",
            does="floors.gets",
            shown="floor: plain range GETs",
            given=lambda scale: {"blobs": 10, "size_bytes": _count(100 * _MB, scale), "name": "in/large/{}.bin"},
        ),
    ),
    rows=(
        Row(
            name="large",
            shown="10 blobs of 100 MB, 20 ms, whole blobs",
            ours="ours",
            theirs="azfs",
            measure="rate",
            least=2.0,
            unit="B/s",
        ),
        Row(
            name="large-blocks",
            shown="the same in blocks",
            ours="blocks",
            theirs="azfs",
            measure="rate",
            least=2.0,
            unit="B/s",
        ),
    ),
)

_PARQUET = Group(
    name="parquet",
    shown="Parquet, 2 of 20 columns, 20 ms",
    blobs=lambda scale: data.parquet(4, _count(250_000, scale, 100)),
    rtt_ms=20,
    sides=(
        Side(
            name="azfs",
            does="reading.azfs_parquet",
            shown="azfs, ReadFromParquetBatched",
            given=lambda scale: {"pattern": "parquet/*"},
        ),
        Side(
            name="ours",
            does="reading.our_parquet",
            shown="ReadFromBlob(Parquet(columns=...), batched=True)",
            given=lambda scale: {"pattern": "parquet/*"},
        ),
    ),
    rows=(
        Row(
            name="parquet",
            shown="Parquet, 2 of 20 columns, 20 ms",
            ours="ours",
            theirs="azfs",
            measure="rate",
            least=3.0,
            unit="rows/s",
        ),
    ),
)


def _written(scale: float) -> Mapping[str, Any]:
    return {"shards": 8, "lines": _count(8 * 60 * _MB / 152, scale, 64)}


_WRITE = Group(
    name="write",
    shown="write 8 shards of 60 MB",
    blobs=lambda scale: data.nothing(),
    writes=True,
    sides=(
        Side(name="azfs", does="writing.azfs_write", shown="azfs, WriteToText(num_shards=8)", given=_written),
        Side(name="ours", does="writing.our_write", shown="WriteToBlob(Lines(), shards=8)", given=_written),
    ),
    rows=(
        Row(name="write", shown="write 8 shards of 60 MB", ours="ours", theirs="azfs", least=1.5, unit="s"),
        Row(
            name="write-memory",
            shown="the same: peak memory above the idle worker",
            ours="ours",
            theirs="azfs",
            measure="peak",
            most=64 * _MB,
            unit="B",
        ),
    ),
)

_LIST = Group(
    name="list",
    shown="list 50,000 blobs",
    blobs=lambda scale: data.many(_count(50_000, scale)),
    sides=(
        Side(
            name="azfs", does="reading.azfs_list", shown="azfs, MatchFiles", given=lambda scale: {"pattern": "many/**"}
        ),
        Side(
            name="ours",
            does="reading.our_list",
            shown="the match step of ReadFromBlob",
            given=lambda scale: {"pattern": "many/**"},
        ),
    ),
    rows=(
        Row(
            name="list",
            shown="list 50,000 blobs under a prefix",
            ours="ours",
            theirs="azfs",
            measure="rate",
            least=1.5,
            unit="blobs/s",
        ),
    ),
)

_BUNDLE = Group(
    name="bundle",
    shown="a bundle without data",
    blobs=lambda scale: data.nothing(),
    sides=(
        Side(
            name="ours",
            does="bundles.our_bundles",
            shown="open, issue a SAS, audit, close",
            given=lambda scale: {"bundles": _count(500, scale, 20)},
        ),
    ),
    rows=(
        Row(
            name="bundle",
            shown="per bundle: open, SAS, audit, close",
            ours="ours",
            measure="sample",
            most=0.002,
            unit="s",
        ),
    ),
)

GROUPS: tuple[Group, ...] = (
    _TEXT,
    _SUMS,
    _ORDERS,
    _small(0, 5.0, some=1),
    _small(20, 25.0, some=0.2),
    _LARGE,
    _PARQUET,
    _WRITE,
    _LIST,
    _BUNDLE,
)


def groups_of(names: tuple[str, ...]) -> tuple[Group, ...]:
    """The groups that have these rows, or are called so; all if none is named.

    Raises:
        ValueError: There is no such row.
    """
    if not names:
        return GROUPS
    known = {group.name for group in GROUPS} | {row.name for group in GROUPS for row in group.rows}
    unknown = set(names) - known
    if unknown:
        raise ValueError(f"there is no row {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    return tuple(group for group in GROUPS if {group.name, *(row.name for row in group.rows)} & set(names))
