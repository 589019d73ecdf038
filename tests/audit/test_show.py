"""Trails for people: header, aligned records, the story of one blob, and nothing that a terminal would act on."""

from __future__ import annotations

import io
import re
from types import ModuleType
from typing import Any, get_args

import pytest
from rich.console import Console

from beam_entra.audit.interim import seal_interim
from beam_entra.audit.record import SEAL_NAME, AnyRecord, Read
from beam_entra.audit.show import Story, describe, show_blob, show_trail
from beam_entra.paths import BlobPattern


def _shown(trail: Any, blob: str | None = None, *, terminal: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, highlight=False, markup=False, force_terminal=terminal, width=80, legacy_windows=False)
    story = Story.read(trail)
    if blob is None:
        show_trail(story, console)
    else:
        show_blob(story, console, BlobPattern.parse(blob))
    return out.getvalue()


def test_header(trails: ModuleType) -> None:
    """Who, which job, as whom, until when, and how it ended."""
    text = _shown(trails.sample()[0])
    for line in (
        "job        orders-2030-01-31",
        "pipeline   orders (test)",
        "identity   client 6f1f7a52-0f0a-4b5e-8a53-3a2c1c6d9e11 of tenant contoso.example, by federated_file",
        "deadline   2030-01-31 11:30:00 UTC",
        "sealed     ok, 2030-01-31",
    ):
        assert line in text
    assert "BROKEN" not in text


def test_every_record_once_in_order_and_aligned(trails: ModuleType) -> None:
    """Each record is one line, also when it is long and the terminal narrow; columns line up within a segment."""
    store, _ = trails.sample()
    lines = [line for line in _shown(store).splitlines() if re.match(r"  \d\d:\d\d:\d\d\.\d{6}  ", line)]
    assert len(lines) == len(store.lines()) - 1
    first = len(trails.parsed(store.files)[sorted(store.files)[1]])
    times = [line.split()[0] for line in lines[:first]]
    assert times == sorted(times)
    columns = {re.match(r"  \S+  \S+ +", line).end() for line in lines[:first]}  # type: ignore[union-attr]  # it matched above
    assert len(columns) == 1
    assert not any(line != line.rstrip() for line in _shown(store).splitlines())


def test_colour_only_on_a_terminal(trails: ModuleType) -> None:
    """A pipe gets plain text."""
    store, _ = trails.sample()
    assert "\x1b[" not in _shown(store)
    assert "\x1b[" in _shown(store, terminal=True)


def test_blob(trails: ModuleType) -> None:
    """Which job read this blob, as whom, under which token: token, key, SAS, access, each below the one before."""
    text = _shown(trails.sample()[0], trails.LAKE + "orders/1.jsonl")
    assert "client 6f1f7a52" in text
    chain = [line for line in text.splitlines() if "└" in line]
    assert [line.split()[4] for line in chain] == ["token_acquired", "key_acquired", "sas_issued", "read"]
    assert [line.index("└") for line in chain] == [2, 4, 6, 8]
    assert "uti bUWm-x1" in chain[0]
    assert "by federated_file" in chain[0]
    assert "in Read/ParDo(Split)" in chain[2]
    assert "bytes [0, 10)" in chain[3]
    assert "request req-3" in chain[3]
    assert "2.jsonl" not in text


def test_a_job_that_presents_its_token(trails: ModuleType) -> None:
    """The header says that its scoping is wider and its life a rolling one; a blob's story has no key and no SAS."""
    text = _shown(trails.bearer_sample())
    assert "deadline   rolling, 1:00:00 after the last fresh token of each process" in text
    assert "scoping    bearer: " in text
    assert "scoping" not in _shown(trails.sample()[0])
    story = _shown(trails.bearer_sample(), trails.LAKE + "clean/2.jsonl")
    chain = [line.split()[4] for line in story.splitlines() if "└" in line]
    assert chain == ["token_acquired", "staged", "copied", "commit_intended", "committed"]


def test_blob_by_pattern(trails: ModuleType) -> None:
    """A glob asks for many blobs; token and key are said once."""
    text = _shown(trails.sample()[0], trails.LAKE + "clean/*.jsonl")
    kinds = [line.split()[4] for line in text.splitlines() if "└" in line]
    assert kinds.count("token_acquired") == 1
    assert kinds.count("sas_issued") == 2
    assert kinds[2:6] == ["sas_issued", "staged", "commit_intended", "committed"]


def test_blob_that_was_refused(trails: ModuleType) -> None:
    """A refusal is part of a blob's story."""
    text = _shown(trails.sample()[0], trails.LAKE + "hr/x")
    assert "read refused by manifest: no grant covers it" in text


@pytest.mark.parametrize(
    "blob",
    [
        "abfss://raw@contosolake.dfs.core.windows.net/orders/9.jsonl",
        "abfss://raw@fabrikamlake.dfs.core.windows.net/orders/1.jsonl",
        "abfss://other@contosolake.dfs.core.windows.net/orders/1.jsonl",
    ],
)
def test_blob_that_nobody_touched(trails: ModuleType, blob: str) -> None:
    """The account and the container of a blob matter; nothing is printed for a stranger."""
    assert _shown(trails.sample()[0], blob) == ""


def test_unsealed(trails: ModuleType) -> None:
    """A job that runs still can be shown; that is not called broken."""
    store, _ = trails.sample()
    del store.files[SEAL_NAME]
    text = _shown(store)
    assert "sealed     not yet\n" in text
    assert "BROKEN" not in text
    seal_interim(store, store, job=trails.JOB, clock=trails.Clock())
    text = _shown(store)
    assert "sealed     not yet; up to 2030-01-31 09:30:00 UTC by an interim seal\n" in text
    assert "seal-000000" not in text, "it is no segment"
    assert "BROKEN" not in text


def test_broken(trails: ModuleType) -> None:
    """What can be read is shown, with what is wrong on top."""
    store, _ = trails.sample()
    name = sorted(store.files)[1]
    store.files[name] = store.files[name].replace(b'"step":', b'"stop":', 1)
    text = _shown(store)
    assert "unreadable 1 lines" in text
    assert re.search(r"BROKEN     segment-\S+ line \d+: rule 2: ", text)
    assert "committed" in text


def test_nothing_for_the_terminal_to_act_on(trails: ModuleType) -> None:
    """Text from elsewhere cannot clear the screen, move the cursor or turn the line around."""
    store, _ = trails.sample()

    def change(records: Any) -> None:
        found, at = trails.find(records, "denied")
        found[at]["reason"] = "no\x1b[2J\r\u202e\x9b[bold]"
        for records_of_one in records.values():
            records_of_one[0]["host"] = "\x1b]0;title\x07"

    text = _shown(trails.MemoryTrail(trails.rewritten(store.files, change)))
    assert not set("\x1b\r\u202e\x9b\x07") & set(text)
    assert r"no\x1b[2J\r\u202e\x9b[bold]" in text


def test_describes_every_kind(trails: ModuleType) -> None:
    """Each kind of record has its words, and long ids are shortened."""
    running, _ = trails.sample()
    del running.files[SEAL_NAME]
    seal_interim(running, running, job=trails.JOB, clock=trails.Clock())
    stories = [Story.read(store) for store in (running, trails.sample()[0], trails.bearer_sample())]
    assert stories[1].seal is not None
    records = [record for story in stories for segment in story.segments.values() for record in segment]
    seen: list[Any] = [stories[0].interim, stories[1].seal, *records]
    assert {type(record) for record in seen} == set(get_args(AnyRecord))
    assert all(any(describe(record)) for record in seen)
    read = next(record for record in seen if isinstance(record, Read))
    assert describe(read.model_copy(update={"sas": "0123456789abcdefg"}))[0] == "01234567"
