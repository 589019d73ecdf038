"""The sample data: the same each time, and as bad as it says."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pipelines.demo.data import write_sample_data
from pipelines.demo.totals import compute

URL = "abfss://raw@contosolake.dfs.core.windows.net/"


def digests(folder: Path) -> dict[str, str]:
    """Of each file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_it_is_the_same_each_time(tmp_path: Path) -> None:
    """Two runs write equal files."""
    write_sample_data(tmp_path / "one", orders=2000)
    write_sample_data(tmp_path / "two", orders=2000)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_it_has_what_goes_wrong(tmp_path: Path) -> None:
    """Eight blobs, one of them compressed, half a percent of bad lines, one percent of orders that come again."""
    write_sample_data(tmp_path, orders=20_000)
    found = compute(tmp_path, url=URL)
    assert found.lines == 20_000
    assert found.files == 8
    assert len(list((tmp_path / "orders").glob("*.gz"))) == 1
    assert 60 < len(found.outcome.dead) < 140
    assert 140 < found.duplicates < 260
    assert len(found.outcome.rows) == found.lines - found.duplicates - len(found.outcome.dead)
    assert {category for _, category in found.outcome.revenue} >= {"unknown", "books"}
    assert b"\r\n" in (tmp_path / "orders" / "2026-03-03.jsonl").read_bytes()
    assert b"\n\n" in (tmp_path / "orders" / "2026-03-05.jsonl").read_bytes()
