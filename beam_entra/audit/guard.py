"""The last line of defence against a secret in the audit trail: text that looks like one is refused.

The first line is that nobody hands one over (`beam_entra.secret.Secret` does not turn into text by accident). This
one knows what the secrets of this trade look like, and is applied to every string of every record but those whose field
takes lower-case hex or a few words alone; when it is written and when it is verified:

1. a SAS signature: `sig=`, also percent-encoded;
2. a JWT: three base64url parts, the first of which begins as the encoding of a JSON object does;
3. an Entra client secret: the `Q~` shape;
4. a padded base64 key of 32 bytes or more, which is how Storage hands out account keys and delegation keys;
5. 40 characters that read like random base64: many upper-case *and* lower-case letters, and digits, in no order.

The names that people give, to blobs and to steps, look like keys too often: to them rules 4 and 5 are not applied, and
rule 1 only where `sig=` stands as in a query, after `?` or `&`. So `sig=4/part-0.parquet` is a blob like any other.

It is a heuristic with a price on both sides. A secret in lower-case hex passes, because digests and UUIDs are made of
it, and a bare key passes where a name is expected. A blob whose name has the shape of a JWT cannot be audited, and so
cannot be read.
"""

from __future__ import annotations

import re
from itertools import pairwise

__all__ = ["SecretInRecord", "looks_like_secret"]

_SIGNATURE = re.compile(r"(?:(?<![A-Za-z0-9])|(?<=%[0-9A-F]{2}))sig(?:=|%3d)", re.IGNORECASE)
_SIGNATURE_IN_A_NAME = re.compile(r"(?:[?&]|%3f|%26)sig(?:=|%3d)", re.IGNORECASE)
_JWT = re.compile(r"e(?<![A-Za-z0-9_-]e)(?:yJ|yA|wo|wk|w0)[\w-]{6,}\.[\w-]{8,}\.[\w-]{8,}", re.ASCII)
_CLIENT_SECRET = re.compile(r"(?<![\w.~-])[\w.~-]{3}\dQ~[\w.~-]{31,34}(?![\w.~-])", re.ASCII)
_OF_ALL = (("a JWT", (".",), _JWT), ("a client secret", ("Q~",), _CLIENT_SECRET))
# What it is, texts of which it holds at least one, and its shape: most texts hold none of them, and are done with.
_SHAPES = (("a SAS signature", ("=", "%"), _SIGNATURE), *_OF_ALL)
_SHAPES_IN_NAMES = (("a SAS signature", ("?", "&", "%"), _SIGNATURE_IN_A_NAME), *_OF_ALL)
_RUN = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{40,}(?:={1,2}(?![A-Za-z0-9+/_=-]))?")
_WINDOW = 40
_LETTERS_OF_A_KEY = 10  # of each case in a window: random base64 has 16 +- 3, the names people give have fewer
_LETTERS_OF_A_PADDED_KEY = 4
_CHANGES_OF_A_KEY = 15  # between upper case, lower case and the rest: random base64 has 25 +- 3, words have few


class SecretInRecord(ValueError):
    """A field holds what looks like a secret. The message says which field and which shape, never the text."""


def looks_like_secret(text: str, *, named: bool = False) -> str:
    """Say what kind of secret `text` seems to hold.

    Args:
        named: It is the name of a blob or a step, which may well look like a key.

    Returns:
        "a JWT", "a base64 key", ...; empty when nothing was found. Never a part of the text.
    """
    for what, parts, shape in _SHAPES_IN_NAMES if named else _SHAPES:
        for part in parts:
            if part in text and shape.search(text):
                return what
    if not named and any(_is_key(run) for run in _RUN.findall(text)):
        return "a base64 key"
    return ""


def _is_key(run: str) -> bool:
    if run.endswith("="):
        return _mixes(run[-44:], _LETTERS_OF_A_PADDED_KEY)
    if not _mixes(run, _LETTERS_OF_A_KEY):
        return False  # paths, UUIDs and digests end here
    windows = (run[at : at + _WINDOW] for at in range(len(run) - _WINDOW + 1))
    return any(_mixes(window, _LETTERS_OF_A_KEY) and _changes(window) >= _CHANGES_OF_A_KEY for window in windows)


def _mixes(text: str, letters: int) -> bool:
    return (
        sum(map(str.isupper, text)) >= letters  # of UUIDs and digests none
        and sum(map(str.islower, text)) >= letters
        and any(map(str.isdigit, text))
    )


def _changes(text: str) -> int:
    kinds = [character.isupper() - character.islower() for character in text]
    return sum(one != next_ for one, next_ in pairwise(kinds))
