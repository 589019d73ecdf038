"""`abfss://` as a Beam FileSystem: `ReadFromText` and all other file I/O of Beam's as the job, audited.

Importing this module is all it takes; `ScopedPipeline` has workers import it, with `--beam_plugins`.

Whose identity? Beam makes a new FileSystem object for each call and hands it the pipeline's options, where it has them:

1. The job scope in those options; without one, the only job that has a session in this process.
2. Two jobs in one process at a time cannot be told apart here, so that nothing is done for either of them.
3. No job, no access. Whatever needs no network (joining and splitting paths) works all the same.

Every operation has a bundle session of its own, and an open file has one until it is closed: its SAS lives as long as
what it is for. In the audit the bundle has the name of the step that is being run, where Beam says it.

Errors are Beam's `BeamIOError`, with ours as the cause, and by path in `exception_details`.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from typing import Any, TypeVar

from apache_beam.io.filesystem import (
    BeamIOError,
    CompressedFile,
    CompressionTypes,
    FileMetadata,
    FileSystem,
    MatchResult,
)
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.worker.statesampler import get_current_tracker

from beam_entra.access import Permission
from beam_entra.errors import AuditError, BeamEntraError, BlobNotFound, ConfigError, Diagnosis
from beam_entra.io.match import match
from beam_entra.io.options import EntraOptions
from beam_entra.io.streams import BlobReader, BlobWriter, BufferedBlob
from beam_entra.io.threads import fetch_threads, stage_threads
from beam_entra.paths import BlobPath, BlobPattern
from beam_entra.session import BundleSession, JobScope, copy_blob, has_ended, live_scopes, open_session
from beam_entra.storage import BlobProperties

__all__ = ["BEAM_PLUGIN", "BlobFileSystem"]

BEAM_PLUGIN = __name__
_LOGGER = logging.getLogger(__name__)

_LATER_S = 0.001  # by which a newer version is told as later, where Storage's seconds do not
_SCHEME = "abfss"
_PREFIX = f"{_SCHEME}://"
_READ_BUFFER_BYTES = 128 << 10
_THREADS = 16
_PAGE = 5_000  # the most that Storage lists at a time
_STEP_CHARACTERS = 400

T = TypeVar("T")
Problems = dict[Any, BaseException]


class BlobFileSystem(FileSystem):  # type: ignore[misc]  # Beam's FileSystem is untyped
    """Blobs of the accounts, containers and prefixes that the access manifest grants.

    `read` grants cover opening, matching and looking; `write` grants creating, and the target of a copy; `delete`
    grants deleting. A rename needs `read` and `delete` on the source and `write` on the target.
    """

    CHUNK_SIZE = 100  # how many files Beam hands to one call of delete, copy or rename

    def __init__(self, pipeline_options: PipelineOptions | dict[str, Any] | None = None) -> None:
        super().__init__(pipeline_options)
        self._options = pipeline_options

    @classmethod
    def scheme(cls) -> str:
        return _SCHEME

    # Paths; nothing is sent

    def join(self, basepath: str, *paths: str) -> str:
        """Join with single slashes.

        Raises:
            ValueError: `basepath` is no abfss:// path.
        """
        _check_scheme(basepath)
        joined = basepath
        for path in paths:
            joined = f"{joined.rstrip('/')}/{path.lstrip('/')}"
        return joined

    def split(self, path: str) -> tuple[str, str]:
        """Everything up to the last slash, which is left out, and what is behind it. A container has nothing behind it.

        Raises:
            ValueError: It is no abfss:// path.
        """
        _check_scheme(path)
        head, slash, tail = path.removeprefix(_PREFIX).rpartition("/")
        return (_PREFIX + head, tail) if slash else (path, "")

    def has_dirs(self) -> bool:
        """There are none: a directory is what the names of blobs have in common."""
        return False

    def mkdirs(self, path: str) -> None:
        """Nothing to do; the path is checked.

        Raises:
            BeamIOError: It is no path.
        """
        with _told("mkdirs", path):
            BlobPath.parse(path)

    # Looking

    def match(self, patterns: Sequence[str], limits: Sequence[int | None] | None = None) -> list[MatchResult]:
        """The blobs that each pattern matches, in order of name; none is no error, but a missing container is.

        Raises:
            BeamIOError: With the error of each pattern that could not be matched.
        """
        if limits is not None and len(limits) != len(patterns):
            raise ValueError("there is not one limit a pattern")
        wanted = list(zip(patterns, limits or itertools.repeat(None), strict=False))
        found = _each("match", wanted, self._matched, key=lambda pair: pair[0], threads=1)
        return [MatchResult(pattern, files) for (pattern, _), files in zip(wanted, found, strict=True)]

    def _matched(self, wanted: tuple[str, int | None]) -> list[FileMetadata]:
        pattern, limit = wanted
        blobs = BlobPattern.parse(pattern)
        page_size = None if limit is None or limit >= _PAGE else max(limit, 100)
        with self._bundle("match") as bundle:
            matching = match(bundle, blobs, allow_empty=True, page_size=page_size)
            return [_metadata(blob) for blob in itertools.islice(matching, limit)]

    def _list(self, dir_or_prefix: str) -> Iterator[FileMetadata]:
        with _told("list", dir_or_prefix):
            pattern = BlobPattern.parse(f"{dir_or_prefix}**")
            with self._bundle("list") as bundle:
                yield from map(_metadata, match(bundle, pattern))

    def exists(self, path: str) -> bool:
        """Whether there is such a blob; for a path that ends in a slash, whether there is anything below it.

        Raises:
            BeamIOError: That cannot be said: the job may not look, for instance.
        """
        with _told("exists", path):
            wanted = BlobPath.parse(path)
            with self._bundle("exists") as bundle:
                try:
                    if wanted.is_prefix:
                        return next(bundle.list_blobs(wanted, wanted.name, page_size=1), None) is not None
                    bundle.properties(wanted)
                except BlobNotFound:
                    return False
                return True

    def metadata(self, path: str) -> FileMetadata:
        """Path, size and time of last change.

        Raises:
            BeamIOError: There is no such blob, or the job may not look.
        """
        return _metadata(self._look(path))

    def size(self, path: str) -> int:
        """Length in bytes.

        Raises:
            BeamIOError: As for `metadata`.
        """
        return self._look(path).size_bytes

    def last_updated(self, path: str) -> float:
        """Time of last change, in seconds since 1970; what is behind the point tells versions apart, and no time.

        Raises:
            BeamIOError: As for `metadata`.
        """
        return _modified(self._look(path))

    def checksum(self, path: str) -> str:
        """The ETag: another one with every change, of the content or not.

        Raises:
            BeamIOError: As for `metadata`.
        """
        return self._look(path).etag.strip('"')

    def _look(self, path: str) -> BlobProperties:
        with _told("metadata", path):
            wanted = _one_blob(path)
            with self._bundle("metadata") as bundle:
                return bundle.properties(wanted)

    # Files

    def open(
        self,
        path: str,
        mime_type: str = "application/octet-stream",
        compression_type: str = CompressionTypes.AUTO,
    ) -> Any:
        """A buffered, seekable file to read, in the version that is there now; decompressed as its name or you say.

        Raises:
            BeamIOError: There is no such blob, or the job may not read it.
        """
        compression = self._get_compression_type(path, compression_type)
        with _told("open", path):
            wanted = _one_blob(path)
            with self._bundle("read", keep_open=True) as bundle:
                raw = BlobReader(bundle, wanted, fetch_threads(bundle.session), _translated)
                file = BufferedBlob(raw, _READ_BUFFER_BYTES)
        return file if compression == CompressionTypes.UNCOMPRESSED else CompressedFile(file, compression)

    def create(
        self,
        path: str,
        mime_type: str = "application/octet-stream",
        compression_type: str = CompressionTypes.AUTO,
    ) -> Any:
        """A file to write. It is there, over an old one, when it has been closed; see `BlobWriter`.

        Raises:
            BeamIOError: The job may not write it.
        """
        compression = self._get_compression_type(path, compression_type)
        with _told("create", path):
            wanted = _one_blob(path)
            with self._bundle("write", keep_open=True) as bundle:
                bundle.require(wanted, Permission.WRITE)
                threads = stage_threads(bundle.session)
                file = BlobWriter(bundle, wanted, threads, _translated, content_type=mime_type)
        return file if compression == CompressionTypes.UNCOMPRESSED else _CompressedWriter(file, compression)

    # Changing

    def copy(self, source_file_names: Sequence[str], destination_file_names: Sequence[str]) -> None:
        """Copy each blob over its target; where there is none of that name, all below the path. See `copy_blob`.

        Raises:
            BeamIOError: With the error of each pair of source and target that was not copied.
        """
        _each("copy", _pairs(source_file_names, destination_file_names), self._copy)

    def rename(self, source_file_names: Sequence[str], destination_file_names: Sequence[str]) -> None:
        """Copy each blob over its target and, when the copy is whole, delete the version that was copied.

        Raises:
            BeamIOError: With the error of each pair that was not renamed. Its source is still there.
        """
        try:
            _each("rename", _pairs(source_file_names, destination_file_names), partial(self._copy, delete=True))
        except BeamIOError as error:
            # `WriteToFiles` takes it for a bundle that is tried again and says nothing; the file is just missing then.
            _LOGGER.warning("not renamed: %s", error)
            raise

    def _copy(self, pair: tuple[str, str], *, delete: bool = False) -> None:
        with self._bundle("rename" if delete else "copy") as bundle:
            for blob, target in _files_of(bundle, *map(BlobPath.parse, pair)):
                if blob.path == target:
                    continue
                if delete:
                    bundle.require(blob.path, Permission.DELETE)  # else there would be two in the end
                copy_blob(bundle, blob, target)
                if delete:
                    bundle.delete(blob.path, etag=blob.etag)

    def delete(self, paths: Sequence[str]) -> None:
        """Delete blobs: one; those that a pattern matches; or, where there is none of that name, all below the path.

        What is not there is no error. All below a path can be deleted only if the job may also read, and so list, it.

        Raises:
            BeamIOError: With the error of each path that was not deleted, or not completely.
        """
        if isinstance(paths, str):
            raise ValueError("delete takes a list of paths")
        _each("delete", list(paths), self._delete)

    def _delete(self, path: str) -> None:
        with self._bundle("delete") as bundle:
            pattern = BlobPattern.parse(f"{path}**" if path.endswith("/") else path)
            if pattern.glob is not None:
                _delete_all(bundle, match(bundle, pattern))
            elif not bundle.delete(pattern.prefix):
                below = _as_prefix(pattern.prefix)
                if bundle.may(below, Permission.LIST):
                    _delete_all(bundle, _all_below(bundle, below))

    def report_lineage(self, path: str, lineage: Any) -> None:
        """Name the blob, or the part of its path that is known, in Beam's lineage."""
        with suppress(ConfigError):
            found = BlobPath.parse(path)
            parts = [part for part in (found.account, found.container, found.name) if part]
            lineage.add("abs", *parts, last_segment_sep="/" if found.name else None)

    # The job

    def _scope(self) -> JobScope:
        options, told = self._options, ""
        if isinstance(options, PipelineOptions):
            told = options.view_as(EntraOptions).entra_job_scope or ""
        elif options:
            told = options.get("entra_job_scope") or ""
        scope = _scope_from(told) if told else None
        if scope is not None and has_ended(scope.job):
            scope = None  # Beam keeps the options of the last pipeline
        scopes = {live.job: live for live in live_scopes(started=scope is not None)}
        if scope is not None:
            scopes[scope.job] = scope
        if len(scopes) == 1:
            return next(iter(scopes.values()))
        if not scopes:
            raise ConfigError(
                "no job is known here, so nothing may be accessed",
                Diagnosis(hint="make it with beam_entra.ScopedPipeline(options=...) in place of beam.Pipeline"),
            )
        raise ConfigError(
            f"{len(scopes)} jobs are under way in this process ({', '.join(sorted(scopes))}), and Beam does not say "
            "for which of them this file is",
            Diagnosis(hint="run them one after the other, each in `with ScopedPipeline(...)`, or in a process each"),
        )

    @contextmanager
    def _bundle(self, operation: str, *, keep_open: bool = False) -> Iterator[BundleSession]:
        bundle = open_session(self._scope()).bundle(_step(operation))
        try:
            yield bundle
        except BaseException:
            with suppress(AuditError):
                bundle.close("failed", settle=False)
            raise
        if not keep_open:
            bundle.close(settle=False)  # every access has been waited for


class _CompressedWriter(CompressedFile):  # type: ignore[misc]  # Beam's CompressedFile is untyped
    """Leaves nothing behind when an exception leaves its `with`, as the file that it wraps."""

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self.close()
        else:
            self._file.abandon()


@lru_cache(maxsize=8)
def _scope_from(text: str) -> JobScope:
    return JobScope.from_json(text)


def _step(operation: str) -> str:
    """The step that this thread runs, as Beam names it, and the operation."""
    tracker = get_current_tracker()
    step = getattr(getattr(tracker.current_state(), "name_context", None), "step_name", "") if tracker else ""
    return f"{str(step)[:_STEP_CHARACTERS]} ({operation})" if step else f"files ({operation})"


def _check_scheme(path: str) -> None:
    if not path.startswith(_PREFIX):
        raise ValueError(f"{path!r} is no {_PREFIX} path")


def _one_blob(path: str) -> BlobPath:
    parsed = BlobPath.parse(path)
    if parsed.is_prefix:
        raise BlobNotFound(f"{parsed} is no blob", Diagnosis(hint="name one; a path that ends in / stands for many"))
    return parsed


def _metadata(blob: BlobProperties) -> FileMetadata:
    return FileMetadata(str(blob.path), blob.size_bytes, _modified(blob))


class _Times:
    """When blobs were last changed, as this process tells Beam.

    Storage counts whole seconds. Beam takes a file for updated when its time is another one (`match_updated_files`),
    and for passed when its time is before a cursor (`timestamp_cursor`). So a blob has Storage's time, and blobs of one
    second share it; only a version that takes the place of one that this process has seen is told as later than it.
    """

    def __init__(self, most: int = 100_000) -> None:
        self._most = most
        self._told: OrderedDict[BlobPath, tuple[str, float]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, blob: BlobProperties) -> float:
        """Seconds since the epoch; never earlier than what was told of an older version."""
        with self._lock:
            time = blob.last_modified.timestamp()
            etag, before = self._told.pop(blob.path, ("", 0.0))
            if etag == blob.etag:
                time = before
            elif etag:
                time = max(time, before + _LATER_S)
            self._told[blob.path] = blob.etag, time
            if len(self._told) > self._most:
                self._told.popitem(last=False)
            return time


_TIMES = _Times()


def _modified(blob: BlobProperties) -> float:
    return _TIMES.of(blob)


def _pairs(sources: Sequence[str], targets: Sequence[str]) -> list[tuple[str, str]]:
    if len(sources) != len(targets):
        raise ValueError("there is not one target a source")
    return list(zip(sources, targets, strict=True))


def _files_of(
    bundle: BundleSession, source: BlobPath, target: BlobPath
) -> Iterable[tuple[BlobProperties, BlobPath]]:
    """The blobs to copy, and where to: the one of that name or, where there is none, all below it."""
    if not source.is_prefix:
        try:
            return [(bundle.properties(source), _one_blob(str(target)))]
        except BlobNotFound:
            below = _as_prefix(source)
            if not bundle.may(below, Permission.LIST) or next(_all_below(bundle, below), None) is None:
                raise
            source = below
    target = _as_prefix(target)
    if target.covers(source) or source.covers(target):
        raise ConfigError(f"{source} and {target} lie within one another", Diagnosis(hint="name a place beside it"))
    found = list(_all_below(bundle, source))
    return [(blob, target.child(blob.path.name.removeprefix(source.name))) for blob in found]


def _as_prefix(path: BlobPath) -> BlobPath:
    return path if path.is_prefix else BlobPath.parse(f"{path}/")


def _all_below(bundle: BundleSession, prefix: BlobPath) -> Iterator[BlobProperties]:
    return bundle.list_blobs(prefix, prefix.name)


def _delete_all(bundle: BundleSession, blobs: Iterable[BlobProperties]) -> None:
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="beam-entra-delete") as pool:
        while batch := list(itertools.islice(blobs := iter(blobs), _PAGE)):
            list(pool.map(lambda blob: bundle.delete(blob.path), batch))


def _each(
    verb: str,
    items: Sequence[Any],
    do: Callable[[Any], T],
    *,
    key: Callable[[Any], Any] = lambda item: item,
    threads: int = _THREADS,
) -> list[T]:
    """Do it for each; all are tried, and the errors of those that failed are raised together."""
    problems: Problems = {}

    def attempt(item: Any) -> Any:
        try:
            return do(item)
        except BeamEntraError as error:
            problems[key(item)] = error
        return None

    if len(items) <= 1 or threads == 1:
        results = [attempt(item) for item in items]
    else:
        with ThreadPoolExecutor(min(threads, len(items)), thread_name_prefix=f"beam-entra-{verb}") as pool:
            results = list(pool.map(attempt, items))
    if problems:
        raise _beam_error(verb, problems) from next(iter(problems.values()))
    return results


@contextmanager
def _told(verb: str, path: str) -> Iterator[None]:
    """Errors of ours as Beam's."""
    try:
        yield
    except BeamEntraError as error:
        raise _translated(verb, path, error) from error


def _translated(verb: str, path: str, error: BeamEntraError) -> BeamIOError:
    return _beam_error(verb, {path: error})


def _beam_error(verb: str, problems: Problems) -> BeamIOError:
    return BeamIOError(f"{verb.capitalize()} operation failed", problems)
