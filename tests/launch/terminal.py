"""A pseudo-terminal of a test's own: what was written to it, and what stands on its screen in the end."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import TextIO

import pytest

__all__ = ["Terminal", "terminal"]

_CONTROL = re.compile(r"\x1b\[\??([0-9;]*)([A-Za-z])")


class Terminal:
    """Reads all that is written to `slave` from the moment it is made until `close`."""

    def __init__(self, columns: int = 120, rows: int = 40) -> None:
        self.columns = columns
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.stream: TextIO = os.fdopen(os.dup(self.slave), "w", buffering=1, encoding="utf-8")
        self._changed = threading.Condition()
        self._written = b""
        self._ended = False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with suppress(OSError):  # the last who could write is gone
            while data := os.read(self.master, 65536):
                with self._changed:
                    self._written += data
                    self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def written(self) -> str:
        """Everything so far."""
        with self._changed:
            return self._written.decode("utf-8", "replace")

    def wait_for(self, pattern: str, *, times: int = 1, timeout_s: float = 60) -> list[str]:
        """Wait until the pattern was written so many times; all that fits."""
        found: list[str] = []

        def is_there() -> bool:
            found[:] = [match.group() for match in re.finditer(pattern, self._written.decode("utf-8", "replace"))]
            return len(found) >= times or self._ended

        with self._changed:
            self._changed.wait_for(is_there, timeout_s)
        assert len(found) >= times, self.written[-1000:]
        return found

    def hang_up(self) -> None:
        """Go away while others still write."""
        os.close(self.slave)
        os.close(self.master)
        self.slave = self.master = -1

    def close(self) -> None:
        """Read what is still there, and end."""
        with suppress(OSError):
            self.stream.close()
        if self.slave >= 0:
            os.close(self.slave)
        self._reader.join(30)
        if self.master >= 0:
            os.close(self.master)
        self.slave = self.master = -1

    def screen(self) -> list[str]:
        """The lines that stand there, empty ones at the end left out; without scrolling."""
        lines: list[list[str]] = [[]]
        row = column = 0
        text, at = self.written, 0
        while at < len(text):
            if control := _CONTROL.match(text, at):
                at = control.end()
                number, what = control.groups()
                if what == "A":
                    row = max(row - int(number or 1), 0)
                elif what == "K":
                    lines[row] = lines[row][:column] if number in {"", "0"} else []
                continue
            character, at = text[at], at + 1
            if character == "\r":
                column = 0
            elif character == "\n":
                row += 1
            else:
                if column == self.columns:
                    row, column = row + 1, 0
                while len(lines) <= row:
                    lines.append([])
                lines[row] += [" "] * (column + 1 - len(lines[row]))
                lines[row][column] = character
                column += 1
            while len(lines) <= row:
                lines.append([])
        shown = ["".join(line).rstrip() for line in lines]
        while shown and not shown[-1]:
            shown.pop()
        return shown


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """One that is closed afterwards."""
    made = Terminal()
    try:
        yield made
    finally:
        made.close()
