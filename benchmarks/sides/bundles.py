"""What a bundle costs that touches no data: open its session, issue a SAS, record all of it, close; and its floor."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http import HTTPStatus
from http.client import HTTPResponse, HTTPSConnection
from urllib.parse import urlsplit

from beam_entra.access import Permission, SasSpec
from beam_entra.paths import BlobPath
from beam_entra.secret import Secret
from beam_entra.session import Session
from beam_entra.storage import mint
from benchmarks.cloud import ACCOUNT, AUDIT
from benchmarks.sides.jobs import ours_in, scope_of
from benchmarks.task import Done, Task

__all__ = ["appends", "our_bundles"]

_RECORDS_BYTES = 888  # of a bundle's three records: opened, SAS issued, closed
_WARM = 20


def our_bundles(task: Task) -> Callable[[], Done]:
    """Bundle after bundle, each timed; each waits until its records are durable.

    In a thread that is not the main one, as Beam's workers run them; within DirectRunner's launcher they run in that.
    """
    session = Session(scope_of(task))
    path = BlobPath.parse(ours_in("nothing.jsonl"))

    def one() -> float:
        began = time.perf_counter()
        with session.bundle("bench") as bundle:
            bundle.sas(path, Permission.READ)
        return time.perf_counter() - began

    for _ in range(_WARM):
        one()

    def work() -> Done:
        with ThreadPoolExecutor(1) as worker:
            samples = worker.submit(lambda: tuple(one() for _ in range(task.given["bundles"]))).result()
        session.close()
        return Done(units=len(samples), samples_s=samples)

    return work


def appends(task: Task) -> Callable[[], Done]:
    """As many bytes as a bundle records, appended to one blob, time after time: what each bundle has to wait for.

    Over one connection of the standard library, with one SAS such as the trail's: no records, no threads.
    """
    endpoint = urlsplit(task.endpoint)
    blob = f"{endpoint.path}/{AUDIT}/bench/{os.getpid()}.jsonl?{_appenders_sas(task).reveal()}"
    records = b"x" * (_RECORDS_BYTES - 1) + b"\n"
    connection = HTTPSConnection(endpoint.netloc, context=ssl.create_default_context(cafile=task.ca_file))
    connection.connect()

    def put(query: str, body: bytes, *headers: str) -> None:
        host, length = f"Host: {endpoint.netloc}", f"Content-Length: {len(body)}"
        head = (f"PUT {blob}{query} HTTP/1.1", host, length, "x-ms-version: 2023-11-03", *headers, "", "")
        connection.sock.sendall("\r\n".join(head).encode("ascii") + body)
        with HTTPResponse(connection.sock, method="PUT") as answer:
            answer.begin()
            answer.read()
        if answer.status != HTTPStatus.CREATED:
            raise RuntimeError(f"PUT: {answer.status}")

    def one() -> float:
        began = time.perf_counter()
        put("&comp=appendblock", records)
        return time.perf_counter() - began

    put("", b"", "x-ms-blob-type: AppendBlob")
    for _ in range(_WARM):
        one()

    def work() -> Done:
        with closing(connection):
            samples = tuple(one() for _ in range(task.given["bundles"]))
        return Done(units=len(samples), samples_s=samples)

    return work


def _appenders_sas(task: Task) -> Secret:
    session = Session(scope_of(task))
    spec = SasSpec(
        account=ACCOUNT,
        container=AUDIT,
        name=f"bench/{os.getpid()}.jsonl",
        resource="blob",
        permissions="ac",
        expires=session.deadline,
        guarded_prefix="",
    )
    with closing(session):
        return mint(spec, session.key(ACCOUNT), correlation=session.process, sign_correlation=False)
