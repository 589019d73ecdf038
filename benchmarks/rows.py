"""The rows: which sides there are, on which data, over which round-trip time, and what ours must reach."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks import data

__all__ = ["FEWEST_PAIRS", "FLOOR_ROUNDS", "GROUPS", "Group", "Measure", "Row", "Side", "groups_of"]

Measure = Literal["rate", "wall", "peak", "sample", "requests"]
FEWEST_PAIRS, FLOOR_ROUNDS = 5, 1
_MB = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One way of doing it.

    Attributes:
        name: In the results.
        does: `module.function` below `benchmarks.sides`.
        shown: For people.
        given: Arguments, with the sizes for a scale.
        floor: What nobody gets under, and varies little; it runs in the first round only.
        most_rounds: How often it runs at most.
        more_rounds: How much more often it runs than there are pairs, if there are no fewer of these than the fewest.
    """

    name: str
    does: str
    shown: str
    given: Callable[[float], Mapping[str, Any]] = lambda scale: {}
    floor: bool = False
    most_rounds: int | None = None
    more_rounds: int = 0

    def rounds(self, pairs: int) -> int:
        """How often it runs."""
        most = FLOOR_ROUNDS if self.floor else self.most_rounds
        if most is not None:
            return min(pairs, most)
        return pairs + (self.more_rounds if pairs >= FEWEST_PAIRS else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table: one side against another, or against a limit.

    Attributes:
        shown: What is done, for people.
        reading: What the figures mean, in plain words.
        ours, theirs: Names of sides; no `theirs` for a limit.
        floor: The side that does what neither can do without, if there is one.
        measure: `rate`: units a second; `wall`: seconds; `peak`: memory above the idle worker; `sample`: the side's own
            timings; `requests`: those that the token endpoint saw.
        least: How many times better ours must be.
        most: What ours must not exceed: bytes for `peak`, seconds for `sample`, the ratio to theirs for `wall`.
        exactly: What ours must be in each run; only without `theirs`.
    """

    name: str
    shown: str
    reading: str
    ours: str
    theirs: str = ""
    floor: str = ""
    measure: Measure = "wall"
    least: float | None = None
    most: float | None = None
    exactly: int | None = None
    unit: str = "s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Rows that share data and sides. In each round every side runs once that has not yet run as often as it shall.

    Attributes:
        blobs: The data, for a scale.
        takes_s: About how long five rounds at full size take on two cores, bringing the data there included.
        rtt_ms: Added round-trip time.
        writes: What the sides have written is compared, and then deleted.
        mirrored: Every other round goes through the sides backwards, A B B A: what the machine does more or less of
            over time is then no advantage of either.
        sources: The cloud has a manifest for each credential source.
    """

    name: str
    shown: str
    blobs: Callable[[float], data.Blobs]
    sides: tuple[Side, ...]
    rows: tuple[Row, ...]
    takes_s: float
    rtt_ms: float = 0
    writes: bool = False
    mirrored: bool = False
    sources: bool = False


def _count(of: float, scale: float, least: int = 1) -> int:
    return max(round(of * scale), least)


def _reads(pattern: str, **more: Any) -> Callable[[float], Mapping[str, Any]]:
    return lambda scale: {"pattern": pattern, **more}


def _text_size(scale: float) -> int:
    return _count(60 * _MB, scale)


def _plain_gets(name: str, blobs: int, size_bytes: int) -> Side:
    return Side(
        name="gets",
        does="floors.gets",
        shown="floor: plain range GETs, no runner",
        given=lambda scale: {"blobs": blobs, "size_bytes": _count(size_bytes, scale), "name": name},
        floor=True,
    )


_TEXT = Group(
    name="text",
    shown="4 x 60 MB of JSON Lines",
    takes_s=115,
    blobs=lambda scale: data.json_lines(4, _text_size(scale)),
    sides=(
        Side(name="azfs", does="reading.azfs_text", shown="azfs, `ReadFromText`", given=_reads("lines/*")),
        Side(name="ours", does="reading.our_text", shown="`ReadFromBlob(Lines())`", given=_reads("lines/*")),
        Side(
            name="batched",
            does="reading.our_batches",
            shown="`ReadFromBlob(Lines(), batched=True)`",
            given=_reads("lines/*"),
        ),
        Side(
            name="azfs-sums",
            does="reading.azfs_sums",
            shown="azfs, `ReadFromText`, `json.loads` in a Map, summed",
            given=_reads("lines/*"),
        ),
        Side(
            name="sums",
            does="reading.our_sums",
            shown="`ReadFromBlob(JsonLines(schema=...), batched=True)`, summed",
            given=_reads("lines/*"),
        ),
        Side(
            name="memory",
            does="floors.lines_in_memory",
            shown="floor: the same lines from memory",
            given=lambda scale: {"blobs": 4, "size_bytes": _text_size(scale)},
            floor=True,
        ),
        _plain_gets("in/lines/{}.jsonl", 4, 60 * _MB),
    ),
    rows=(
        Row(
            name="text",
            shown="lines of 4 x 60 MB, one element each",
            reading="Every line becomes an element and is counted. The floor has no storage at all: lines that are in"
            " memory already, split and handed on one by one. It is what Beam itself costs.",
            ours="ours",
            theirs="azfs",
            floor="memory",
            measure="rate",
            least=3.0,
            unit="records/s",
        ),
        Row(
            name="text-batches",
            shown="the same lines as record batches",
            reading="The same blobs, handed on as Arrow record batches: one element for thousands of lines. The floor"
            " is plain range GETs of the bytes, without a runner.",
            ours="batched",
            theirs="azfs",
            floor="gets",
            measure="rate",
            least=8.0,
            unit="records/s",
        ),
        Row(
            name="sums",
            shown="JSON to (key, number), summed per key",
            reading="azfs reads lines, a Map loads each and takes two fields of it, and Beam sums them. Ours reads"
            " batches that Arrow has parsed, on every CPU, sums those of a bundle with Arrow, and Beam sums the sums.",
            ours="sums",
            theirs="azfs-sums",
            least=6.0,
        ),
    ),
)

ORDERS_LINES = 500_000  # ten times the demo's
_MORE_FOR_PRICE = 1  # an even number of pairs in all, so that each side goes first as often as the other

_ORDERS = Group(
    name="orders",
    shown="orders, ten times the demo's",
    takes_s=310,
    blobs=lambda scale: data.orders(_count(ORDERS_LINES, scale, 100)),
    writes=True,
    mirrored=True,
    sides=(
        Side(name="azfs", does="orders.azfs_orders", shown="azfs and Beam's own text I/O, the same transforms"),
        Side(name="ours", does="orders.our_orders", shown="`pipelines.orders`", more_rounds=_MORE_FOR_PRICE),
        Side(
            name="unscoped",
            does="orders.unscoped_orders",
            shown="the same with static container SAS and no audit",
            more_rounds=_MORE_FOR_PRICE,
        ),
        Side(name="batched", does="orders.our_batched_orders", shown="`pipelines.orders_batched`"),
        Side(
            name="memory",
            does="floors.orders_in_memory",
            shown="floor: the same transforms, from memory to nowhere",
            given=lambda scale: {"lines": _count(ORDERS_LINES, scale, 100)},
            floor=True,
        ),
    ),
    rows=(
        Row(
            name="orders",
            shown="the job `pipelines.orders`, element by element",
            reading="500,000 lines are read, parsed, grouped by their id, joined, summed, and written to three places."
            " Most of the time is the transforms and Beam's own, which are the same on both sides: the floor does them"
            " from memory to nowhere.",
            ours="ours",
            theirs="azfs",
            floor="memory",
            least=1.5,
        ),
        Row(
            name="orders-batched",
            shown="the same job on record batches",
            reading="`pipelines.orders_batched` has the same outcome, line for line, and works on whole columns.",
            ours="batched",
            theirs="azfs",
            least=4.0,
        ),
        Row(
            name="identity",
            shown="price of identity and audit",
            reading="The same job once more with a session whose SAS are two static ones for whole containers and whose"
            " records go nowhere (`benchmarks/unscoped.py`; the package has no such switch). A B B A, and in more pairs"
            " than the other rows, since what is to be seen is smaller than what one run differs from the next.",
            ours="ours",
            theirs="unscoped",
            most=1.03,
        ),
    ),
)


def _small(rtt_ms: float, least: float, some: float, takes_s: float) -> Group:
    name = f"small-{rtt_ms:.0f}ms"
    given = "" if some == 1 else f", {1000 * some:.0f} of them"
    part = (
        f" azfs is given {1000 * some:.0f} of them, to save time: it takes one after the other. What it does once for"
        " all weighs on fewer then, and makes its rate some 10 % less than it would be with all."
        if given
        else ""
    )

    def blobs(scale: float) -> int:
        return _count(1000, scale)

    return Group(
        name=name,
        shown=f"1,000 blobs of 10 KB, {rtt_ms:.0f} ms",
        takes_s=takes_s,
        blobs=lambda scale: data.small(blobs(scale), 10_000, some=_count(1000 * some, scale)),
        rtt_ms=rtt_ms,
        sides=(
            Side(
                name="azfs",
                does="reading.azfs_text",
                shown=f"azfs, `ReadFromText`{given}",
                given=lambda scale: {"pattern": "some/*", "units": _count(1000 * some, scale)},
            ),
            Side(
                name="ours",
                does="reading.our_text",
                shown="`ReadFromBlob(Lines())`",
                given=lambda scale: {"pattern": "small/*", "units": blobs(scale)},
            ),
            Side(
                name="gets",
                does="floors.gets",
                shown="floor: plain GETs, no runner",
                given=lambda scale: {
                    "blobs": blobs(scale),
                    "size_bytes": 10_000,
                    "name": "in/small/{:05d}.jsonl",
                    "count": "blobs",
                },
                floor=True,
            ),
        ),
        rows=(
            Row(
                name=name,
                shown=f"1,000 blobs of 10 KB, {rtt_ms:.0f} ms away",
                reading=f"What counts here is requests and round trips, not bytes.{part} Ours gets each with a SAS of"
                " its own, up to 32 at a time, over connections that stay open.",
                ours="ours",
                theirs="azfs",
                floor="gets",
                measure="rate",
                least=least,
                unit="blobs/s",
            ),
        ),
    )


_LARGE = Group(
    name="large",
    shown="10 blobs of 100 MB, 20 ms",
    takes_s=90,
    blobs=lambda scale: data.large(10, _count(100 * _MB, scale)),
    rtt_ms=20,
    sides=(
        Side(
            name="azfs", does="reading.azfs_bytes", shown="azfs, `ReadMatches`, `read()`", given=_reads("large/*")
        ),
        Side(name="ours", does="reading.our_bytes", shown="`ReadFromBlob(Bytes())`", given=_reads("large/*")),
        _plain_gets("in/large/{}.bin", 10, 100 * _MB),
    ),
    rows=(
        Row(
            name="large",
            shown="10 blobs of 100 MB, 20 ms away, raw bytes",
            reading="Whole blobs as single elements. Client, relay and Azurite share the machine, so what plain range"
            " GETs reach is the most that can be had here.",
            ours="ours",
            theirs="azfs",
            floor="gets",
            measure="rate",
            least=2.0,
            unit="B/s",
        ),
    ),
)

_PARQUET = Group(
    name="parquet",
    shown="Parquet, 4 blobs of 1,000,000 rows and 20 columns in 5 row groups, 20 ms",
    takes_s=60,
    blobs=lambda scale: data.parquet(4, _count(1_000_000, scale, 100)),
    rtt_ms=20,
    sides=(
        Side(
            name="azfs",
            does="reading.azfs_parquet",
            shown="azfs, `ReadFromParquetBatched(columns=...)`",
            given=_reads("parquet/*"),
        ),
        Side(
            name="ours",
            does="reading.our_parquet",
            shown="`ReadFromBlob(Parquet(columns=...), batched=True)`",
            given=_reads("parquet/*"),
        ),
    ),
    rows=(
        Row(
            name="parquet",
            shown="Parquet, 2 of 20 columns, 20 ms away",
            reading="Two columns are a tenth of the bytes. Ours asks for just these ranges, several at a time.",
            ours="ours",
            theirs="azfs",
            measure="rate",
            least=3.0,
            unit="rows/s",
        ),
    ),
)


def _written(scale: float) -> Mapping[str, Any]:
    return {"shards": 8, "lines": _count(8 * 60 * _MB / 2000, scale, 64)}


_WRITE = Group(
    name="write",
    shown="8 shards of 60 MB, written",
    takes_s=80,
    blobs=lambda scale: data.nothing(),
    writes=True,
    sides=(
        Side(name="azfs", does="writing.azfs_write", shown="azfs, `WriteToText(num_shards=8)`", given=_written),
        Side(name="ours", does="writing.our_write", shown="`WriteToBlob(Lines(), shards=8)`", given=_written),
    ),
    rows=(
        Row(
            name="write",
            shown="write 8 shards of 60 MB",
            reading="Generated lines of 2,000 bytes, written. azfs groups them by shard, writes temporary files,"
            " uploads each as a whole and renames it by a copy; ours stages blocks where they stay and commits them.",
            ours="ours",
            theirs="azfs",
            least=1.5,
        ),
        Row(
            name="write-memory",
            shown="write 8 shards of 60 MB: peak memory above the idle worker",
            reading="Ours holds the blocks that it fills and those on their way, whatever the size of a shard.",
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
    shown="50,000 blobs, listed",
    takes_s=150,
    blobs=lambda scale: data.many(_count(50_000, scale)),
    sides=(
        Side(name="azfs", does="reading.azfs_list", shown="azfs, `MatchFiles`", given=_reads("many/**")),
        Side(
            name="ours", does="reading.our_list", shown="`MatchFiles` over `abfss://`", given=_reads("many/**")
        ),
    ),
    rows=(
        Row(
            name="list",
            shown="list 50,000 blobs under a prefix",
            reading="Names, sizes and ETags of empty blobs in 100 folders. Most of it is Azurite making the pages.",
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
    takes_s=10,
    mirrored=True,
    blobs=lambda scale: data.nothing(),
    sides=(
        Side(
            name="ours",
            does="bundles.our_bundles",
            shown="open, issue a SAS, audit, close",
            given=lambda scale: {"bundles": _count(500, scale, 20)},
        ),
        Side(
            name="appends",
            does="bundles.appends",
            shown="floor: as many bytes appended to a blob, no records",
            given=lambda scale: {"bundles": _count(500, scale, 20)},
        ),
    ),
    rows=(
        Row(
            name="bundle",
            shown="per bundle: open, issue a SAS, audit, close",
            reading="What every bundle pays before it has touched any data; the median of 500 bundles, one after the"
            " other, in a thread such as Beam's workers run them in. Each waits for one append to the trail. The floor"
            " is such an append of as many bytes with such a SAS, over a connection of the standard library, with"
            " nothing else of ours: Azurite's own time, nearly. A time in seconds is that of the machine, too: in 48"
            " runs within an hour of 22 November 2026, on a machine whose host was busy, ours took 1.54 to 3.44 ms, the"
            " median 2.29, and the floor 1.01 to 2.74, the median 1.76; ours 1.1 to 1.5 times as long as the floor of"
            " the same run. It may be over 2 ms wherever Azurite alone takes 1.5 or more.",
            ours="ours",
            floor="appends",
            measure="sample",
            most=0.002,
        ),
    ),
)


def _requests(name: str, threads: int, reading: str, *, processes: int = 1) -> tuple[Side, Row]:
    of = f"{threads} thread{'s' * (threads > 1)}"
    if processes > 1:
        of = f"{processes} processes of {of}"
    side = Side(
        name=name,
        does="price.our_requests",
        shown=f"bundles of two audiences, {of}",
        given=lambda scale: {"threads": threads, "processes": processes, "bundles": _count(320, scale, threads)},
        most_rounds=2,
    )
    row = Row(
        name=f"requests-{name}",
        shown=f"token requests of a job: {of}, 2 audiences",
        reading=reading,
        ours=name,
        measure="requests",
        exactly=2 * processes,
        unit="requests",
    )
    return side, row


def _first_byte(source: str, shown: str, reading: str) -> tuple[Side, Row]:
    side = Side(
        name=source,
        does="price.first_byte",
        shown=f"a fresh process, {shown}",
        given=lambda scale: {"source": source},
        most_rounds=3,
    )
    row = Row(
        name=f"first-byte-{source}",
        shown=f"process start to first byte, {shown}",
        reading=reading,
        ours=source,
        measure="sample",
    )
    return side, row


_PRICE_OF_TOKENS = (
    _requests(
        "1",
        1,
        "Processes x audiences, whatever the number of bundles and threads. Each bundle takes a SAS, for which the"
        " session needs Storage's token, and a token for Microsoft Graph; there are 320 in each process. The tenant"
        " counts what comes over the wire, in two rounds, both of which must have exactly that.",
    ),
    _requests("8", 8, "The same; all threads begin at once, when there is no token yet."),
    _requests("64", 64, "The same."),
    _requests(
        "forked",
        8,
        "The same in each of two processes, forked before any session is open: none can have another's token.",
        processes=2,
    ),
    (
        Side(
            name="token",
            does="price.warm_token",
            shown="`token()`, warm",
            given=lambda scale: {"calls": _count(300, scale, 20)},
        ),
        Row(
            name="token",
            shown="`token()` on a warm cache",
            reading="What a connector calls for each request that it sends: `ScopedDoFn.token` in a bundle that is"
            " open. Each call checks the deadline, the grant, that the bundle is open, the end of the token and when"
            " to refresh it, and that the token's record is durable.",
            ours="token",
            measure="sample",
            most=5e-6,
        ),
    ),
    (
        Side(
            name="mint",
            does="price.minted",
            shown="a SAS minted, the key at hand",
            given=lambda scale: {"calls": _count(300, scale, 20)},
        ),
        Row(
            name="mint",
            shown="mint a SAS, with the delegation key at hand",
            reading="An HMAC and a query; no network. The same SAS serves a bundle's every"
            " request for its path.",
            ours="mint",
            measure="sample",
            most=40e-6,
        ),
    ),
    _first_byte(
        "federated_file",
        "assertion from a file",
        "From starting Python until the first byte of a blob is here: importing the package, loading the manifest, a"
        " token, a delegation key, a SAS, the records of all of it, and one GET; the median of three"
        " processes. Beam is not imported.",
    ),
    _first_byte("workload_identity", "AKS workload identity", "The same file, where AKS puts it."),
    _first_byte("command", "assertion from a command", "One more process, which prints the assertion."),
    _first_byte("client_secret", "client secret", "The secret comes from a variable of the environment."),
    _first_byte("certificate", "certificate", "PEM, from a file; its key signs an assertion."),
    _first_byte(
        "managed_identity",
        "managed identity",
        "App Service's endpoint, whose stand-in here asks the tenant for each token itself.",
    ),
)

_PRICE = Group(
    name="price",
    shown="tokens, SAS, and the first byte",
    takes_s=28,
    blobs=lambda scale: data.small(1, 10_000, some=0),
    sides=tuple(side for side, _ in _PRICE_OF_TOKENS),
    rows=tuple(row for _, row in _PRICE_OF_TOKENS),
    sources=True,
    mirrored=True,
)

GROUPS: tuple[Group, ...] = (
    _TEXT,
    _ORDERS,
    _small(0, 5.0, some=1, takes_s=50),
    _small(20, 25.0, some=0.05, takes_s=55),
    _LARGE,
    _PARQUET,
    _WRITE,
    _LIST,
    _BUNDLE,
    _PRICE,
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
