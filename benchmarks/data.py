"""What the rows read: made anew in each run, the same each time. Each function gives names and contents of blobs."""

from __future__ import annotations

import io
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipelines.demo.data import write_sample_data

__all__ = ["KEYS", "Blobs", "json_lines", "large", "many", "nothing", "orders", "parquet", "record", "small"]

Blobs = Iterator[tuple[str, bytes]]
KEYS = 1000
_PADDING = "abcdefghijklmnopqrstuvwxyz" * 80


def record(number: int, padding: int = 76) -> str:
    """A JSON record, without a line end: about 75 bytes and the padding."""
    return (
        f'{{"id":{number},"key":"k{number % KEYS}","amount":{number * 7919 % 100_000},'
        f'"name":"customer {number % 9973}","pad":"{_PADDING[number % 26 : number % 26 + padding]}"}}'
    )


def nothing() -> Blobs:
    """For rows that only write."""
    yield from ()


def json_lines(blobs: int, size_bytes: int) -> Blobs:
    """Blobs of JSON Lines, about this long each."""
    data = _records(size_bytes)
    for number in range(blobs):
        yield f"in/lines/{number}.jsonl", data


def small(blobs: int, size_bytes: int, *, some: int) -> Blobs:
    """Many small blobs of JSON Lines; `some` of them again in a folder of their own."""
    data = _records(size_bytes)
    for number in range(blobs):
        yield f"in/small/{number:05d}.jsonl", data
    for number in range(some):
        yield f"in/some/{number:05d}.jsonl", data


def large(blobs: int, size_bytes: int) -> Blobs:
    """Blobs of bytes in no format."""
    data = random.Random(1).randbytes(size_bytes)  # noqa: S311 - sample data, the same each time
    for number in range(blobs):
        yield f"in/large/{number}.bin", data


def many(blobs: int) -> Blobs:
    """Blobs that are only listed: empty, in 100 folders."""
    for number in range(blobs):
        yield f"in/many/{number % 100:02d}/{number:06d}.txt", b""


def parquet(blobs: int, rows: int) -> Blobs:
    """Parquet files of 20 columns in 5 row groups."""
    import numpy as np  # noqa: PLC0415 - half a second that only this row needs
    import pyarrow as pa  # noqa: PLC0415 - likewise
    import pyarrow.parquet as pq  # noqa: PLC0415 - likewise

    random_ = np.random.default_rng(2)  # sample data, the same each time
    columns: dict[str, object] = {f"c{number:02d}": random_.integers(0, 1 << 40, rows) for number in range(18)}
    columns["key"] = [f"k{number % KEYS}" for number in range(rows)]
    columns["amount"] = list(range(rows))
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, row_group_size=max(rows // 5, 1))
    for number in range(blobs):
        yield f"in/parquet/{number}.parquet", file.getvalue()


def orders(lines: int) -> Blobs:
    """The demo's sample data: `in/products.csv` and `in/orders/`."""
    with tempfile.TemporaryDirectory() as folder:
        write_sample_data(Path(folder), orders=lines)
        for path in sorted(Path(folder).rglob("*.*")):
            yield f"in/{path.relative_to(folder).as_posix()}", path.read_bytes()


def _records(size_bytes: int) -> bytes:
    lines: list[str] = []
    length = number = 0
    while length < size_bytes:
        line = record(number) + "\n"
        lines.append(line)
        length += len(line)
        number += 1
    return "".join(lines).encode("ascii")
