"""`pipelines.orders_batched`, its functions and its outputs, held against `pipelines.orders` element by element."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pipelines.orders as other
from beam_entra import BadRecord, JsonLines
from beam_entra.audit.verify import verify
from beam_entra.io.blocks import Block
from beam_entra.io.formats import batch_of
from pipelines.demo.totals import compute, differences, read_outputs
from pipelines.orders_batched import (
    LINE,
    ORDERS,
    newest_of,
    order_as_row,
    order_rows,
    orders_of,
    partitioned,
    sales,
    with_category,
)
from tests.pipelines.conftest import Ended, Shop
from tests.pipelines.test_orders import BAD, GOOD

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the machine may have other work

Order = dict[str, Any]

ORDER: Order = order_as_row(GOOD)


def newest_of_other(versions: Iterable[Order], categories: Mapping[str, str]) -> tuple[str, Any, str]:
    """What the other pipeline makes of the versions of an order."""
    tuples = [(order["order_id"], tuple(order[name] for name in ORDERS.names[1:])) for order in versions]
    return other.newest((tuples[0][0], [fields for _, fields in tuples]), categories)  # type: ignore[misc]


def newest(versions: Iterable[Order]) -> Order:
    """The version that counts, as the other pipeline finds it."""
    order_id, fields, _ = newest_of_other(versions, {})
    return dict(zip(ORDERS.names, (order_id, *fields), strict=True))


def batch(orders: list[Order]) -> pa.RecordBatch:
    """Orders as a batch, as reading gives it."""
    return batch_of(orders, ORDERS)


def texts() -> st.SearchStrategy[str]:
    """Texts that UTF-8 can say, those that UTF-16 would put in another order among them; many of them the same."""
    often = ["a", "b", "Zoë", "美咲", "\uffff", "\U00010000", "a\u0000", "\ufeffa"]
    return st.sampled_from(often) | st.text(min_size=1)


def instants() -> st.SearchStrategy[str]:
    """Instants that exist, in all years."""
    return st.datetimes().map(lambda instant: f"{instant.replace(microsecond=0).isoformat()}Z")


def days_about_the_end_of_february() -> st.SearchStrategy[str]:
    """Instants in any year on February 28, 29 and 30."""
    years = st.sampled_from([0, 4, 999, 1000, 1900, 2000, 2023, 2024, 2026, 2100, 9996]) | st.integers(0, 9999)
    return st.builds("{:04d}-02-{:02d}T00:00:00Z".format, years, st.integers(28, 30))


def any_instants() -> st.SearchStrategy[str]:
    """Instants, what looks like some, and what does not."""
    tops = (9999, 12, 31, 23, 59, 59)
    made_up = st.builds(
        "{:04d}-{:02d}-{:02d}T{:02d}:{:02d}:{:02d}Z".format,
        *(st.integers(1, top) | st.sampled_from([0, 1, top, top + (top < 100)]) for top in tops),
    )
    marred = st.builds(
        lambda text, at, character: text[:at] + character + text[at + 1 :],
        instants(),
        st.integers(0, 21),
        st.sampled_from(["", " ", "\n", "0", "9", "\u0663", "+", "z", "t"]) | st.characters(codec="utf-8"),
    )
    return st.one_of(instants(), days_about_the_end_of_february(), made_up, marred, texts())


def any_prices() -> st.SearchStrategy[str]:
    """Prices, and what is nearly one."""
    nearly = st.from_regex(r"\A-?\d{0,9}[.,]?\d{0,3}\n?\Z") | st.sampled_from(["1e2.00", "+1.00", " 1.00", "00012.50"])
    return st.from_regex(r"\A[0-9]{1,7}\.[0-9]{2}\Z") | nearly | texts()


def few(*values: Any) -> st.SearchStrategy[Any]:
    """One of a few values, so that many orders have the same."""
    return st.sampled_from(values)


FIELDS = {
    "updated_at": few("2026-03-01T09:31:07Z", "2026-03-01T09:31:08Z") | instants(),
    "ordered_at": few("2026-03-01T09:30:00Z", "2026-02-28T23:59:59Z") | instants(),
    "order_id": few("O-1", "O-2", "Zoë") | texts(),
    "customer": texts(),
    "product": few("P-001", "P-002", "P-999") | texts(),
    "quantity": few(1, 2, 9, 10) | st.integers(1, 10_000),
    "unit_price_cents": few(0, 5, 99, 100, 999_999_999) | st.integers(0, 999_999_999),
}


def sound_orders() -> st.SearchStrategy[Order]:
    """Orders that differ in everything, or in one or two fields."""
    variants = st.builds(
        lambda order, names: {name: order[name] if name in names else ORDER[name] for name in FIELDS},  # type: ignore[literal-required]
        st.fixed_dictionaries(FIELDS),
        st.sets(st.sampled_from([*FIELDS]), min_size=1, max_size=3),
    )
    return st.fixed_dictionaries(FIELDS) | variants


def any_lines() -> st.SearchStrategy[dict[str, Any]]:
    """An order of which one field is anything, of the type that Arrow expects, or missing."""
    values: dict[str, st.SearchStrategy[Any]] = {
        "order_id": few("", None) | texts(),
        "ordered_at": st.none() | any_instants(),
        "updated_at": st.none() | any_instants(),
        "customer": few("", None) | texts(),
        "product": few("", None) | texts(),
        "quantity": few(0, 1, 10_000, 10_001, -(2**63), 2**63 - 1, None) | st.integers(-1, 11_000),
        "unit_price": st.none() | any_prices(),
    }
    return st.one_of([st.builds(lambda value, name=name: {**GOOD, name: value}, any_) for name, any_ in values.items()])


@unhurried
@given(st.lists(any_lines(), max_size=50))
def test_what_is_called_sound_is_what_parse_order_gives(lines: list[dict[str, Any]]) -> None:
    """No row is called sound that is no order, and none comes out different."""
    orders, sound = orders_of(pa.RecordBatch.from_pylist(lines, schema=LINE))
    assert orders.num_rows == len(sound) == len(lines)
    for line, order, is_sound in zip(lines, orders.to_pylist(), sound.to_pylist(), strict=True):
        if is_sound:
            assert order == order_as_row(line)


@unhurried
@given(st.lists(any_lines(), max_size=50))
def test_next_to_nothing_is_doubtful(lines: list[dict[str, Any]]) -> None:
    """Orders are called sound but for years before 1000 and a day a century: who is not goes the slow way."""
    _, sound = orders_of(pa.RecordBatch.from_pylist(lines, schema=LINE))
    for line, is_sound in zip(lines, sound.to_pylist(), strict=True):
        if not is_sound and _is_order(line):
            odd = [line[name][:10] for name in ("ordered_at", "updated_at")]
            assert any(day < "1000" or day[2:] == "00-02-29" for day in odd), line


def _is_order(line: dict[str, Any]) -> bool:
    try:
        order_as_row(line)
    except ValueError:
        return False
    return True


EDGES: dict[str, tuple[list[Any], list[Any]]] = {
    "ordered_at": (
        ["2026-03-01T00:00:00Z", "2026-03-01T23:59:59Z", "1000-01-01T00:00:00Z", "9999-12-31T23:59:59Z"],
        [
            *("2026-03-01T24:00:00Z", "2026-03-01T09:60:00Z", "2026-03-01T09:30:60Z", "0000-01-01T00:00:00Z"),
            *("2026-03-01T09:30:00Z\n", " 2026-03-01T09:30:00Z", "2026-03-01T09:30:00ZZ", "2026-03-01 09:30:00Z"),
            *("1900-02-29T00:00:00Z", "2100-02-29T00:00:00Z", "2026-02-29T00:00:00Z"),
            *("2026-03-01T09:30:00z", "2026-03-01T09:30:00+00:00", "2026-03-01T09:30:00", "\u0662026-03-01T09:30:00Z"),
        ],
    ),
    "quantity": ([1, 10_000], [0, -1, 10_001, 2**63 - 1, -(2**63), None]),
    "unit_price": (
        ["0.00", "9999999.99", "0000000.01"],
        ["10000000.00", "1.000", "1.0", "1", ".50", "1,00", "1.00\n", "\n1.00", "+1.00", "-1.00", "\u0661.00", None],
    ),
    "customer": (["a", "\u0000", " ", "\ufeff"], ["", None]),
}
EDGES["updated_at"] = EDGES["ordered_at"]
EDGES["order_id"] = EDGES["product"] = EDGES["customer"]


@pytest.mark.parametrize("name", EDGES)
def test_where_soundness_ends(name: str) -> None:
    """The last value that is sound of each field, and the first that is not; `parse_order` says the same."""
    sound, unsound = EDGES[name]
    lines = [{**GOOD, name: value} for value in (*sound, *unsound)]
    assert [_is_order(line) for line in lines] == [True] * len(sound) + [False] * len(unsound)
    _, found = orders_of(pa.RecordBatch.from_pylist(lines, schema=LINE))
    assert found.to_pylist() == [True] * len(sound) + [False] * len(unsound)


def test_every_day_that_exists_is_sound() -> None:
    """And no other day; February 29 of every year but the centuries'."""
    days = [f"{year}-{month:02d}-{day:02d}" for year in range(2023, 2027) for month in range(14) for day in range(33)]
    days += [f"{year}-02-29" for year in range(1000, 10_000) if year % 100]
    lines = [{**GOOD, "ordered_at": f"{day}T09:30:00Z"} for day in days]
    _, sound = orders_of(pa.RecordBatch.from_pylist(lines, schema=LINE))
    assert sound.to_pylist() == [_exists(day) for day in days]


def _exists(day: str) -> bool:
    try:
        datetime.fromisoformat(day)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("name", BAD)
def test_a_line_that_is_none_is_a_bad_record_for_the_same_reason(name: str) -> None:
    """Whatever Arrow makes of it, `parse_order` says why."""
    value, reason = BAD[name]
    lines = [json.dumps(line).encode() + b"\n" for line in (GOOD, value, GOOD)]
    batches, bad = decoded(b"".join(lines))
    assert [row for decoded_ in batches for row in decoded_.to_pylist()] == batch([ORDER, ORDER]).to_pylist()
    assert [(record.offset, record.reason, record.record) for record in bad] == [
        (len(lines[0]), f"ValueError: {reason}", lines[1].rstrip(b"\n"))
    ]


def decoded(data: bytes) -> tuple[list[pa.RecordBatch], list[BadRecord]]:
    """A block of lines, as the pipeline reads it."""
    bad: list[BadRecord] = []
    lines = JsonLines(order_as_row, schema=LINE, parse_batch=orders_of)
    return list(lines.decode_batches(Block(path="orders", offset=0, data=data), bad)), bad


@unhurried
@given(st.lists(sound_orders(), min_size=1), st.integers(1, 9), st.data())
def test_a_partition_holds_all_versions_of_an_order(orders: list[Order], partitions: int, data: st.DataObject) -> None:
    """Nothing is lost, nothing comes twice, and an id has one partition in whatever batch it is."""
    cut = data.draw(st.integers(1, len(orders)))
    parts = [part for some in (orders[:cut], orders[cut:]) if some for part in partitioned(batch(some), partitions)]
    found = [(partition, row) for partition, part in parts for row in part.to_pylist()]
    assert Counter(json.dumps(row) for _, row in found) == Counter(json.dumps(row) for row in batch(orders).to_pylist())
    assert len({(partition, row["order_id"]) for partition, row in found}) == len({row["order_id"] for _, row in found})
    assert all(0 <= partition < partitions for partition, _ in found)


def test_the_partition_is_the_same_on_every_machine() -> None:
    """Two workers have to agree."""
    orders: list[Order] = [{**ORDER, "order_id": order_id} for order_id in ("O-1", "O-2", "O-0000003", "Zoë")]
    parts = partitioned(batch(orders), 64)
    found = {row["order_id"]: partition for partition, part in parts for row in part.to_pylist()}
    assert found == {"O-1": 58, "O-2": 0, "O-0000003": 18, "Zoë": 42}


@unhurried
@given(st.lists(sound_orders(), min_size=1), st.data())
def test_the_newest_are_those_of_the_other_pipeline(orders: list[Order], data: st.DataObject) -> None:
    """Of each id the same one, wherever its versions stand and however they are cut into batches."""
    cut = data.draw(st.integers(1, len(orders)))
    batches = [batch(some) for some in (orders[:cut], orders[cut:]) if some]
    ids = sorted({order["order_id"] for order in orders})
    expected = [newest(order for order in orders if order["order_id"] == order_id) for order_id in ids]
    assert [row for found in newest_of(iter(batches)) for row in found.to_pylist()] == batch(expected).to_pylist()


def test_ties_go_to_the_greater_field_by_field() -> None:
    """In the order that `pipelines.orders` compares them, of which any field outweighs all behind it."""
    names = ["updated_at", "ordered_at", "customer", "product", "quantity", "unit_price_cents"]
    low: dict[str, Any] = {"updated_at": "2026-03-01T09:31:06Z", "ordered_at": "2026-03-01T09:29:00Z"}
    low |= {"customer": "Zoa", "product": "P", "quantity": 2, "unit_price_cents": 999}
    for at, name in enumerate(names):
        worse: Order = {**ORDER, name: low[name]}
        better: Order = {**ORDER, **{behind: low[behind] for behind in names[at + 1 :]}}
        assert newest([worse, better]) == better
        assert [row for found in newest_of([batch([worse, better])]) for row in found.to_pylist()] == [better]


@unhurried
@given(st.lists(sound_orders(), min_size=1))
def test_rows_and_sales_are_those_of_the_other_pipeline(orders: list[Order]) -> None:
    """The same lines of JSON and the same sums, to the byte and the cent."""
    categories = {"P-001": "garden", "P-002": "books", "Zoë": "unknown"}
    known = with_category(batch(orders), categories)
    one_by_one = [newest_of_other([order], categories) for order in orders]
    lines = JsonLines().encode_batch(order_rows(known))
    assert lines == b"".join(JsonLines().encode(other.order_row(*each)) for each in one_by_one)
    revenue: Counter[tuple[str, str]] = Counter()
    for key, cents in map(other.sale, *zip(*one_by_one, strict=True)):
        revenue[key] += cents
    assert dict(sales(known)) == revenue


def test_no_products_at_all() -> None:
    """Then every category is unknown."""
    assert with_category(batch([ORDER]), {})["category"].to_pylist() == ["unknown"]


def outputs(shop: Shop, prefix: str) -> dict[str, Counter[bytes]]:
    """The lines that a run has written, by sink, in no order."""
    lines: dict[str, Counter[bytes]] = {}
    for name in shop.curated.list(prefix):
        sink, _, blob = name.removeprefix(prefix).partition("/")
        if not blob.startswith("_"):
            lines.setdefault(sink, Counter()).update(shop.curated.download(name).splitlines(keepends=True))
    return lines


def run_batched(shop: Shop, *flags: str, **changed: str) -> Ended:
    """Run the pipeline on batches, into a prefix of its own."""
    output = shop.curated.url("orders/batched/")
    return shop.run(*flags, module="pipelines.orders_batched", **{"output": output, **changed})


def upload_oddities(shop: Shop) -> None:
    """Files with whatever the sample data has not."""
    versions = [
        {**GOOD, "order_id": "tie", **change}
        for change in (
            {"customer": "\uffff"},
            {"customer": "\U00010000"},
            {"customer": "\U00010000", "quantity": 9},
            {"customer": "\U00010000", "quantity": 10, "unit_price": "9.99"},
            {"customer": "\U00010000", "quantity": 10, "unit_price": "10.00"},
            {"customer": "\U00010000", "quantity": 10, "unit_price": "0009.00"},
            {"customer": "\U0001f600" * 9, "updated_at": "2025-03-01T09:31:07Z"},
        )
    ]
    escaped = [json.dumps(order).encode() for order in versions]
    plain = [json.dumps(order, ensure_ascii=False).encode() for order in reversed(versions)]
    days = [f"{day}T00:00:00Z" for day in ("0999-12-31", "2000-02-29")]
    odd_days = [json.dumps({**GOOD, "order_id": day, "ordered_at": day}).encode() for day in days]
    odd_lines = [
        b'{"order_id":"\xff"}',
        b"\xef\xbb\xbf" + json.dumps(GOOD).encode(),
        b'{"a":1} {"b":2}',
        b"NaN",
        b"[" * 2000,
        b'{"order_id":"twice","order_id":"really twice",' + json.dumps(GOOD).encode()[1:],
        json.dumps({**GOOD, "order_id": "more", "note": {"a": [1, "2", None]}, "quantity": 10_000}).encode(),
        json.dumps({**GOOD, "order_id": "quote", "customer": 'a "b" \\ \u0000\u001f\u2028\u007f/'}).encode(),
        json.dumps({**GOOD, "order_id": "big", "quantity": 2**70}).encode(),
        json.dumps({**GOOD, "order_id": "float", "quantity": 3.0}).encode(),
        b"  " + json.dumps({**GOOD, "order_id": "spaced"}, indent=None, separators=(" , ", " :\t")).encode() + b" \t",
    ]
    bad = [json.dumps(value).encode() for value, _ in BAD.values()]
    shop.raw.upload("orders/odd-1.jsonl", b"\r\n".join([*escaped, b"", b" \t", *odd_lines]))
    shop.raw.upload("orders/odd-2.jsonl", b"\n".join([*plain, *bad, *odd_days]))
    shop.raw.upload("orders/odd-3.jsonl.gz", gzip.compress(b"\xef\xbb\xbf" + b"\n\n".join([*odd_lines, *plain, *bad])))
    shop.raw.upload("orders/odd-4.jsonl", b"\r\n\n \n")
    shop.raw.upload("orders/odd-5.jsonl", b"")


def test_the_outputs_are_those_of_the_other_pipeline(shop: Shop) -> None:
    """Each line of each output is the same, to the byte; so is what the job was allowed to touch."""
    shop.upload_sample(1000)
    upload_oddities(shop)
    runs = [shop.run(), run_batched(shop)]
    assert [done.status for done in runs] == [0, 0], runs[1].said
    expected, found = (outputs(shop, prefix) for prefix in ("orders/run/", "orders/batched/"))
    assert set(found) == {"clean", "revenue", "dead"}
    for sink, lines in expected.items():
        assert found[sink] - lines == Counter(), sink
        assert lines - found[sink] == Counter(), sink
    assert len(expected["dead"]) > len(BAD)
    assert runs[1].err == ""
    assert shop.cloud.find_leaks(runs[1].said) == []


def test_two_worker_processes_come_to_what_was_computed_without_beam(shop: Shop) -> None:
    """Both hash alike: every order once, revenue to the cent, each dead letter; sealed and verified."""
    expected = compute(shop.upload_sample(2000), url=shop.raw.url())
    flags = ("--direct_running_mode=multi_processing", "--direct_num_workers=2", "--partitions=5")
    done = run_batched(shop, *flags)
    assert done.status == 0, done.said
    prefix = "orders/batched/"
    names = [name.removeprefix(prefix) for name in shop.curated.list(prefix)]
    found = read_outputs(names, lambda name: shop.curated.download(prefix + name))
    assert differences(expected.outcome, found) == []
    report = shop.report()
    verify(shop.trail(), seal_digest=report["seal_digest"])
    assert report["outcome"] == "ok"


def test_partitions_are_at_least_one(shop: Shop) -> None:
    """Said at launch, before anything is read."""
    shop.upload_sample(10)
    done = run_batched(shop, "--partitions=0")
    assert done.status == 1
    assert done.err.startswith("ConfigError: --partitions=0"), done.said
    assert shop.curated.list() == []


def test_help_names_this_pipeline(shop: Shop) -> None:
    """Its own flag, and those of the other one."""
    done = run_batched(shop, "--help")
    assert done.status == 0, done.said
    assert done.out.startswith("usage: python -m pipelines.orders_batched ")
    for text in ("--partitions N", "--input", "--products", "--output", "--access_manifest"):
        assert text in done.out
