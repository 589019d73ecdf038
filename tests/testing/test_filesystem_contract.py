"""The contract holds for Beam's own local FileSystem, and finds those that break it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from apache_beam.io.localfilesystem import LocalFileSystem

from beam_entra.testing.filesystem_contract import FileSystemContract


class TestBeamsLocalFileSystem(FileSystemContract):
    """Files on a disk: directories exist, and what is written is seen at once."""

    missing_may_be_deleted = False
    hidden_until_closed = False
    exception_abandons = False
    keeps_directories = True

    @pytest.fixture
    def filesystem(self) -> LocalFileSystem:
        return LocalFileSystem(None)

    @pytest.fixture
    def folder(self, tmp_path: Path) -> str:
        return str(tmp_path)


class _Broken(LocalFileSystem):
    """A LocalFileSystem with one fault of another's."""

    @classmethod
    def scheme(cls) -> str:
        return "broken-for-the-contract"


class _RaisesForMissing(_Broken):
    def exists(self, path: str) -> bool:
        if not super().exists(path):
            raise OSError(path)
        return True


class _DeletesTooEarly(_Broken):
    def rename(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        self.delete(source_file_names)


class _ForgetsLimits(_Broken):
    def match(self, patterns: list[str], limits: list[int | None] | None = None) -> Any:
        return super().match(patterns)


@pytest.mark.parametrize(
    ("fault", "test"),
    [
        (_RaisesForMissing, "test_exists_is_a_bool"),
        (_DeletesTooEarly, "test_rename"),
        (_ForgetsLimits, "test_limits"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_broken_filesystem_is_found(fault: type[_Broken], test: str, tmp_path: Path) -> None:
    """Faults that real FileSystems have had make the contract fail."""
    contract, filesystem, folder = FileSystemContract(), fault(None), str(tmp_path)

    def put(name: str, data: bytes = b"data") -> str:
        path = tmp_path / name
        path.write_bytes(data)
        return str(path)

    arguments: dict[str, Any] = {"filesystem": filesystem, "folder": folder}
    if test == "test_limits":
        arguments["tree"] = {name: put(name) for name in ("a1.txt", "a2.txt", "b1.csv")}
    else:
        arguments["put"] = put
    with pytest.raises((AssertionError, OSError)):
        getattr(contract, test)(**arguments)
