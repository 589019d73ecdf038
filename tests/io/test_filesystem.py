"""`abfss://` as a Beam FileSystem: the contract, and what is ours beyond it: grants, audit, whole copies, pinned versions."""

from __future__ import annotations

import gc
import io
import json
import pickle
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions

from beam_entra import EntraOptions
from beam_entra.audit import check_segments
from beam_entra.clock import utc_now
from beam_entra.errors import BlobChanged, BlobNotFound, ConfigError, NotGranted, StorageError, find_rendered_error
from beam_entra.io.filesystem import BlobFileSystem
from beam_entra.session import JobScope, Session, adopt_session, close_session, open_session
from beam_entra.testing.filesystem_contract import FileSystemContract
from beam_entra.testing.local import LocalContainer
from beam_entra.testing.storage_requests import matching


class Files:
    """A job that may read, write and delete below `files/` of `curated`, and read `in/` of `raw`."""

    def __init__(self, lake: Any, **grants: Any) -> None:
        self.lake = lake
        here = lake.curated.url("files/")
        granted = {"read": [lake.raw.url("in/"), here], "write": [here], "delete": [here]} | grants
        self.scope = JobScope.launch(lake.manifest(**granted), now=utc_now())
        self.system = BlobFileSystem({"entra_job_scope": self.scope.to_json()})

    def path(self, name: str = "") -> str:
        """A path below what is granted."""
        return str(self.lake.curated.url(f"files/{name}"))

    def records(self, *kinds: str) -> list[dict[str, Any]]:
        """What is in the trail by now."""
        open_session(self.scope).settle()
        found = self.lake.trail(self.scope.job).records()
        return [record for record in found if not kinds or record["kind"] in kinds]

    def check_trail(self) -> None:
        """The trail, closed, verifies by every rule that holds before sealing."""
        close_session(self.scope.job)
        check_segments(self.lake.trail(self.scope.job), job=self.scope.job)


@pytest.fixture
def make_files(lake: Any) -> Iterator[Callable[..., Files]]:
    """Makes jobs; each leaves a trail that verifies."""
    made: list[Files] = []

    def make(**grants: Any) -> Files:
        made.append(Files(lake, **grants))
        return made[-1]

    yield make
    lake.cloud.proxy.clear_faults()
    gc.collect()
    for files in made:
        files.check_trail()


@pytest.fixture
def files(make_files: Callable[..., Files]) -> Files:
    """One of them."""
    return make_files()


class TestContract(FileSystemContract):
    """Ours keeps the whole contract, with nothing taken back."""

    @pytest.fixture
    def filesystem(self, files: Files) -> BlobFileSystem:
        return files.system

    @pytest.fixture
    def folder(self, files: Files) -> str:
        return files.path(uuid.uuid4().hex)
