"""Text, line by line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from beam_entra.io.blocks import Block
from beam_entra.io.formats.base import Format, encoded, not_writable

__all__ = ["Lines"]


class Lines(Format):
    """Text: one element a line, a str without the line end."""

    suffix = ".txt"
    content_type = "text/plain; charset=utf-8"

    def decode(self, record: bytes, header: bytes) -> str:
        return record.decode("utf-8")

    def decode_all(self, block: Block) -> Sequence[str] | None:
        if type(self) is not Lines or b"\r" in block.data:  # a subclass may have a decode of its own
            return None
        try:
            lines: list[str] = block.data.decode("utf-8").split("\n")
        except UnicodeDecodeError:
            return None
        if not lines[-1]:
            lines.pop()
        return lines

    def encode(self, element: Any) -> bytes:
        if not isinstance(element, str):
            raise not_writable(element, "is no str", "map it to str before WriteToBlob(..., Lines())")
        if "\n" in element or element.endswith("\r"):
            raise not_writable(element, "holds a line end", "escape it, or write it as JsonLines()")
        return encoded(element, element) + b"\n"
