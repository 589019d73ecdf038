"""A local cloud for one group of rows, with data in it, and what each side needs to reach it."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import urllib3
from azure.storage.blob import generate_container_sas

from beam_entra.testing.local import LocalCloud, endpoints_toml
from beam_entra.testing.tenant import GRAPH
from benchmarks.delay import DelayProxy
from benchmarks.sources import every_source

__all__ = ["ACCOUNT", "AUDIT", "CURATED", "RAW", "BenchCloud", "RawBlobs", "bring_up"]

ACCOUNT, RAW, CURATED, AUDIT = "contosolake", "raw", "curated", "audit"
_TENANT, _CLIENT = "contoso.onmicrosoft.com", "3b0c8a52-6f1e-4d5a-9a7b-2c4d6e8f1a30"
_THREADS = 16

_BY_FILE = {"credential": "federated_file", "assertion_file": "env:AZURE_FEDERATED_TOKEN_FILE"}
_MANIFEST = f"""
pipeline    = "bench"
environment = "test"
[identity]
tenant = "{_TENANT}"
client = "{_CLIENT}"
%s
[lifetime]
job   = "2h"
token = "15m"
[grants]
read  = ["abfss://{RAW}@{ACCOUNT}.dfs.core.windows.net/in/"]
write = ["abfss://{CURATED}@{ACCOUNT}.dfs.core.windows.net/out/"]
token = ["{GRAPH}"]
[audit]
path = "abfss://{AUDIT}@{ACCOUNT}.dfs.core.windows.net/bench/"
"""


class RawBlobs:
    """Plain GETs and PUTs with a container SAS in the URL: to bring data there, and the floor of every read."""

    def __init__(self, *, endpoint: str, sas: str, ca_file: str) -> None:
        self._container, self._sas = endpoint, sas
        self._pool = urllib3.PoolManager(maxsize=_THREADS, ca_certs=ca_file, retries=False)

    def put(self, name: str, data: bytes) -> None:
        """Write a block blob in one request."""
        self._send("PUT", name, body=data, headers={"x-ms-blob-type": "BlockBlob"})

    def put_all(self, blobs: Iterable[tuple[str, bytes]]) -> None:
        """Write many."""
        with ThreadPoolExecutor(_THREADS) as threads:
            for _ in threads.map(lambda blob: self.put(*blob), blobs):
                pass

    def get(self, name: str, start: int = 0, stop: int | None = None) -> bytes:
        """A blob's bytes, or a range of them."""
        headers = {} if stop is None else {"x-ms-range": f"bytes={start}-{stop - 1}"}
        return self._send("GET", name, headers=headers)

    def _send(self, method: str, name: str, *, headers: dict[str, str], body: bytes = b"") -> bytes:
        url = f"{self._container}/{quote(name)}?{self._sas}"
        answer = self._pool.urlopen(method, url, body=body, headers={"x-ms-version": "2023-11-03", **headers})
        if not 200 <= answer.status < 300:
            raise RuntimeError(f"{method} {name}: {answer.status}")
        return answer.data


@dataclass(frozen=True, kw_only=True)
class BenchCloud:
    """One cloud, seen over one round-trip time.

    Attributes:
        endpoint: The account's URL, through the delay proxy if there is a delay.
        raw: To put data into the container that is read from; never delayed.
        sources: What the job's credential sources find in the environment, besides.
    """

    cloud: LocalCloud
    folder: Path
    endpoint: str
    raw: RawBlobs = field(repr=False)
    sources: Mapping[str, str] = field(default_factory=dict, repr=False)

    def environment(self) -> dict[str, str]:
        """What a side's process gets. Secrets go this way alone: no command line and no file of ours holds them."""
        key = self.cloud.azurite.keys[ACCOUNT].reveal()
        return {
            **os.environ,
            "AZURE_FEDERATED_TOKEN_FILE": str(self.cloud.assertion_file),
            # azfs: a static credential, so that it is not slowed by sign-in, and the run's CA by the way that the
            # requests library, which is azure-core's transport, has for it.
            "AZURE_STORAGE_CONNECTION_STRING": (
                f"DefaultEndpointsProtocol=https;AccountName={ACCOUNT};AccountKey={key};BlobEndpoint={self.endpoint};"
            ),
            "REQUESTS_CA_BUNDLE": str(self.cloud.ca_file),
            "BENCH_RAW_SAS": self.container_sas(RAW, "rl"),
            "BENCH_CURATED_SAS": self.container_sas(CURATED, "rwl"),
            **self.sources,
        }

    def settings(self) -> dict[str, str]:
        """What a side's process is told, besides."""
        return {
            "manifest": str(self.folder / "bench.access.toml"),
            "endpoints": str(self._overlay()),
            "endpoint": self.endpoint,
            "ca_file": str(self.cloud.ca_file),
        }

    def container_sas(self, container: str, permission: str) -> str:
        """A static SAS for a whole container, from the account key: what a job has that is not scoped."""
        return str(
            generate_container_sas(
                ACCOUNT,
                container,
                account_key=self.cloud.azurite.keys[ACCOUNT].reveal(),
                permission=permission,
                expiry=datetime.now(UTC) + timedelta(hours=2),
            )
        )

    def digest_of(self, prefix: str) -> list[object]:
        """What a side has written, whatever the names and the order: a line for each folder below the prefix.

        Each says how many lines there are, and a sum of their checksums. Dead letters have a reason of their own on
        each side, so only their number counts.
        """
        folders: dict[str, tuple[int, int]] = {}
        for name in self.cloud.list_blobs(ACCOUNT, CURATED, prefix):
            folder, _, leaf = name.removeprefix(prefix).rpartition("/")
            if leaf.startswith("_"):
                continue
            lines = self.cloud.download(ACCOUNT, CURATED, name).splitlines()
            checksum = 0 if folder == "dead" else sum(map(zlib.crc32, lines))
            count, total = folders.get(folder, (0, 0))
            folders[folder] = count + len(lines), total + checksum
        return [[folder, *figures] for folder, figures in sorted(folders.items())]

    def sizes_of(self, prefix: str) -> dict[str, int]:
        """How many bytes a side has written to each folder below the prefix."""
        container = self.cloud.admin.client(ACCOUNT).get_container_client(CURATED)
        folders: dict[str, int] = {}
        for blob in container.list_blobs(prefix):
            folder, _, leaf = str(blob.name).removeprefix(prefix).rpartition("/")
            if not leaf.startswith("_"):
                folders[folder] = folders.get(folder, 0) + int(blob.size)
        return folders

    def clear(self, prefix: str) -> None:
        """Delete what a side has written."""
        container = self.cloud.admin.client(ACCOUNT).get_container_client(CURATED)
        for name in self.cloud.list_blobs(ACCOUNT, CURATED, prefix):
            container.delete_blob(name)

    def _overlay(self) -> Path:
        path = self.folder / f"endpoints-{self.endpoint.rpartition(':')[2].partition('/')[0]}.toml"
        text = endpoints_toml(
            authority=self.cloud.authority,
            ca_file=self.cloud.ca_file,
            assertion_file=self.cloud.assertion_file,
            accounts={ACCOUNT: self.endpoint},
        )
        path.write_text(text, encoding="utf-8")
        return path


@contextmanager
def bring_up(
    rtt_ms: float, blobs: Iterable[tuple[str, bytes]] = (), *, sources: bool = False
) -> Iterator[BenchCloud]:
    """A fresh cloud with this round-trip time between it and the sides, and data in it.

    Args:
        sources: Have a manifest `<source>.access.toml` beside the usual one for each credential source.
    """
    with ExitStack() as up:
        cloud = up.enter_context(
            LocalCloud(accounts=[ACCOUNT], domains=[_TENANT], client_id=_CLIENT, proxy=False)
        )
        for container in (RAW, CURATED, AUDIT):
            cloud.create_container(ACCOUNT, container)
        endpoint = cloud.endpoint(ACCOUNT)
        if rtt_ms:
            relay = up.enter_context(DelayProxy(cloud.azurite.port, rtt_ms=rtt_ms))
            endpoint = f"https://127.0.0.1:{relay.port}/{ACCOUNT}"
        found: dict[str, str] = {}
        manifests = {"bench": _BY_FILE}
        if sources:
            identities, found = up.enter_context(every_source(cloud))
            manifests |= identities
        for name, identity in manifests.items():
            lines = "\n".join(f"{setting} = {json.dumps(value)}" for setting, value in identity.items())
            (cloud.folder / f"{name}.access.toml").write_text(_MANIFEST % lines, encoding="utf-8")
        straight = BenchCloud(
            cloud=cloud,
            folder=cloud.folder,
            endpoint=endpoint,
            raw=RawBlobs(
                endpoint=f"{cloud.endpoint(ACCOUNT)}/{RAW}",
                sas=_writer_sas(cloud),
                ca_file=str(cloud.ca_file),
            ),
            sources=found,
        )
        straight.raw.put_all(blobs)
        yield straight


def _writer_sas(cloud: LocalCloud) -> str:
    return str(
        generate_container_sas(
            ACCOUNT,
            RAW,
            account_key=cloud.azurite.keys[ACCOUNT].reveal(),
            permission="rw",
            expiry=datetime.now(UTC) + timedelta(hours=2),
        )
    )


