"""Paths of blobs: parse, contain, format. Pure text; knows no network.

There is one canonical spelling, and whatever was pasted is turned into it or refused:

    abfss://<container>@<account>.dfs.core.windows.net/<name>     the name is literal
    azfs://<account>/<container>/<name>                           the name is literal
    https://<account>.blob.core.windows.net/<container>/<name>    the name is percent-decoded exactly once

Rules, held by every `BlobPath` however it was made, and cited by number in the code:

 1. Account and container are those of Azure: lower case, no other alphabet, no host but Storage's, no port.
 2. No userinfo, query or fragment: a SAS may hide there, so an error never repeats one.
 3. At most 1,024 characters in 254 segments.
 4. No control, bidirectional or line-separating characters, lone surrogates or noncharacters; no backslash.
 5. No empty segment, none that is "." or "..", none that ends in "." (Storage drops such dots).
 6. Rules 2, 4 and 5 hold however often the name is percent-decoded, and no decoding makes a new "/".

See: https://learn.microsoft.com/rest/api/storageservices/naming-and-referencing-containers--blobs--and-metadata
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from urllib.parse import unquote_to_bytes

from beam_entra.errors import ConfigError, Diagnosis

__all__ = ["BlobPath", "BlobPattern"]

_HOST = r"(?P<account>[a-z0-9]+)\.(?:dfs|blob)\.core\.windows\.net"
_CONTAINER = r"(?P<container>[a-z0-9-]+)"
_NAME = r"(?:/(?P<name>.*))?"
_SPELLINGS = {
    "abfss": re.compile(rf"{_CONTAINER}@{_HOST}{_NAME}", re.DOTALL),
    "azfs": re.compile(rf"(?P<account>[a-z0-9]+)/{_CONTAINER}{_NAME}", re.DOTALL),
    "https": re.compile(rf"{_HOST}/{_CONTAINER}{_NAME}", re.DOTALL),
}
_CANONICAL = "abfss://<container>@<account>.dfs.core.windows.net/<name>"
_CORRECT = "correct the path; it is used as it is written, or not at all"
_ACCOUNT_RULE = re.compile(r"[a-z0-9]{3,24}")
_CONTAINER_RULE = re.compile(r"(?=[a-z0-9-]{3,63}\Z)[a-z0-9]+(?:-[a-z0-9]+)*")
_ASTRAL_NONCHARACTERS = "".join(chr(plane << 16 | end) for plane in range(1, 17) for end in (0xFFFE, 0xFFFF))
_FORBIDDEN = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff"
    rf"{_ASTRAL_NONCHARACTERS}]"
)
_SAS = re.compile(r"[?&;#]\s*sig=", re.IGNORECASE)
_PERHAPS_SAS = re.compile(r"sig(?:=|%(?:25)*3d)", re.IGNORECASE)  # wider: it only hides text in errors
_QUERY = re.compile(r"[?#]|%(?:25)*(?:3f|23)", re.IGNORECASE)
_MAX_CHARACTERS = 1024
_MAX_SEGMENTS = 254


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class BlobPath:
    """One blob, or with a name that is empty or ends in "/" the prefix of many.

    Attributes:
        account: Name of the storage account. It is the account that is used, whatever else is configured.
        container: Name of the container.
        name: Name of the blob, literal; "" stands for the whole container.
    """

    account: str
    container: str
    name: str

    def __post_init__(self) -> None:
        if not _ACCOUNT_RULE.fullmatch(self.account):
            raise _wrong("the account of a path must be 3 to 24 lower-case letters and digits", _CORRECT)
        if not _CONTAINER_RULE.fullmatch(self.container):
            raise _wrong("a container must be 3 to 63 lower-case letters, digits and single hyphens", _CORRECT)
        if fault := _fault_of_name(self.name):
            shown = "(not shown)" if _PERHAPS_SAS.search(self.name) else ascii(_QUERY.split(self.name)[0][:200])
            raise _wrong(f"the name {shown} in container {self.container} of account {self.account} {fault}", _CORRECT)

    @classmethod
    def parse(cls, text: str) -> BlobPath:
        """Read a path in one of its three spellings.

        Raises:
            ConfigError: It breaks a rule of this module. What may hold a secret is not repeated.
        """
        account, container, name = _split(text)
        return cls(account=account, container=container, name=name)

    @property
    def is_prefix(self) -> bool:
        """Whether it stands for all blobs below it, not for one blob."""
        return not self.name or self.name.endswith("/")

    def covers(self, other: BlobPath) -> bool:
        """Whether `other` is this very path or, for a prefix, lies below it.

        A prefix ends at a "/", so text containment is segment containment: `orders/` never covers `orders-secret/`.
        """
        if (self.account, self.container) != (other.account, other.container):
            return False
        return other.name.startswith(self.name) if self.is_prefix else other.name == self.name

    def child(self, relative: str) -> BlobPath:
        """The path below this prefix; `relative` is literal and may end in "/".

        Raises:
            ConfigError: This is no prefix, `relative` is empty, or the result breaks a rule of this module.
        """
        if not self.is_prefix:
            raise _wrong(f"{self} is one blob, so nothing lies below it", 'end the path in "/" to make it a prefix')
        if not relative:
            raise _wrong(f"an empty name cannot be put below {self}")
        return replace(self, name=self.name + relative)

    def __str__(self) -> str:
        return f"abfss://{self.container}@{self.account}.dfs.core.windows.net/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobPattern:
    """What Beam calls a file pattern: a fixed prefix and a glob, or exactly one blob.

    The globs are those of Beam's `FileSystem.translate_pattern`: `*` stops at "/", `**` does not, `?` is any one
    character, `[...]` and `[!...]` are classes. A pattern that ends in "/" means what is directly below it. There is
    no way to quote a glob character but a class: `[*]`.

    Attributes:
        prefix: The fixed part up to the last "/" before the first glob character; the blob itself without a glob.
            A grant on it is a grant on every match.
        glob: The pattern for the full name; None for exactly one blob.
    """

    prefix: BlobPath
    glob: str | None = None

    def __post_init__(self) -> None:
        if self.glob is None:
            if self.prefix.is_prefix:
                raise _wrong(f"{self.prefix} is a prefix, so a pattern of it needs a glob")
            return
        if fault := _fault_of_name(self.glob):
            raise _wrong(f"the pattern in container {self.prefix.container} of {self.prefix.account} {fault}", _CORRECT)
        if self.glob == _fixed(self.glob) or self.prefix.name != _directory(_fixed(self.glob)):
            raise _wrong(f"{self.glob!r} is not a glob whose fixed part is {self.prefix}")
        _compiled(self.glob)

    @classmethod
    def parse(cls, text: str) -> BlobPattern:
        """Read a path with or without a glob in its name.

        Raises:
            ConfigError: It breaks a rule of this module, or the glob is malformed.
        """
        account, container, name = _split(text)
        if text.startswith("https:") and _globs(name) != _globs(text) and not _fault_of_name(name):
            raise _wrong("a pattern cannot hold a percent-encoded glob character", "write it as a class, such as [*]")
        if not name or name.endswith("/"):
            name += "*"
        fixed = _fixed(name)
        if fixed == name:
            return cls(prefix=BlobPath(account=account, container=container, name=name))
        return cls(prefix=BlobPath(account=account, container=container, name=_directory(fixed)), glob=name)

    @property
    def list_prefix(self) -> str:
        """The longest fixed start of the names that match: what to ask a listing for."""
        return self.prefix.name if self.glob is None else _fixed(self.glob)

    def matches(self, name: str) -> bool:
        """Whether a listed blob's full name is one of the pattern's. A directory marker (it ends in "/") never is.

        This looks at the glob alone: a name from a listing still has to be made a `BlobPath`, which refuses
        what breaks a rule.
        """
        if self.glob is None:
            return name == self.prefix.name
        return bool(name) and not name.endswith("/") and _compiled(self.glob).fullmatch(name) is not None

    def __str__(self) -> str:
        return str(self.prefix) if self.glob is None else f"{replace(self.prefix, name='')}{self.glob}"


def _split(text: str) -> tuple[str, str, str]:
    """Account, container and name of a spelling; the name is decoded but not yet checked."""
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in _SPELLINGS:
        tls = " (without TLS nothing is read or written)" if scheme in ("http", "abfs", "wasb") else ""
        raise _wrong(f"{_shown(text)} does not start with abfss://, azfs:// or https://{tls}", f"write {_CANONICAL}")
    if scheme == "https" and re.search(r"[?#]", rest):  # rule 2
        raise _wrong(
            "the https path has a query or a fragment; it may hold a SAS and is not shown",
            "remove everything from the first ? or # on, and revoke the SAS if there was one",
        )
    found = _SPELLINGS[scheme].fullmatch(rest)
    if not found:
        raise _wrong(f"{_shown(text)} {_misspelling(scheme, rest)}", f"write {_CANONICAL}")
    name = found["name"] or ""
    return found["account"], found["container"], _decoded_once(name) if scheme == "https" else name


def _misspelling(scheme: str, rest: str) -> str:
    """The likeliest way in which rules 1 and 2 are broken."""
    authority = rest.partition("/")[0]
    if ":" in authority:
        return "has a port or a password in it"
    if "@" in authority and (scheme != "abfss" or authority.count("@") > 1):
        return "has a user name in it"
    if authority != authority.lower():
        return "has upper case in its account or container"
    if scheme != "azfs" and not authority.endswith((".dfs.core.windows.net", ".blob.core.windows.net")):
        return "is not on dfs.core.windows.net or blob.core.windows.net"
    return "does not name an account and a container"


def _fault_of_name(name: str) -> str | None:
    """Which rule of this module a name, or what it decodes to, breaks; None for a sound one."""
    if not name:
        return None
    if len(name) > _MAX_CHARACTERS or name.removesuffix("/").count("/") >= _MAX_SEGMENTS:  # rule 3
        return f"is longer than {_MAX_CHARACTERS:,} characters or {_MAX_SEGMENTS} segments"
    try:
        for decoded in _decodings(name):  # rule 6
            if fault := _fault_of_text(decoded):
                return fault if decoded == name else f"{fault} once it is percent-decoded"
            if decoded.count("/") != name.count("/"):
                return 'hides a "/" behind percent-encoding'
    except UnicodeDecodeError:
        return "is not UTF-8 once it is percent-decoded"
    return None


def _fault_of_text(name: str) -> str | None:
    if _SAS.search(name):  # rule 2
        return "seems to hold a SAS; revoke it if it was one"
    if _FORBIDDEN.search(name):  # rule 4
        return "holds a control, bidirectional or invalid character"
    if "\\" in name:
        return "holds a backslash"
    segments = name.removesuffix("/").split("/")
    if "" in segments:  # rule 5
        return "has an empty segment"
    if any(segment.endswith(".") for segment in segments):
        return 'has a segment that is "." or ".." or ends in "."'
    return None


def _decodings(name: str) -> Iterator[str]:
    """The name, what it decodes to, what that decodes to, and so on; each is shorter than the one before."""
    yield name
    while (decoded := unquote_to_bytes(name).decode()) != name:
        yield decoded
        name = decoded


def _decoded_once(name: str) -> str:
    try:
        return unquote_to_bytes(name).decode()
    except UnicodeError:
        raise _wrong("the name in the https path is not percent-encoded UTF-8") from None


def _shown(text: str) -> str:
    """What an error may repeat of a text that is not understood: no query, no fragment, no userinfo."""
    scheme, separator, rest = text.rpartition("://")
    has_query, has_user = _QUERY.search(rest), "@" in rest
    if _PERHAPS_SAS.search(text) or (has_query and has_user) or not re.fullmatch(r"[A-Za-z0-9+.-]{0,12}", scheme):
        return "a path that is not shown, for it may hold a secret,"
    rest = "...@" + rest.rpartition("@")[2] if has_user else _QUERY.split(rest, maxsplit=1)[0]
    return ascii((scheme + separator + rest)[:200])


def _wrong(cause: str, next_step: str = "") -> ConfigError:
    return ConfigError(cause, Diagnosis(hint=next_step))


def _globs(name: str) -> int:
    return sum(map(name.count, "*?["))


def _fixed(pattern: str) -> str:
    return re.split(r"[*?[]", pattern, maxsplit=1)[0]


def _directory(name: str) -> str:
    """Up to and with the last "/"."""
    return "".join(name.rpartition("/")[:2])


_GLOB_TOKEN = re.compile(r"\*\*|\*|\?|\[(?P<members>!?+\]?+[^\]]*+)\]|.", re.DOTALL)


@functools.lru_cache(maxsize=256)
def _compiled(glob: str) -> re.Pattern[str]:
    """The glob as a regular expression for `fullmatch`."""
    try:
        return re.compile(_GLOB_TOKEN.sub(_translated, glob), re.DOTALL)
    except re.error:
        raise _wrong(f"the glob {glob!r} has a malformed [...] class") from None


def _translated(token: re.Match[str]) -> str:
    members = token["members"]
    if members is not None:
        negated = members.startswith("!")
        escaped = re.sub(r"[\[&~|^\\]", r"\\\g<0>", members[negated:])
        return f"[{'^' * negated}{escaped}]"
    return {"**": ".*", "*": r"[^/\\]*", "?": "."}.get(token[0]) or re.escape(token[0])
