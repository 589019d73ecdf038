"""What every Beam FileSystem has to do, as tests that you derive from.

    class TestOurs(FileSystemContract):
        @pytest.fixture
        def filesystem(self):
            return OurFileSystem(PipelineOptions())

        @pytest.fixture
        def folder(self):
            return "ours://bucket/" + uuid.uuid4().hex        # nothing is below it; without a slash at the end

Beam's documentation leaves some things open, and FileSystems differ in them. Say what yours does with the class
attributes. Beam itself is not imported: what is tested is the object that the fixture gives.
"""

from __future__ import annotations

import bz2
import contextlib
import gc
import gzip
import io
import pickle
import random
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest

__all__ = ["FileSystemContract"]

_LINES = b"".join(b"line %d\n" % number for number in range(5_000))
_COMPRESSED: dict[str, tuple[str, Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
    "gzip": ("gz", gzip.compress, gzip.decompress),
    "bzip2": ("bz2", bz2.compress, bz2.decompress),
    "deflate": ("deflate", zlib.compress, zlib.decompress),
}


class FileSystemContract:
    """Derive a class from it, in a test module of yours, and give it the fixtures `filesystem` and `folder`.

    Attributes:
        missing_may_be_deleted: Deleting what is not there is no error.
        hidden_until_closed: A file that is being written cannot be seen before it is closed.
        exception_abandons: An exception that leaves the `with` of a new file leaves nothing behind.
        keeps_directories: Directories are things of their own: an empty one can exist.
        large_bytes: Size of the file for the tests with a large one.
    """

    missing_may_be_deleted: ClassVar[bool] = True
    hidden_until_closed: ClassVar[bool] = True
    exception_abandons: ClassVar[bool] = True
    keeps_directories: ClassVar[bool] = False
    large_bytes: ClassVar[int] = 9_000_001

    @pytest.fixture
    def filesystem(self) -> Any:
        """The FileSystem under test."""
        raise NotImplementedError("override the fixture `filesystem`")

    @pytest.fixture
    def folder(self) -> str:
        """A path that nothing is below, without a slash at the end."""
        raise NotImplementedError("override the fixture `folder`")

    @pytest.fixture
    def put(self, filesystem: Any, folder: str) -> Callable[..., str]:
        """Write a file below the folder, and get its path."""

        def put(name: str, data: bytes = b"data", **how: Any) -> str:
            path: str = filesystem.join(folder, *name.split("/"))
            with filesystem.create(path, **how) as file:
                file.write(data)
            return path

        return put

    @pytest.fixture
    def large(self, put: Callable[..., str]) -> tuple[str, bytes]:
        """A file of several chunks, and its content."""
        data = random.Random(7).randbytes(self.large_bytes)  # noqa: S311 - bytes that compress badly, not a secret
        return put("large.bin", data), data

    # Paths

    def test_what_is_joined_can_be_split(self, filesystem: Any, folder: str) -> None:
        """`split` undoes the last part of `join`."""
        path = filesystem.join(folder, "a", "b.txt")
        assert filesystem.split(path) == (filesystem.join(folder, "a"), "b.txt")

    def test_a_slash_at_the_end_is_not_doubled(self, filesystem: Any, folder: str) -> None:
        """Joining takes a folder with or without a slash."""
        assert filesystem.join(folder + "/", "a") == filesystem.join(folder, "a")

    def test_the_instance_can_be_made_again(self, filesystem: Any) -> None:
        """Beam makes a new object for each call, with no options where it knows none."""
        assert type(filesystem)(pipeline_options=None).scheme() == filesystem.scheme()

    # Writing and reading

    @pytest.mark.parametrize("data", [b"", b"x", _LINES], ids=["empty", "one byte", "lines"])
    def test_what_was_written_is_read(self, filesystem: Any, put: Callable[..., str], data: bytes) -> None:
        """Bytes in, the same bytes out."""
        with filesystem.open(put("a.bin", data)) as file:
            assert file.read() == data

    def test_a_large_file_in_many_writes(self, filesystem: Any, folder: str, large: tuple[str, bytes]) -> None:
        """Pieces of all sizes come out in their order."""
        path, data = filesystem.join(folder, "pieces.bin"), large[1]
        with filesystem.create(path) as file:
            at, step = 0, 1
            while at < len(data):
                file.write(data[at : at + step])
                at, step = at + step, min(step * 2, 3_000_000)
        with filesystem.open(path) as file:
            assert _read_in_pieces(file, 1 << 16) == data

    def test_a_file_written_again_has_the_new_content(self, filesystem: Any, put: Callable[..., str]) -> None:
        """Creating replaces, also with something shorter."""
        path = put("a.txt", b"the first, longer content")
        assert put("a.txt", b"second") == path
        with filesystem.open(path) as file:
            assert file.read() == b"second"

    def test_lines_can_be_read(self, filesystem: Any, put: Callable[..., str]) -> None:
        """A file gives its lines, one by one and as an iterator."""
        with filesystem.open(put("a.txt", _LINES)) as file:
            assert file.readline() == b"line 0\n"
            assert list(file) == _LINES.splitlines(keepends=True)[1:]

    def test_text_wrappers_work(self, filesystem: Any, folder: str) -> None:
        """`io.TextIOWrapper` takes both kinds of file."""
        path = filesystem.join(folder, "text.txt")
        with io.TextIOWrapper(filesystem.create(path), encoding="utf-8") as text:
            text.write("höher\nund weiter\n")
        with io.TextIOWrapper(filesystem.open(path), encoding="utf-8") as text:
            assert text.read().splitlines() == ["höher", "und weiter"]

    def test_files_know_their_name_and_mode(self, filesystem: Any, put: Callable[..., str], folder: str) -> None:
        """Libraries look at `name` and `mode`."""
        path = put("a.txt")
        with filesystem.open(path) as file:
            assert (file.name, file.mode) == (path, "rb")
        with filesystem.create(path) as file:
            assert (file.name, file.mode) == (path, "wb")

    def test_a_file_is_closed_once(self, filesystem: Any, folder: str) -> None:
        """Closing again does nothing, and a closed file takes and gives nothing."""
        path = filesystem.join(folder, "a.txt")
        file = filesystem.create(path)
        file.write(b"x")
        file.close()
        file.close()
        with pytest.raises(ValueError, match="closed"):
            file.write(b"y")
        file = filesystem.open(path)
        file.close()
        file.close()
        with pytest.raises(ValueError, match="closed"):
            file.read(1)

    def test_a_missing_file_cannot_be_opened(self, filesystem: Any, folder: str) -> None:
        """The error is an OSError, and comes from `open`."""
        with pytest.raises(OSError, match=r"missing\.txt"):
            filesystem.open(filesystem.join(folder, "missing.txt"))

    # Seeking

    def test_positions(self, filesystem: Any, put: Callable[..., str]) -> None:
        """Seeking from the start, from here and from the end."""
        with filesystem.open(put("a.txt", b"0123456789")) as file:
            assert file.seekable()
            assert (file.seek(7), file.read(2), file.tell()) == (7, b"78", 9)
            assert (file.seek(-4, io.SEEK_CUR), file.read(1)) == (5, b"5")
            assert (file.seek(-3, io.SEEK_END), file.read()) == (7, b"789")
            assert file.read(1) == b""
            file.seek(20)
            assert file.read(1) == b""
            file.seek(0)
            assert file.read(3) == b"012"

    def test_random_places_of_a_large_file(self, filesystem: Any, large: tuple[str, bytes]) -> None:
        """Whatever is read from wherever is what is there."""
        path, data = large
        places = random.Random(11)  # noqa: S311 - places, not a secret
        with filesystem.open(path) as file:
            for _ in range(25):
                at, length = places.randrange(len(data)), places.choice([1, 100, 70_000, 5_000_000])
                file.seek(at)
                assert file.read(length) == data[at : at + length]

    def test_a_large_file_front_to_back_after_its_end(self, filesystem: Any, large: tuple[str, bytes]) -> None:
        """As Parquet and Avro are read: the footer first, then all of it."""
        path, data = large
        with filesystem.open(path) as file:
            file.seek(-8, io.SEEK_END)
            assert file.read() == data[-8:]
            file.seek(0)
            assert _read_in_pieces(file, 1_000_003) == data

    # Compression

    @pytest.mark.parametrize("kind", _COMPRESSED)
    def test_compressed_by_name(self, filesystem: Any, put: Callable[..., str], kind: str) -> None:
        """A name's suffix says how to compress, and how to decompress."""
        suffix, _, decompress = _COMPRESSED[kind]
        path = put(f"a.txt.{suffix}", _LINES)
        with filesystem.open(path, compression_type="uncompressed") as file:
            assert decompress(file.read()) == _LINES
        with filesystem.open(path) as file:
            assert file.read(len(_LINES) + 1) == _LINES

    @pytest.mark.parametrize("kind", _COMPRESSED)
    def test_compressed_as_told(self, filesystem: Any, put: Callable[..., str], kind: str) -> None:
        """What the caller says wins over the name."""
        path = put("a.txt", _COMPRESSED[kind][1](_LINES))
        with filesystem.open(path, compression_type=kind) as file:
            assert file.readline() == b"line 0\n"
            file.seek(0)
            assert file.read(len(_LINES) + 1) == _LINES

    def test_an_unknown_compression_is_refused(self, filesystem: Any, put: Callable[..., str], folder: str) -> None:
        """Both ways."""
        path = put("a.txt")
        with pytest.raises(TypeError):
            filesystem.open(path, compression_type="zip")
        with pytest.raises(TypeError):
            filesystem.create(filesystem.join(folder, "b.txt"), compression_type="zip")

    # What is not finished

    def test_nothing_is_seen_before_the_close(self, filesystem: Any, folder: str) -> None:
        """A reader never meets half a file, unless this FileSystem is said to show it."""
        path = filesystem.join(folder, "a.bin")
        file = filesystem.create(path)
        file.write(bytes(self.large_bytes))
        file.flush()
        assert filesystem.exists(path) is not self.hidden_until_closed
        file.close()
        assert filesystem.size(path) == self.large_bytes

    @pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
    def test_an_exception_abandons_the_file(self, filesystem: Any, put: Callable[..., str], name: str) -> None:
        """The old content stays when writing the new one fails half way, unless it is said to be lost."""
        path = put(name, b"old")
        with pytest.raises(ZeroDivisionError), filesystem.create(path) as file:  # noqa: PT012 - it is about the block
            file.write(_LINES)
            _ = 1 / 0
        with filesystem.open(path) as file:
            assert (file.read(100) == b"old") is self.exception_abandons

    @pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
    def test_a_file_that_is_dropped_is_no_file(self, filesystem: Any, folder: str, name: str) -> None:
        """A file that nobody closed, as when its process dies, is never seen, unless it is said to be."""
        path = filesystem.join(folder, name)
        file = filesystem.create(path)
        file.write(_LINES)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del file
            gc.collect()
        assert filesystem.exists(path) is not self.hidden_until_closed

    # Looking

    def test_exists_is_a_bool(self, filesystem: Any, put: Callable[..., str], folder: str) -> None:
        """True for a file; False, and no error, for none."""
        assert filesystem.exists(put("a.txt")) is True
        assert filesystem.exists(filesystem.join(folder, "b.txt")) is False
        assert filesystem.exists(filesystem.join(folder, "none", "b.txt")) is False

    def test_facts_of_a_file(self, filesystem: Any, put: Callable[..., str]) -> None:
        """Size, time and checksum, each by itself and as metadata."""
        began = time.time()
        path = put("a.txt", b"12345")
        found = filesystem.metadata(path)
        assert (found.path, found.size_in_bytes, filesystem.size(path)) == (path, 5, 5)
        assert found.last_updated_in_seconds == filesystem.last_updated(path)
        assert began - 5 < found.last_updated_in_seconds < time.time() + 5
        assert isinstance(filesystem.checksum(path), str)
        assert filesystem.checksum(path) == filesystem.checksum(path)

    def test_the_checksum_tells_contents_apart(self, filesystem: Any, put: Callable[..., str]) -> None:
        """Files of different content differ."""
        assert filesystem.checksum(put("a.txt", b"1")) != filesystem.checksum(put("b.txt", b"22"))

    @pytest.mark.parametrize("fact", ["metadata", "size", "last_updated", "checksum"])
    def test_facts_of_a_missing_file(self, filesystem: Any, folder: str, fact: str) -> None:
        """Each is an OSError that names the path."""
        with pytest.raises(OSError, match=r"missing\.txt"):
            getattr(filesystem, fact)(filesystem.join(folder, "missing.txt"))

    # Matching

    @pytest.fixture
    def tree(self, put: Callable[..., str]) -> dict[str, str]:
        """Files in three folders, by their name."""
        names = ["a1.txt", "a2.txt", "b1.csv", "sub/a3.txt", "sub/deep/a4.txt", "sub-not/a5.txt"]
        return {name: put(name, name.encode()) for name in names}

    @pytest.mark.parametrize(
        ("pattern", "names"),
        [
            ("a1.txt", ["a1.txt"]),
            ("*.txt", ["a1.txt", "a2.txt"]),
            ("a?.txt", ["a1.txt", "a2.txt"]),
            ("a[2-9].txt", ["a2.txt"]),
            ("a[!2-9].txt", ["a1.txt"]),
            ("*", ["a1.txt", "a2.txt", "b1.csv"]),
            ("sub/*", ["sub/a3.txt"]),
            ("sub/", ["sub/a3.txt"]),
            ("s*/*.txt", ["sub-not/a5.txt", "sub/a3.txt"]),
            ("**.txt", ["a1.txt", "a2.txt", "sub-not/a5.txt", "sub/a3.txt", "sub/deep/a4.txt"]),
            ("sub/**", ["sub/a3.txt", "sub/deep/a4.txt"]),
            ("c*", []),
            ("none.txt", []),
            ("none/*", []),
        ],
    )
    def test_match(self, filesystem: Any, folder: str, tree: dict[str, str], pattern: str, names: list[str]) -> None:
        """`*` stays within a folder, `**` does not; nothing matched is no error."""
        (found,) = filesystem.match([f"{folder}/{pattern}"])
        assert sorted(file.path for file in found.metadata_list) == sorted(tree[name] for name in names)
        assert all(file.size_in_bytes == filesystem.size(file.path) for file in found.metadata_list)

    def test_limits(self, filesystem: Any, folder: str, tree: dict[str, str]) -> None:
        """One limit a pattern; None is none."""
        patterns = [f"{folder}/*", f"{folder}/**", f"{folder}/a1.txt", f"{folder}/*"]
        found = filesystem.match(patterns, [2, None, 1, 0])
        assert [len(result.metadata_list) for result in found] == [2, len(tree), 1, 0]

    def test_as_many_limits_as_patterns(self, filesystem: Any, folder: str) -> None:
        """Other numbers are an error."""
        with pytest.raises((AssertionError, ValueError)):
            filesystem.match([f"{folder}/*"], [1, 2])

    # Copying, renaming, deleting

    def test_copy(self, filesystem: Any, folder: str, large: tuple[str, bytes], put: Callable[..., str]) -> None:
        """Sources stay, targets are replaced, and all is there when it returns."""
        small, old = put("small.txt", b"small"), put("to/old.txt", b"what was there before")
        target = filesystem.join(folder, "to", "large.bin")
        filesystem.copy([large[0], small], [target, old])
        assert filesystem.size(target) == len(large[1])
        with filesystem.open(target) as file:
            assert file.read() == large[1]
        with filesystem.open(old) as file:
            assert file.read() == b"small"
        assert filesystem.exists(large[0])
        assert filesystem.exists(small)

    def test_rename(self, filesystem: Any, folder: str, put: Callable[..., str]) -> None:
        """Afterwards there are the targets, and no sources."""
        sources = [put(f"from-{number}.txt", b"%d" % number) for number in range(3)]
        targets = [filesystem.join(folder, f"to-{number}.txt") for number in range(3)]
        filesystem.rename(sources, targets)
        assert not any(filesystem.exists(path) for path in sources)
        for number, path in enumerate(targets):
            with filesystem.open(path) as file:
                assert file.read() == b"%d" % number

    def test_rename_replaces(self, filesystem: Any, put: Callable[..., str]) -> None:
        """A target that was there has the source's content."""
        source, target = put("a.txt", b"new"), put("b.txt", b"old, and longer")
        filesystem.rename([source], [target])
        with filesystem.open(target) as file:
            assert file.read() == b"new"

    def test_rename_to_itself(self, filesystem: Any, put: Callable[..., str]) -> None:
        """A file survives it."""
        path = put("a.txt", b"here")
        filesystem.rename([path], [path])
        assert filesystem.exists(path)

    @pytest.mark.parametrize("operation", ["copy", "rename"])
    def test_what_fails_is_named(
        self, filesystem: Any, folder: str, put: Callable[..., str], operation: str
    ) -> None:
        """The error holds the pair that failed; the others are done."""
        good, missing = put("good.txt"), filesystem.join(folder, "missing.txt")
        targets = [filesystem.join(folder, "t1.txt"), filesystem.join(folder, "t2.txt")]
        with pytest.raises(OSError, match=r"missing\.txt") as caught:
            getattr(filesystem, operation)([missing, good], targets)
        assert list(caught.value.exception_details) == [(missing, targets[0])]  # type: ignore[attr-defined]  # Beam's
        assert not filesystem.exists(targets[0])
        assert filesystem.exists(targets[1])

    @pytest.mark.parametrize("operation", ["copy", "rename"])
    def test_as_many_targets_as_sources(self, filesystem: Any, put: Callable[..., str], operation: str) -> None:
        """Other numbers are an error, and nothing is done."""
        path = put("a.txt")
        with pytest.raises((AssertionError, ValueError)):
            getattr(filesystem, operation)([path], [])
        assert filesystem.exists(path)

    def test_delete(self, filesystem: Any, put: Callable[..., str]) -> None:
        """What is named is gone, and nothing else."""
        gone, stays = [put("a.txt"), put("b.txt")], put("b.txt.bak")
        filesystem.delete(gone)
        assert not any(filesystem.exists(path) for path in gone)
        assert filesystem.exists(stays)

    def test_delete_what_a_pattern_matches(self, filesystem: Any, folder: str, tree: dict[str, str]) -> None:
        """Globs are those of `match`."""
        filesystem.delete([f"{folder}/a*.txt"])
        (left,) = filesystem.match([f"{folder}/**"])
        gone = {tree["a1.txt"], tree["a2.txt"]}
        assert {file.path for file in left.metadata_list} == set(tree.values()) - gone

    def test_delete_a_folder(self, filesystem: Any, folder: str, tree: dict[str, str]) -> None:
        """All below it goes; what merely begins alike stays."""
        filesystem.delete([f"{folder}/sub"])
        (left,) = filesystem.match([f"{folder}/**"])
        gone = {tree["sub/a3.txt"], tree["sub/deep/a4.txt"]}
        assert {file.path for file in left.metadata_list} == set(tree.values()) - gone

    def test_delete_what_is_not_there(self, filesystem: Any, folder: str, put: Callable[..., str]) -> None:
        """The rest is deleted, whether it is an error or not."""
        there, missing = put("a.txt"), filesystem.join(folder, "missing.txt")
        expected = contextlib.nullcontext() if self.missing_may_be_deleted else pytest.raises(OSError, match="missing")
        with expected:
            filesystem.delete([missing, there])
        assert not filesystem.exists(there)

    # The rest

    def test_directories(self, filesystem: Any, folder: str, put: Callable[..., str]) -> None:
        """Making one lets files be created in it, whether there are directories or not."""
        new = filesystem.join(folder, "new", "deep")
        filesystem.mkdirs(new)
        assert filesystem.has_dirs() is self.keeps_directories
        assert filesystem.exists(put("new/deep/a.txt"))

    def test_errors_survive_pickling(self, filesystem: Any, folder: str) -> None:
        """An error crosses processes with its details."""
        with pytest.raises(OSError, match=r"missing\.txt") as caught:
            filesystem.rename([filesystem.join(folder, "missing.txt")], [filesystem.join(folder, "b.txt")])
        back = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own bytes
        assert list(back.exception_details) == list(caught.value.exception_details)  # type: ignore[attr-defined]  # Beam's

    def test_lineage(self, filesystem: Any, put: Callable[..., str]) -> None:
        """Reporting lineage takes whatever path there is."""
        noted = _Lineage()
        filesystem.report_lineage(put("a.txt"), noted)
        assert len(noted.added) <= 1


class _Lineage:
    """Takes what Beam's Lineage takes."""

    def __init__(self) -> None:
        self.added: list[tuple[Any, ...]] = []

    def add(self, system: str, *segments: str, **_: Any) -> None:
        """Note it."""
        self.added.append((system, *segments))


def _read_in_pieces(file: Any, length: int) -> bytes:
    def pieces() -> Iterator[bytes]:
        while piece := file.read(length):
            yield piece

    return b"".join(pieces())
