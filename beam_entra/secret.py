"""Text that must not leak: redacts itself, refuses pickling, opens only with `.reveal()`."""

from __future__ import annotations

from typing import NoReturn

__all__ = ["Secret"]


class Secret:
    """A token, a SAS, a key or an assertion, held where it cannot be printed, compared by accident or pickled.

    >>> Secret("s3cret", what="access token")
    <access token: redacted>
    """

    __slots__ = ("_text", "what")

    def __init__(self, text: str, *, what: str = "secret") -> None:
        if not text:
            raise ValueError(f"an empty {what} is no {what}")
        self._text = text
        self.what = what

    def reveal(self) -> str:
        """The text itself. Call it where the text is put on the wire, nowhere else."""
        return self._text

    def __repr__(self) -> str:
        return f"<{self.what}: redacted>"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(f"a {self.what} is never pickled: it is acquired where it is used")

    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self
