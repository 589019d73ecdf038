"""A pytest plugin that runs Beam's own I/O test suites, as they are installed, on another FileSystem.

    python -m pytest -p beam_suites_redirect --temporary-files=abfss://... --access_manifest=... \\
        --access_endpoints=... --pyargs apache_beam.io.textio_test ...

The suites make temporary files on the local disk, and look at them there, with `tempfile`, `open`, `os`, `glob`,
`shutil`, `filecmp` and `pyarrow.parquet`. In their modules, and nowhere else, these names get a stand-in that does the
same below `--temporary-files`, by way of `FileSystems`, and passes everything else on. All runs as one job, whose audit
trail is sealed in the end.
"""

from __future__ import annotations

import builtins
import bz2
import contextlib
import filecmp
import glob
import gzip
import importlib
import io
import itertools
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from pyarrow import parquet

from beam_entra.access import AccessManifest, Endpoints
from beam_entra.clock import utc_now
from beam_entra.io.filesystem import BlobFileSystem
from beam_entra.session import JobScope, close_session, open_session, seal_job

_SHARED = ("apache_beam.testing.test_utils", "apache_beam.io.filebasedsink_test")  # suites use what is in these, too
_numbers = itertools.count()
_times: dict[str, float] = {}


class Away:
    """Where the temporary files go."""

    prefix = ""
    """Ends in a slash."""

    @classmethod
    def has(cls, path: object) -> bool:
        """Whether a path is there, and not on the disk."""
        return isinstance(path, str) and path.startswith(cls.prefix)

    @classmethod
    def new(cls, prefix: str | None, suffix: str | None, folder: str | None) -> str:
        """A path that nobody has."""
        parent = (folder or cls.prefix).rstrip("/")
        return f"{parent}/{prefix or 'tmp'}{next(_numbers):06d}{suffix or ''}"


def _content(path: str) -> bytes:
    with FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        data: bytes = file.read()
    return data


def _store(path: str, data: bytes, *, later_than: float = 0.0) -> None:
    """Write a file; one that is written anew so that its time, which Storage counts in seconds, is another."""
    while time.time() // 1 <= later_than:
        time.sleep(0.05)
    with FileSystems.create(path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        file.write(data)


class _Written(io.BytesIO):
    """A file that is stored when it is flushed or closed, and perhaps deleted in the end."""

    def __init__(self, name: str, *, delete: bool = False) -> None:
        super().__init__()
        self.name, self.mode, self._delete = name, "wb", delete
        self.later_than = 0.0
        self.dirty = True

    def write(self, data: Any) -> int:
        self.dirty = True
        return super().write(data)

    def flush(self) -> None:
        if self.dirty and not self.closed:
            self.dirty = False
            _store(self.name, self.getvalue(), later_than=self.later_than)

    def close(self) -> None:
        if not self.closed:
            if self._delete:
                FileSystems.delete([self.name])
            else:
                self.flush()
            super().close()


def open_file(path: Any, mode: str = "r", *args: Any, **settings: Any) -> Any:
    """`open`."""
    if not Away.has(path):
        return builtins.open(path, mode, *args, **settings)
    if "r" in mode:
        file: Any = io.BytesIO(_content(path))
        file.name = path
    else:
        file = _Written(path)
        (found,) = FileSystems.match([path])[0].metadata_list or [None]
        if found and "a" in mode:
            file.write(_content(path))
        elif found and found.size_in_bytes:
            file.later_than = found.last_updated_in_seconds
    return file if "b" in mode else io.TextIOWrapper(file, encoding="utf-8")


class _StandIn:
    """A module of which some names are other than its own."""

    def __init__(self, module: Any, **others: Any) -> None:
        self._module = module
        self.__dict__.update(others)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_module"], name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _stand_in, (self._module.__name__,)  # pipelines carry their module's names


def _stand_in(name: str) -> _StandIn:
    by_name = {each._module.__name__: each for each in _STAND_INS.values() if isinstance(each, _StandIn)}
    return _PATH if name == os.path.__name__ else by_name[name]


# tempfile


def _mkdtemp(suffix: str | None = None, prefix: str | None = None, dir: str | None = None) -> str:
    return Away.new(prefix, suffix, dir)


def _named(
    mode: str = "w+b",
    *,
    suffix: str | None = None,
    prefix: str | None = None,
    dir: str | None = None,
    delete: bool = True,
) -> Any:
    file = _Written(Away.new(prefix, suffix, dir), delete=delete)
    file.flush()  # it exists from the beginning
    return file if "b" in mode else io.TextIOWrapper(file, encoding="utf-8")


@contextlib.contextmanager
def _temporary_directory(*args: Any, **settings: Any) -> Iterator[str]:
    path = _mkdtemp(*args, **settings)
    try:
        yield path
    finally:
        FileSystems.delete([f"{path}/"])


# os


def _exists(path: Any) -> bool:
    if not Away.has(path):
        return os.path.exists(path)
    return bool(FileSystems.exists(path)) or _is_folder(path)


def _is_folder(path: Any) -> bool:
    return bool(FileSystems.exists(f"{path}/")) if Away.has(path) else os.path.isdir(path)


def _remove(path: Any) -> None:
    FileSystems.delete([path]) if Away.has(path) else os.remove(path)


def _make_folders(path: Any, *args: Any, **settings: Any) -> None:
    if not Away.has(path):
        os.makedirs(path, *args, **settings)


def _set_times(path: Any, times: Any = None, **settings: Any) -> None:
    """Nobody can set the time of a blob. One whose time was set before, and goes on, is written again."""
    if not Away.has(path):
        os.utime(path, times, **settings)
        return
    if times[1] > time.time():
        raise NotImplementedError("nobody can set the time of a blob, and none is ahead")
    if times[1] > _times.get(path, times[1]):
        _store(path, _content(path), later_than=FileSystems.last_updated(path))
    _times[path] = times[1]


def _change_folder(path: Any) -> None:
    """Relative paths are a local matter: the folder is brought here first."""
    if Away.has(path):
        here = tempfile.mkdtemp()
        for file in FileSystems.match([f"{path}/**"])[0].metadata_list:
            with builtins.open(os.path.join(here, file.path.rpartition("/")[2]), "wb") as copy:
                copy.write(_content(file.path))
        path = here
    os.chdir(path)


def _modified(path: Any) -> float:
    return float(FileSystems.last_updated(path)) if Away.has(path) else os.path.getmtime(path)


def _size(path: Any) -> int:
    return len(_content(path)) if Away.has(path) else os.path.getsize(path)


# glob, shutil, filecmp


def _glob(pattern: Any, *args: Any, **settings: Any) -> list[str]:
    if not Away.has(pattern):
        return glob.glob(pattern, *args, **settings)
    return [file.path for file in FileSystems.match([pattern])[0].metadata_list]


def _remove_tree(path: Any, *args: Any, **settings: Any) -> None:
    FileSystems.delete([f"{path}/"]) if Away.has(path) else shutil.rmtree(path, *args, **settings)


def _copy_file(source: Any, target: Any) -> None:
    with open_file(source, "rb") as there, open_file(target, "wb") as here:
        here.write(there.read())


def _same(one: Any, other: Any, *args: Any, **settings: Any) -> bool:
    if not Away.has(one):
        return filecmp.cmp(one, other, *args, **settings)
    return _content(one) == _content(other)


# pyarrow, which takes abfss:// for a FileSystem of its own


def _read_metadata(path: Any, *args: Any, **settings: Any) -> Any:
    return parquet.read_metadata(io.BytesIO(_content(path)) if Away.has(path) else path, *args, **settings)


_PATH = _StandIn(os.path, exists=_exists, isdir=_is_folder, getmtime=_modified, getsize=_size)
_STAND_INS = {
    "tempfile": _StandIn(
        tempfile, mkdtemp=_mkdtemp, NamedTemporaryFile=_named, TemporaryDirectory=_temporary_directory
    ),
    "os": _StandIn(
        os, path=_PATH, remove=_remove, unlink=_remove, makedirs=_make_folders, utime=_set_times, chdir=_change_folder
    ),
    "glob": _StandIn(glob, glob=_glob),
    "shutil": _StandIn(shutil, rmtree=_remove_tree, copyfile=_copy_file),
    "filecmp": _StandIn(filecmp, cmp=_same),
    "pq": _StandIn(parquet, read_metadata=_read_metadata),
    "TemporaryDirectory": _temporary_directory,
}


def _redirect(module: ModuleType) -> None:
    for name, stand_in in _STAND_INS.items():
        if hasattr(module, name):
            setattr(module, name, stand_in)
    vars(module)["open"] = open_file


# pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """The flags."""
    parser.addoption("--temporary-files", required=False, help="a path that ends in a slash")
    parser.addoption("--access_manifest", required=False)
    parser.addoption("--access_endpoints", required=False)


@pytest.fixture(scope="session", autouse=True)
def _job(pytestconfig: pytest.Config) -> Iterator[None]:
    manifest = AccessManifest.load(pytestconfig.getoption("--access_manifest"))
    manifest = manifest.at(Endpoints.load(pytestconfig.getoption("--access_endpoints")))
    scope = JobScope.launch(manifest, now=utc_now())
    session = open_session(scope)
    assert isinstance(FileSystems.get_filesystem(Away.prefix), BlobFileSystem)
    yield
    seal_job(session, outcome="ok", error=None)
    close_session(scope.job)


def pytest_configure(config: pytest.Config) -> None:
    """Say where to."""
    Away.prefix = f"{config.getoption('--temporary-files')}{uuid.uuid4().hex}/"


def pytest_collection_finish(session: pytest.Session) -> None:
    """Redirect the suites, and what their files are opened with."""
    for module in {item.module for item in session.items if isinstance(item, pytest.Function)}:
        _redirect(module)
    for name in _SHARED:
        _redirect(importlib.import_module(name))
    gzip.builtins = _StandIn(builtins, open=open_file)  # type: ignore[attr-defined]  # what gzip.open(path) calls
    bz2._builtin_open = open_file  # type: ignore[attr-defined]  # and bz2.open(path)
