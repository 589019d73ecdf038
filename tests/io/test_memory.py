"""A process that reads very many blobs holds what it holds after some."""

from __future__ import annotations

import gc
import itertools
import re
from collections import Counter
from typing import Any

from beam_entra import Lines
from beam_entra.clock import utc_now
from beam_entra.io.packs import Pack, keyed
from beam_entra.io.read import ReadFromBlob, _Decode, _ReadBlocks
from beam_entra.paths import BlobPath
from beam_entra.session import JobScope, Session
from beam_entra.storage import BlobProperties
from beam_entra.testing.https import Answer
from beam_entra.testing.storage_requests import matching
from tests.session.test_memory import held

TINY = b'{"id": 1}\n'
OURS = re.compile(r"beam_entra\.(?!testing)")
LATELY = 50  # objects that go with the next append, or are made once


def test_a_process_that_reads_on_holds_no_more(lake: Any) -> None:
    """Of what it has read, a bundle keeps SAS alone, those of the last blobs; the process keeps nothing."""
    headers = {
        "ETag": '"0x1"',
        "Last-Modified": "Sat, 21 Nov 2026 12:00:00 GMT",
        "Content-Range": f"bytes 0-{len(TINY) - 1}/{len(TINY)}",
        "x-ms-request-id": "read",
    }
    lake.cloud.proxy.stand_in(
        lambda request: Answer(status=206, headers=headers, body=TINY),
        where=matching("GetBlob", container=lake.raw.name),
    )
    numbers = itertools.count()
    scope = JobScope.launch(lake.manifest(), now=utc_now())
    fn = _ReadBlocks(ReadFromBlob(lake.raw.url("in/*"), Lines())._settings).scoped(scope, "Read")
    fn._session = session = Session(scope)
    fn.start_bundle()
    decode = _Decode(Lines(), keep_bad=False, job=scope.job)

    def read(packs: int) -> None:
        for _ in range(packs):
            pack = keyed(Pack([tiny(lake, next(numbers)) for _ in range(64)]))
            blocks = fn.process(pack, fn.create_tracker(fn.initial_restriction(pack)))
            assert sum(len(decode.process(block)) for block in blocks) == 64
        session.settle()
        assert len(fn.bundle()._sas) == 64 * packs
        fn.bundle()._sas.clear()

    def objects() -> Counter[str]:
        gc.collect()
        kinds = Counter(f"{type(each).__module__}.{type(each).__name__}" for each in gc.get_objects())
        return Counter({kind: many for kind, many in kinds.items() if OURS.match(kind)})

    read(2)
    before, within = objects(), held(fn)
    read(4)
    grown = {kind: (before[kind], many) for kind, many in objects().items() if many > before[kind] + LATELY}
    assert grown == {}
    grown = {kind: (within[kind], many) for kind, many in held(fn).items() if many > within[kind] + LATELY}
    assert grown == {}
    fn.finish_bundle()
    session.close()


def tiny(lake: Any, number: int) -> BlobProperties:
    """A blob that is not there."""
    path = BlobPath.parse(lake.raw.url(f"in/{number}.jsonl"))
    return BlobProperties(path=path, size_bytes=len(TINY), etag='"0x1"', last_modified=utc_now())
