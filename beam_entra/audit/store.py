"""Where a trail's files live: the Protocols that storage implements, and a local folder that implements them all."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from beam_entra.audit.record import SEAL_NAME
from beam_entra.errors import AuditUnavailable, Diagnosis

__all__ = [
    "APPEND_BYTES",
    "INTERIM_NAME",
    "FolderTrail",
    "GrowingTrail",
    "SegmentStore",
    "TrailReader",
    "find_trails",
    "is_trail_file",
]

INTERIM_NAME = re.compile(r"seal-[0-9]{6}\.jsonl")

APPEND_BYTES = 4 * 1024 * 1024  # the most that an append blob takes in one request


class TrailReader(Protocol):
    """Reads the files of one folder; from several threads at once."""

    def names(self) -> list[str]:
        """Every file below the folder, relative to it, with `/` between levels. Empty when there is no such folder."""

    def read(self, name: str, /) -> bytes:
        """All bytes of one of them."""


@runtime_checkable
class GrowingTrail(TrailReader, Protocol):
    """Reads the files of one folder while workers write on."""

    def sizes(self) -> Mapping[str, int]:
        """Every file and how long it is, in bytes, at one moment: no segment is without what it continues."""

    def read_range(self, name: str, start: int, stop: int, /) -> bytes:
        """Bytes [start, stop) of one of them, whatever has been added since."""


class SegmentStore(Protocol):
    """Adds to the files of one job's folder. Both methods have retried what can be retried when they raise."""

    def create(self, name: str, /) -> None:
        """Make an empty file. One that exists and is empty will do: it is an earlier attempt's.

        Raises:
            AuditUnavailable: It could not be made, or has content.
        """

    def append(self, name: str, offset_bytes: int, data: bytes, /) -> None:
        """Put `data` at the end of a file, which is at `offset_bytes`; return when it is durable.

        Idempotent by offset: when the file already holds these bytes there, because the answer to an earlier attempt
        was lost, that is success.

        Args:
            data: At most `APPEND_BYTES`.
        Raises:
            AuditUnavailable: The bytes may or may not be there.
        """


class FolderTrail:
    """A trail in a local folder: GrowingTrail and SegmentStore. For tests, and for trails that were downloaded.

    Durable here means on the disk (fsync).
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"FolderTrail({str(self.path)!r})"

    def names(self) -> list[str]:
        """Every file below the folder, sorted."""
        return sorted(file.relative_to(self.path).as_posix() for file in self.path.rglob("*") if file.is_file())

    def read(self, name: str) -> bytes:
        """All bytes of a file."""
        try:
            return (self.path / name).read_bytes()
        except OSError as error:
            raise _unavailable("read", self.path / name, error) from error

    def sizes(self) -> Mapping[str, int]:
        """Every file and its length."""
        return {name: (self.path / name).stat().st_size for name in self.names()}

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Some bytes of a file."""
        try:
            with (self.path / name).open("rb") as stream:
                stream.seek(start)
                return stream.read(stop - start)
        except OSError as error:
            raise _unavailable("read", self.path / name, error) from error

    def create(self, name: str) -> None:
        """Make an empty file, and the folder with it."""
        file = self.path / name
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file.touch()
            length = file.stat().st_size
        except OSError as error:
            raise _unavailable("create", file, error) from error
        if length:
            raise AuditUnavailable(f"{name} exists and is not empty", Diagnosis(tried=f"create {file}"))

    def append(self, name: str, offset_bytes: int, data: bytes) -> None:
        """Append and sync."""
        file = self.path / name
        try:
            with file.open("r+b") as stream:
                end = stream.seek(0, os.SEEK_END)
                if end != offset_bytes and not _holds(file, offset_bytes, data):
                    raise AuditUnavailable(
                        f"{name} ends at byte {end}, not at {offset_bytes}: somebody else wrote to it",
                        Diagnosis(tried=f"append to {file}"),
                    )
                if end == offset_bytes:
                    stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise _unavailable("append to", file, error) from error


def _holds(file: Path, offset_bytes: int, data: bytes) -> bool:
    with file.open("rb") as stream:
        stream.seek(offset_bytes)
        return stream.read() == data


def _unavailable(verb: str, file: Path, error: OSError) -> AuditUnavailable:
    reason = error.strerror or type(error).__name__
    return AuditUnavailable(f"audit trail: cannot {verb} {file.name}: {reason}", Diagnosis(tried=f"{verb} {file}"))


class _Below:
    """A reader's subfolder, as a reader."""

    def __init__(self, reader: TrailReader, folder: str, names: list[str]) -> None:
        self._reader, self._folder, self._names = reader, folder, names

    def names(self) -> list[str]:
        return list(self._names)

    def read(self, name: str) -> bytes:
        return self._reader.read(f"{self._folder}/{name}")


class _GrowingBelow(_Below):
    """The same of a reader that tells how long files are; they are as long as they were."""

    def __init__(self, reader: GrowingTrail, folder: str, sizes: Mapping[str, int]) -> None:
        super().__init__(reader, folder, list(sizes))
        self._growing, self._sizes = reader, sizes

    def sizes(self) -> Mapping[str, int]:
        return self._sizes

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        return self._growing.read_range(f"{self._folder}/{name}", start, stop)


def find_trails(reader: TrailReader) -> Mapping[str, TrailReader]:
    """The trails of a folder: itself when it is one, else those in the folders below it.

    Returns:
        Folder name to its reader, sorted; the name is empty for the folder itself. Empty when there is no trail.
    """
    sizes = reader.sizes() if isinstance(reader, GrowingTrail) else dict.fromkeys(reader.names(), 0)
    folders: dict[str, dict[str, int]] = {}
    for name in sorted(sizes):
        folder, _, file = name.rpartition("/")
        folders.setdefault(folder, {})[file] = sizes[name]
    trails = {folder: files for folder, files in folders.items() if any(map(is_trail_file, files))}
    if "" in trails:
        return {"": reader}
    if isinstance(reader, GrowingTrail):
        return {folder: _GrowingBelow(reader, folder, files) for folder, files in trails.items()}
    return {folder: _Below(reader, folder, list(files)) for folder, files in trails.items()}


def is_trail_file(name: str) -> bool:
    """Whether a file of a folder is named like a segment or a seal."""
    is_seal = name == SEAL_NAME or INTERIM_NAME.fullmatch(name) is not None
    return is_seal or (name.startswith("segment-") and name.endswith(".jsonl"))
