"""Other people's error texts, made fit to be shown: one line, bounded, without what looks like a secret."""

from __future__ import annotations

import re

__all__ = ["redacted"]

_LONGEST = 300  # characters
_ASSIGNED = re.compile(
    r"(?i)(?<![\w-])([\w-]*(?:secret|passw(?:or)?d|passphrase|pwd|token|assertion|api[_-]?key|signature|sig|authorization))"
    r"""(["']?\s*[:=]\s*["']?|\s+)((?:bearer|basic)\s+)?[^\s"',;&]+"""
)
_WORD = re.compile(r"[A-Za-z]{1,15}[.:)]*")
_AUTHORIZATION = re.compile(r"(?i)\b(bearer|basic)\s+[^\s\"',;]+")
_RUN = re.compile(r"[A-Za-z0-9_~+/=.-]{16,}")
_GUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_GONE = "[redacted]"


def redacted(text: str, *known: str, prose: bool = False) -> str:
    """The first `_LONGEST` characters of `text` on one line.

    Taken out are `known`, whatever is assigned to a word such as password or token, what follows Bearer, and runs of 16
    characters or more that mix letters and digits, but for GUIDs. It is a second line of defence: the first is that no
    text is shown which has no need to be.

    Args:
        known: Texts that must not be shown, as they are.
        prose: They are sentences of Entra's or Key Vault's: a plain word behind "secret" or "assertion" is only a word.
    """
    for secret in sorted((each for each in known if each), key=len, reverse=True):
        text = text.replace(secret, _GONE)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    text = _AUTHORIZATION.sub(rf"\1 {_GONE}", text)
    text = _ASSIGNED.sub(lambda found: _unassigned(found, prose=prose), text)
    text = _RUN.sub(lambda found: _GONE if _mixed(found[0]) else found[0], text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _unassigned(found: re.Match[str], *, prose: bool) -> str:
    named, between, scheme = found.groups()
    value = found[0][len(named) + len(between) :]
    if prose and between.isspace() and not scheme and _WORD.fullmatch(value):
        return found[0]
    return f"{named}{between}{_GONE}"


def _mixed(run: str) -> bool:
    bare = _GUID.sub("", run)
    return any(c.isdigit() for c in bare) and any(c.isalpha() for c in bare)
