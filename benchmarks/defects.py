"""What Beam's azfs gets wrong, reproduced: `python -m benchmarks.defects`. Each finding is shown, not quoted.

It runs against a cloud of its own, in a child process with azfs's settings, and prints a JSON list of findings.
"""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.usage import Usage

__all__ = ["Defect", "find_defects"]

_ROOT = Path(__file__).resolve().parents[1]
_BLOB = "azfs://contosolake/raw/in/lines/0.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Defect:
    """One finding.

    Attributes:
        what: What is wrong.
        seen: What was seen this time.
        reproduced: Whether it was seen at all; if not, a new Beam has mended it.
    """

    what: str
    seen: str
    reproduced: bool


def find_defects() -> list[Defect]:
    """Look for each, against a fresh cloud."""
    from benchmarks import data  # noqa: PLC0415 - the child needs none of it
    from benchmarks.cloud import bring_up  # noqa: PLC0415 - likewise

    with bring_up(0, data.json_lines(1, 20_000_000)) as cloud:
        ran = subprocess.run(
            [sys.executable, "-m", "benchmarks.defects", "--child"],
            env=cloud.environment(),
            cwd=_ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    if ran.returncode:
        raise RuntimeError(ran.stderr[-2000:])
    return [Defect(**found) for found in json.loads(ran.stdout.splitlines()[-1])]


def _look() -> list[Defect]:
    """In the child."""
    from apache_beam.io.azure import blobstorageio  # noqa: PLC0415 - the parent needs none of it
    from apache_beam.io.azure.blobstoragefilesystem import BlobStorageFileSystem  # noqa: PLC0415 - likewise
    from apache_beam.options.pipeline_options import PipelineOptions  # noqa: PLC0415 - likewise

    system = BlobStorageFileSystem(PipelineOptions([]))
    return [
        _one_credential(PipelineOptions),
        _account_ignored(system),
        _exists_raises(system),
        _new_clients(system, blobstorageio),
        _whole_file_in_memory(system),
        _no_retry(blobstorageio),
        _deletes_before_copied(blobstorageio),
        _shows_the_key(PipelineOptions),
    ]


def _one_credential(options: Callable[[list[str]], Any]) -> Defect:
    from apache_beam.internal.azure import auth  # noqa: PLC0415 - the parent needs none of it

    first, second = (
        auth.get_service_credentials(options([f"--azure_managed_identity_client_id={client}"]))
        for client in ("client-one", "client-two")
    )
    return Defect(
        what="One credential for the whole process: the first pipeline's options decide for all that follow.",
        seen=f"two pipelines of two identities got {'the same credential' if first is second else 'a credential each'}",
        reproduced=first is second,
    )


def _account_ignored(system: Any) -> Defect:
    there = system.open(_BLOB).read(20)
    elsewhere = system.open(_BLOB.replace("contosolake", "somebodyelse")).read(20)
    same = there == elsewhere
    return Defect(
        what="The account in a path is ignored: another account's path reads this account's data.",
        seen=f"azfs://somebodyelse/... gave {'the bytes of' if same else 'other bytes than'} azfs://contosolake/...",
        reproduced=same,
    )


def _exists_raises(system: Any) -> Defect:
    try:
        answer = f"it returned {system.exists(_BLOB + '.none')}"
    except Exception as error:  # noqa: BLE001 - that it raises is the finding
        answer = f"it raised {type(error).__name__}"
    what = "`exists` of a blob that is not there raises."
    return Defect(what=what, seen=answer, reproduced=answer.startswith("it raised"))


def _new_clients(system: Any, io: Any) -> Defect:
    made: list[Any] = []
    with _instead(io.BlobServiceClient, "__init__", lambda plain: lambda *args, **kw: made.append(plain(*args, **kw))):
        for _ in range(5):
            system.open(_BLOB).close()
    return Defect(
        what="A new client, with a connection pool and a TLS handshake of its own, for each blob that is opened.",
        seen=f"{len(made)} clients for 5 opens",
        reproduced=len(made) >= 5,
    )


def _whole_file_in_memory(system: Any) -> Defect:
    size = 60_000_000
    piece = b"x" * 1_000_000
    with Usage() as usage:
        file = system.create("azfs://contosolake/curated/out/large.bin")
        for _ in range(size // len(piece)):
            file.write(piece)
        file.close()
    held = usage.peak_bytes - usage.idle_bytes
    return Defect(
        what="An upload goes to a temporary file first, and is then read into memory as a whole.",
        seen=f"writing {size / 1e6:.0f} MB took {held / 1e6:.0f} MB of memory",
        reproduced=held > size * 0.9,
    )


def _no_retry(io: Any) -> Defect:
    """A server that is busy twice and then answers: what its client's own retries are for is switched off here."""
    from azure.core.exceptions import HttpResponseError  # noqa: PLC0415 - the parent needs none of it
    from azure.storage.blob import BlobServiceClient  # noqa: PLC0415 - likewise

    with _busy_server() as (url, asked):
        client = BlobServiceClient(url + "/contosolake", credential=None, retry_total=0)
        with suppress(HttpResponseError):
            io.BlobStorageIO(client=client).size(_BLOB)
        return Defect(
            what="Its own retries filter on an error that it never raises, so that they do nothing.",
            seen=f"{len(asked)} request to a server that is busy",
            reproduced=len(asked) == 1,
        )


def _deletes_before_copied(io: Any) -> Defect:
    """A client that starts copies and never ends them, as Storage may for a while."""
    deleted: list[str] = []

    class Pending:
        def __init__(self, name: str) -> None:
            self._name = name

        def start_copy_from_url(self, url: str) -> dict[str, str]:
            return {"copy_status": "pending"}

        def delete_blob(self) -> None:
            deleted.append(self._name)

    class Client:
        def get_blob_client(self, container: str, blob: str) -> Pending:
            return Pending(blob)

    io.BlobStorageIO(client=Client()).rename("azfs://contosolake/raw/old", "azfs://contosolake/raw/new")
    return Defect(
        what="`rename` starts a copy, which Storage may do later, and deletes the source without waiting.",
        seen="the source was deleted while the copy was pending" if deleted else "the source was left",
        reproduced=deleted == ["old"],
    )


def _shows_the_key(options: Callable[[list[str]], Any]) -> Defect:
    from apache_beam.transforms.display import DisplayData  # noqa: PLC0415 - the parent needs none of it

    made_up = "AccountKey=made-up"
    shown = DisplayData.create_from_options(options([f"--azure_connection_string={made_up}"])).to_proto()
    found = any(made_up.encode() in part.payload for part in shown)
    return Defect(
        what="The connection string, account key included, is a pipeline option, and so display data.",
        seen=f"the key is {'in' if found else 'not in'} the pipeline's display data",
        reproduced=found,
    )


@contextmanager
def _instead(owner: Any, name: str, wrapped: Callable[[Any], Any]) -> Iterator[None]:
    """Look over the shoulder of a method for a while."""
    plain = getattr(owner, name)
    setattr(owner, name, wrapped(plain))
    try:
        yield
    finally:
        setattr(owner, name, plain)


@contextmanager
def _busy_server() -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []

    class Busy(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            asked.append(urlsplit(self.path).path)
            self.send_response(503)
            self.send_header("x-ms-error-code", "ServerBusy")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Silent."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Busy)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


if __name__ == "__main__":
    found = _look() if "--child" in sys.argv else find_defects()
    print(json.dumps([asdict(defect) for defect in found], indent=None if "--child" in sys.argv else 1))
    sys.stdout.flush()
    os._exit(0)  # azfs leaves threads of its clients behind
