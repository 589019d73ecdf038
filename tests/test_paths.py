"""Paths: what is read, what is refused, and that nothing slips from one prefix into another."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import unicodedata
import warnings
from dataclasses import FrozenInstanceError, dataclass, replace
from urllib.parse import quote

import pytest
from apache_beam.io.filesystem import FileSystem
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from beam_entra.errors import ConfigError
from beam_entra.paths import BlobPath, BlobPattern

ROOT = "abfss://raw@contosolake.dfs.core.windows.net/"
HIDDEN = "hunter2"


def blob(name: str, container: str = "raw", account: str = "contosolake") -> BlobPath:
    """A path of the account that most tests use."""
    return BlobPath(account=account, container=container, name=name)


# ---------------------------------------------------------------- spellings

SPELLINGS = {
    "abfss on dfs": ROOT + "orders/a.jsonl",
    "abfss on blob": "abfss://raw@contosolake.blob.core.windows.net/orders/a.jsonl",
    "azfs": "azfs://contosolake/raw/orders/a.jsonl",
    "https on blob": "https://contosolake.blob.core.windows.net/raw/orders/a.jsonl",
    "https on dfs": "https://contosolake.dfs.core.windows.net/raw/orders/a.jsonl",
    "https with an encoded slash": "https://contosolake.blob.core.windows.net/raw/orders%2Fa.jsonl",
    "https with a letter encoded": "https://contosolake.blob.core.windows.net/raw/orders/%61.jsonl",
}


@pytest.mark.parametrize("text", SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_is_read_as_the_one_canonical_path(text: str) -> None:
    """Three schemes and two hosts name one blob, and it prints as one text."""
    assert BlobPath.parse(text) == blob("orders/a.jsonl")
    assert str(BlobPath.parse(text)) == ROOT + "orders/a.jsonl"


SOUND_NAMES = {
    "a percent sign that encodes nothing": "100%.csv",
    "an encoded letter, which stays literal": "a%41.csv",
    "glob characters, as a listing may give them": "a[1]?*.csv",
    "a fragment sign": "issue#7.csv",
    "an at sign": "mail@contoso.com/a.csv",
    "a colon and a port": "host:443/a.csv",
    "spaces": "my orders/a b.csv",
    "a leading dot": ".hidden/_SUCCESS",
    "dots inside": "a..b/c...d",
    "a plus sign": "a+b",
    "another alphabet": "заказы/注文.csv",
    "a partition named sig": "sig=5/design=a/x",
    "a full-width slash, which separates nothing": "orders\uff0fsecret",
    "full-width dots, which lead nowhere": "orders/\uff0e\uff0e/a",
    "the longest name": "a" * 1024,
    "the most segments": "/".join("a" * 254),
    "the most segments of a prefix": "/".join("a" * 254) + "/",
}


@pytest.mark.parametrize("name", SOUND_NAMES.values(), ids=SOUND_NAMES)
def test_an_unusual_but_sound_name_survives_each_spelling(name: str) -> None:
    """What Storage allows is not refused, and is never decoded twice."""
    assert BlobPath.parse(str(blob(name))) == blob(name)
    assert BlobPath.parse(f"azfs://contosolake/raw/{name}") == blob(name)
    assert BlobPath.parse(f"https://contosolake.blob.core.windows.net/raw/{quote(name)}") == blob(name)


@pytest.mark.parametrize("text", [ROOT, ROOT.rstrip("/"), "azfs://contosolake/raw", "azfs://contosolake/raw/"])
def test_a_container_without_a_name_is_the_prefix_of_all_its_blobs(text: str) -> None:
    """With or without the last slash, the root of a container is a prefix."""
    path = BlobPath.parse(text)
    assert (path.name, path.is_prefix, str(path)) == ("", True, ROOT)


# ---------------------------------------------------------------- attacks


@dataclass(frozen=True)
class Attack:
    """A text that must be refused, and what the refusal must say."""

    text: str
    says: str


IN_HTTPS = "https://contosolake.blob.core.windows.net/raw/"
ATTACKS = {
    # segments
    "a step up": Attack(ROOT + "orders/../secret/a", "segment"),
    "a step up at the end": Attack(ROOT + "orders/..", "segment"),
    "a step up at the start": Attack(ROOT + "../curated/a", "segment"),
    "a step on the spot": Attack(ROOT + "orders/./a", "segment"),
    "three dots": Attack(ROOT + "orders/.../a", "segment"),
    "a segment that ends in a dot": Attack(ROOT + "orders./a", "segment"),
    "a prefix that ends in a dot": Attack(ROOT + "orders/a./", "segment"),
    "an empty segment": Attack(ROOT + "orders//a", "empty segment"),
    "an empty first segment": Attack(ROOT + "/orders/a", "empty segment"),
    "two slashes at the end": Attack(ROOT + "orders//", "empty segment"),
    "nothing but a slash as the name": Attack("azfs://contosolake/raw//", "empty segment"),
    # encodings
    "an encoded step up": Attack(ROOT + "orders/%2e%2e/secret", "percent-decoded"),
    "a half encoded step up": Attack(ROOT + "orders/.%2E/secret", "percent-decoded"),
    "a doubly encoded step up": Attack(ROOT + "orders/%252e%252e/secret", "percent-decoded"),
    "a triply encoded step up": Attack(ROOT + "orders/%25252e%25252e/secret", "percent-decoded"),
    "an encoded slash": Attack(ROOT + "orders%2fsecret", 'hides a "/"'),
    "a doubly encoded slash": Attack(ROOT + "orders%252fsecret", 'hides a "/"'),
    "a slash encoded by halves": Attack(ROOT + "orders%2%66secret", 'hides a "/"'),
    "an encoded backslash": Attack(ROOT + "orders%5c..%5csecret", "backslash"),
    "an encoded line break": Attack(ROOT + "orders/a%0d%0aHost: evil", "control"),
    "an encoded NUL": Attack(ROOT + "orders/a%00.csv", "control"),
    "an overlong encoded slash": Attack(ROOT + "orders%c0%afsecret", "UTF-8"),
    "an overlong encoded step up": Attack(ROOT + "orders/%c0%ae%c0%ae/secret", "UTF-8"),
    "an encoded step up in https": Attack(IN_HTTPS + "orders/%2e%2e/secret", "segment"),
    "a doubly encoded step up in https": Attack(IN_HTTPS + "orders/%252e%252e/secret", "percent-decoded"),
    "a doubly encoded slash in https": Attack(IN_HTTPS + "orders%252fsecret", 'hides a "/"'),
    "an encoded slash and a step up in https": Attack(IN_HTTPS + "orders%2f..%2fsecret", "segment"),
    "bytes that are no text in https": Attack(IN_HTTPS + "orders/%ff", "UTF-8"),
    "an encoded container in https": Attack("https://contosolake.blob.core.windows.net/r%61w/a", "does not name"),
    # characters
    "a backslash": Attack(ROOT + "orders\\..\\secret", "backslash"),
    "a NUL": Attack(ROOT + "orders/a\x00.csv", "control"),
    "a line break": Attack(ROOT + "orders/a\nb", "control"),
    "a C1 control": Attack(ROOT + "orders/a\x85b", "control"),
    "a delete": Attack(ROOT + "orders/a\x7fb", "control"),
    "a lone surrogate": Attack(ROOT + "orders/a\ud800b", "invalid"),
    "U+FFFE": Attack(ROOT + "orders/a\ufffeb", "invalid"),
    "U+FFFF": Attack(ROOT + "orders/a\uffffb", "invalid"),
    "a noncharacter of another plane": Attack(ROOT + "orders/a\U0001ffffb", "invalid"),
    "text turned right to left": Attack(ROOT + "orders/\u202ecsv.exe", "bidirectional"),
    "a line separator": Attack(ROOT + "orders/a\u2028b", "control"),
    # account and container
    "an upper-case account": Attack("abfss://raw@ContosoLake.dfs.core.windows.net/a", "upper case"),
    "an upper-case container": Attack("abfss://Raw@contosolake.dfs.core.windows.net/a", "upper case"),
    "an upper-case host": Attack("abfss://raw@contosolake.dfs.core.Windows.net/a", "upper case"),
    "an upper-case scheme": Attack("ABFSS://raw@contosolake.dfs.core.windows.net/a", "does not start"),
    "the Kelvin sign in an account": Attack("abfss://raw@contosola\u212ae.dfs.core.windows.net/a", "upper case"),
    "a Cyrillic letter in an account": Attack("abfss://raw@c\u043entosolake.dfs.core.windows.net/a", "does not name"),
    "an Arabic digit in an account": Attack("abfss://raw@contoso\u0661.dfs.core.windows.net/a", "does not name"),
    "a full-width dot in the host": Attack("abfss://raw@contosolake\uff0edfs.core.windows.net/a", "is not on"),
    "a line break after the host": Attack("abfss://raw@contosolake.dfs.core.windows.net\n/a", "is not on"),
    "an account that is too short": Attack("abfss://raw@ab.dfs.core.windows.net/a", "3 to 24"),
    "an account that is too long": Attack(f"abfss://raw@{'a' * 25}.dfs.core.windows.net/a", "3 to 24"),
    "an account with a hyphen": Attack("abfss://raw@contoso-lake.dfs.core.windows.net/a", "does not name"),
    "a container that is too short": Attack("abfss://ra@contosolake.dfs.core.windows.net/a", "3 to 63"),
    "a container that is too long": Attack(f"azfs://contosolake/{'a' * 64}/a", "3 to 63"),
    "a container with two hyphens": Attack("azfs://contosolake/raw--data/a", "3 to 63"),
    "a container that starts with a hyphen": Attack("azfs://contosolake/-raw/a", "3 to 63"),
    "no container": Attack("abfss://contosolake.dfs.core.windows.net/a", "does not name"),
    "no container in https": Attack("https://contosolake.blob.core.windows.net", "does not name"),
    "a glob in the container": Attack("abfss://r*w@contosolake.dfs.core.windows.net/a", "does not name"),
    "a glob in the account": Attack("abfss://raw@*.dfs.core.windows.net/a", "does not name"),
    # hosts
    "another host": Attack("abfss://raw@contosolake.dfs.core.windows.net.evil.com/a", "is not on"),
    "another service": Attack("abfss://raw@contosolake.file.core.windows.net/a", "is not on"),
    "a host below the account": Attack("abfss://raw@evil.contosolake.dfs.core.windows.net/a", "does not name"),
    "a port": Attack("abfss://raw@contosolake.dfs.core.windows.net:443/a", "port"),
    "a port in https": Attack("https://contosolake.blob.core.windows.net:8443/raw/a", "port"),
    "a user in https": Attack("https://raw@contosolake.blob.core.windows.net/raw/a", "user name"),
    "a second user": Attack("abfss://raw@evil@contosolake.dfs.core.windows.net/a", "user name"),
    "a password": Attack(f"abfss://raw:{HIDDEN}@contosolake.dfs.core.windows.net/a", "password"),
    "a password in https": Attack(f"https://me:{HIDDEN}@contosolake.blob.core.windows.net/raw/a", "password"),
    "a password with a slash": Attack(f"https://me:p/{HIDDEN}@contosolake.blob.core.windows.net/raw/a", "password"),
    "a password with a question mark": Attack(f"abfss://me:{HIDDEN}?x@contosolake.dfs.core.windows.net/a", "password"),
    "a fragment before the host": Attack("abfss://raw@evil.com#@contosolake.dfs.core.windows.net/a", "user name"),
    "a query before the host": Attack("abfss://raw@evil.com?@contosolake.dfs.core.windows.net/a", "user name"),
    "a backslash before the host": Attack("abfss://raw@evil.com\\@contosolake.dfs.core.windows.net/a", "user name"),
    "a fragment after the host": Attack("abfss://raw@contosolake.dfs.core.windows.net#.evil.com/a", "is not on"),
    # schemes
    "plain http": Attack("http://contosolake.blob.core.windows.net/raw/a", "TLS"),
    "abfs without TLS": Attack("abfs://raw@contosolake.dfs.core.windows.net/a", "TLS"),
    "another cloud": Attack("gs://bucket/a", "does not start"),
    "no scheme": Attack("/data/orders/a", "does not start"),
    "a space before the scheme": Attack(" " + ROOT + "a", "does not start"),
    "no text": Attack("", "does not start"),
    # secrets
    "a SAS in https": Attack(f"{IN_HTTPS}a.csv?sv=2026-04-06&sp=r&sig={HIDDEN}%3D", "may hold a SAS"),
    "a fragment in https": Attack(f"{IN_HTTPS}a.csv#{HIDDEN}", "may hold a SAS"),
    "a SAS in abfss": Attack(f"{ROOT}a.csv?sv=2026-04-06&sp=r&sig={HIDDEN}", "seems to hold a SAS"),
    "a SAS in azfs, signature first": Attack(f"azfs://contosolake/raw/a.csv?sig={HIDDEN}&sp=r", "seems to hold a SAS"),
    "a SAS without its question mark": Attack(f"{ROOT}a.csv&sig={HIDDEN}", "seems to hold a SAS"),
    "a SAS in upper case": Attack(f"{ROOT}a.csv?SIG={HIDDEN}", "seems to hold a SAS"),
    "an encoded SAS": Attack(f"{ROOT}a.csv%3fsv%3d1%26sig%3d{HIDDEN}", "seems to hold a SAS"),
    "an encoded SAS in https": Attack(f"{IN_HTTPS}a.csv%3fsig%3d{HIDDEN}", "seems to hold a SAS"),
    "a SAS after a wrong host": Attack(f"https://evil.com/raw/a.csv?sig={HIDDEN}", "may hold a SAS"),
    "a SAS after a wrong scheme": Attack(f"http://contosolake.blob.core.windows.net/raw/a?sig={HIDDEN}", "TLS"),
    "a query after a wrong scheme": Attack(f"http://contosolake.blob.core.windows.net/raw/a?x={HIDDEN}", "TLS"),
    "a query with an at sign after a wrong scheme": Attack(f"http://contosolake/raw/a?x=1@{HIDDEN}", "TLS"),
    "a SAS in a name that is wrong besides": Attack(f"{ROOT}\x00/a.csv&sig={HIDDEN}", "SAS"),
    "an encoded SAS in a name that is wrong besides": Attack(f"{ROOT}\x00a%26sig%253d{HIDDEN}", "control"),
    "a user after a wrong scheme": Attack(f"ftp://me:{HIDDEN}@contosolake/raw", "does not start"),
    "a user without a scheme": Attack(f"me:{HIDDEN}@contosolake/raw", "does not start"),
    "a bare signature": Attack(f"sig={HIDDEN}", "does not start"),
    # sizes
    "a name that is too long": Attack(ROOT + "a" * 1025, "longer than"),
    "too many segments": Attack(ROOT + "/".join("a" * 255), "longer than"),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("kind", [BlobPath, BlobPattern], ids=["path", "pattern"])
def test_an_attack_is_refused_in_words_that_repeat_no_secret(
    attack: Attack, kind: type[BlobPath | BlobPattern]
) -> None:
    """A path that breaks a rule is a ConfigError that names the rule, on one line, without what may be secret."""
    with pytest.raises(ConfigError) as refusal:
        kind.parse(attack.text)
    told = str(refusal.value) + repr(refusal.value) + repr(refusal.value.diagnostics())
    assert attack.says in refusal.value.message
    assert HIDDEN not in told
    assert "\n" not in refusal.value.message
    assert refusal.value.__cause__ is None


@pytest.mark.parametrize("field", ["account", "container", "name"])
def test_a_path_that_is_made_without_parsing_is_checked_too(field: str) -> None:
    """There is no way to hold a path that breaks a rule."""
    with pytest.raises(ConfigError):
        replace(blob("a"), **{field: "../A"})


def test_a_path_cannot_be_changed() -> None:
    """A path that was checked stays as it was checked."""
    with pytest.raises(FrozenInstanceError):
        blob("a").name = "b"  # type: ignore[misc]  # the point of the test


def test_a_path_survives_pickling_and_sorts() -> None:
    """Paths travel between processes and are put in order."""
    assert pickle.loads(pickle.dumps(blob("a"))) == blob("a")  # noqa: S301  # our own bytes
    assert sorted([blob("b"), blob("a"), blob("c", account="alake")]) == [
        blob("c", account="alake"),
        blob("a"),
        blob("b"),
    ]


# ---------------------------------------------------------------- containment

COVERING = [
    ("a prefix covers what is below it", blob("orders/"), blob("orders/a"), True),
    ("a prefix covers what is far below it", blob("orders/"), blob("orders/2026/01/a"), True),
    ("a prefix covers itself", blob("orders/"), blob("orders/"), True),
    ("a container covers its blobs", blob(""), blob("orders/a"), True),
    ("a prefix does not cover a sibling with a longer name", blob("orders/"), blob("orders-secret/a"), False),
    ("a prefix does not cover the blob of its name", blob("orders/"), blob("orders"), False),
    ("a prefix does not cover its parent", blob("orders/2026/"), blob("orders/"), False),
    ("a prefix does not cover another case", blob("orders/"), blob("Orders/a"), False),
    ("a prefix does not cover a look-alike", blob("orders/"), blob("orders\uff0fa"), False),
    ("a prefix does not cover another normal form", blob("caf\u00e9/"), blob("cafe\u0301/a"), False),
    ("a blob covers itself", blob("orders"), blob("orders"), True),
    ("a blob covers nothing below its name", blob("orders"), blob("orders/a"), False),
    ("a blob covers no longer name", blob("orders"), blob("orders-secret"), False),
    ("a blob does not cover the prefix of its name", blob("orders"), blob("orders/"), False),
    ("a container does not cover another", blob(""), blob("orders/a", container="raw2"), False),
    ("an account does not cover another", blob(""), blob("orders/a", account="contosolake2"), False),
]


@pytest.mark.parametrize(("outer", "inner", "covered"), [row[1:] for row in COVERING], ids=[row[0] for row in COVERING])
def test_containment(outer: BlobPath, inner: BlobPath, covered: bool) -> None:
    """Containment goes by whole segments, and stays in one container of one account."""
    assert outer.covers(inner) is covered


CHILD_ATTACKS = ["", "/a", "../a", "a/../../b", "..", ".", "%2e%2e/a", "a\\b", "a//b", "a%2fb", "a\n", "x?sig=1"]


@pytest.mark.parametrize("relative", CHILD_ATTACKS)
def test_a_child_that_would_leave_its_prefix_is_refused(relative: str) -> None:
    """A relative name is held to the rules of a whole one."""
    with pytest.raises(ConfigError):
        blob("orders/").child(relative)


def test_a_child_is_put_below_a_prefix_only() -> None:
    """A blob has no children; a prefix and a container have."""
    assert blob("orders/").child("2026/a") == blob("orders/2026/a")
    assert blob("").child("orders/") == blob("orders/")
    with pytest.raises(ConfigError, match='end the path in "/"'):
        blob("orders").child("a")


# ---------------------------------------------------------------- patterns


@dataclass(frozen=True)
class Cut:
    """Where a pattern is cut."""

    name: str
    prefix: str
    glob: str | None
    list_prefix: str


CUTS = {
    "one blob": Cut("orders/a.csv", "orders/a.csv", None, "orders/a.csv"),
    "a star in the last segment": Cut("orders/a-*.csv", "orders/", "orders/a-*.csv", "orders/a-"),
    "a star in the middle": Cut("orders/*/a.csv", "orders/", "orders/*/a.csv", "orders/"),
    "a star in the first segment": Cut("ord*/a.csv", "", "ord*/a.csv", "ord"),
    "a class": Cut("orders/[ab].csv", "orders/", "orders/[ab].csv", "orders/"),
    "a question mark": Cut("orders/a?.csv", "orders/", "orders/a?.csv", "orders/a"),
    "a folder means what is directly in it": Cut("orders/", "orders/", "orders/*", "orders/"),
    "a container means what is directly in it": Cut("", "", "*", ""),
    "a folder of a glob means what is directly in it": Cut("o/*/", "o/", "o/*/*", "o/"),
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_a_pattern_is_cut_at_the_last_slash_before_its_glob(cut: Cut) -> None:
    """The fixed part is a whole prefix, which a grant can cover."""
    pattern = BlobPattern.parse(ROOT + cut.name)
    assert (pattern.prefix, pattern.glob, pattern.list_prefix) == (blob(cut.prefix), cut.glob, cut.list_prefix)
    assert BlobPattern.parse(str(pattern)) == pattern


PATTERN_ATTACKS = {
    "a step up before the glob": ROOT + "orders/../*",
    "a step up after the glob": ROOT + "orders/*/../../secret",
    "an encoded step up before the glob": ROOT + "orders/%2e%2e/*",
    "an encoded step up after the glob": ROOT + "orders/*/%2e%2e/secret",
    "an encoded slash after the glob": ROOT + "orders/*%2f..%2fsecret",
    "a backslash after the glob": ROOT + "orders/*\\secret",
    "a control character after the glob": ROOT + "orders/*\n",
    "an empty segment after the glob": ROOT + "orders/*//a",
    "an encoded star in https": IN_HTTPS + "orders/%2A.csv",
    "a star beside an encoded star in https": IN_HTTPS + "*/%2A.csv",
    "a class that runs backwards": ROOT + "orders/[z-a]",
    "a SAS after a star": ROOT + "*.csv?sv=1&sig=" + HIDDEN,
}


@pytest.mark.parametrize("text", PATTERN_ATTACKS.values(), ids=PATTERN_ATTACKS)
def test_a_pattern_that_could_lead_elsewhere_is_refused(text: str) -> None:
    """The part with the glob is held to the rules of a name."""
    with pytest.raises(ConfigError) as refusal:
        BlobPattern.parse(text)
    assert HIDDEN not in str(refusal.value)


@pytest.mark.parametrize(
    ("prefix", "glob"),
    [
        ("orders/", "orders-secret/*"),
        ("orders/", "*"),
        ("", "orders/*"),
        ("orders", "orders/*"),
        ("o/", "o/a"),
        ("o/", None),
    ],
)
def test_a_pattern_whose_parts_disagree_cannot_be_made(prefix: str, glob: str | None) -> None:
    """Nobody can pair a granted prefix with a glob that looks elsewhere."""
    with pytest.raises(ConfigError):
        BlobPattern(prefix=blob(prefix), glob=glob)


def beam_matches(pattern: str, name: str) -> bool:
    """What Beam's own FileSystem.match_files decides, on the same full paths."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return re.compile(FileSystem.translate_pattern(ROOT + pattern)).match(ROOT + name) is not None


GLOBS = {
    "a star stops at a slash": ("orders/*.csv", "orders/2026/a.csv", False),
    "a star matches nothing": ("orders/a*.csv", "orders/a.csv", True),
    "two stars cross slashes": ("orders/**.csv", "orders/2026/01/a.csv", True),
    "two stars need their slash": ("orders/**/a.csv", "orders/a.csv", False),
    "three stars are two and one": ("orders/***", "orders/2026/a", True),
    "a question mark is one character": ("orders/?.csv", "orders/ab.csv", False),
    "a question mark is any character": ("orders?a.csv", "orders/a.csv", True),
    "a class": ("orders/[ab].csv", "orders/b.csv", True),
    "a range": ("orders/[0-9].csv", "orders/x.csv", False),
    "a negated class": ("orders/[!a].csv", "orders/a.csv", False),
    "a class that holds a bracket": ("orders/[]a].csv", "orders/].csv", True),
    "a class that holds a caret": ("orders/[^a].csv", "orders/^.csv", True),
    "a caret negates nothing": ("orders/[^a].csv", "orders/b.csv", False),
    "a class that holds glob characters": ("orders/[*].csv", "orders/*.csv", True),
    "a bracket that is never closed": ("orders/[a.csv", "orders/[a.csv", True),
    "a negation that is never closed": ("orders/[!].csv", "orders/[!].csv", True),
    "a dot is a dot": ("orders/*.csv", "orders/axcsv", False),
    "the whole name": ("orders/*.csv", "orders/a.csv\n", False),
    "characters that mean something to re": ("orders/(a|b)+*", "orders/(a|b)+1", True),
}


@pytest.mark.parametrize(("pattern", "name", "matched"), GLOBS.values(), ids=GLOBS)
def test_a_glob_means_what_it_means_to_beam(pattern: str, name: str, matched: bool) -> None:
    """A named case of each glob, decided as Beam decides it."""
    assert BlobPattern.parse(ROOT + pattern).matches(name) is matched
    assert beam_matches(pattern, name) is matched


def test_a_pattern_of_one_blob_matches_it_alone() -> None:
    """Without a glob nothing is a pattern."""
    pattern = BlobPattern.parse(ROOT + "orders/a.csv")
    assert [name for name in ("orders/a.csv", "orders/axcsv", "orders/a.csv/b") if pattern.matches(name)] == [
        "orders/a.csv"
    ]


def test_a_directory_marker_matches_nothing() -> None:
    """The empty blobs that stand for folders are no data."""
    assert not BlobPattern.parse(ROOT + "orders/**").matches("orders/2026/")
    assert not BlobPattern.parse(ROOT + "**").matches("")


# ---------------------------------------------------------------- properties

unhurried = settings(deadline=None, max_examples=150)
characters = st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]).filter(
    lambda c: (
        ord(c) & 0xFFFE != 0xFFFE
        and not 0xFDD0 <= ord(c) <= 0xFDEF
        and unicodedata.bidirectional(c) not in {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}
    )
)
nasty = st.sampled_from(
    ["..", ".", "%2e", "%2E%2e", "%252e", "%2f", "%5c", "\\", "", "\x00", "?", "#", "@", "sig=", "%"]
)
plain_segments = st.text(st.one_of(characters, st.sampled_from("%?#@ab[*&=")), min_size=1, max_size=6)
segments = plain_segments.filter(lambda text: "/" not in text and "\\" not in text and not text.endswith("."))
accounts = st.from_regex(r"[a-z0-9]{3,24}", fullmatch=True)
containers = st.from_regex(r"[a-z0-9]{2,10}(-[a-z0-9]{1,5}){0,3}", fullmatch=True).filter(lambda text: len(text) > 2)


def made(account: str, container: str, parts: list[str], ending: str) -> BlobPath:
    """A path of drawn parts; a draw that breaks a rule is thrown away."""
    try:
        return BlobPath(account=account, container=container, name="/".join(parts) + ending if parts else "")
    except ConfigError:
        assume(False)
        raise


paths = st.builds(made, accounts, containers, st.lists(segments, max_size=5), st.sampled_from(["", "/"]))
near_paths = st.builds(
    made,
    st.sampled_from(["alake", "blake"]),
    st.sampled_from(["raw", "raw2"]),
    st.lists(st.sampled_from(["a", "ab", "a-", "A", "b"]), max_size=3),
    st.sampled_from(["", "/"]),
)
relatives = st.lists(st.one_of(nasty, segments), max_size=4).map("/".join)


@unhurried
@given(paths)
def test_what_is_printed_is_read_back(path: BlobPath) -> None:
    """parse(str(p)) is p."""
    assert BlobPath.parse(str(path)) == path


@unhurried
@given(paths)
def test_the_three_spellings_of_any_path_agree(path: BlobPath) -> None:
    """abfss, azfs and https name the same blob."""
    azfs = f"azfs://{path.account}/{path.container}/{path.name}"
    https = f"https://{path.account}.blob.core.windows.net/{path.container}/{quote(path.name, safe='/')}"
    encoded = f"https://{path.account}.dfs.core.windows.net/{path.container}/{quote(path.name, safe='')}"
    assert BlobPath.parse(azfs) == BlobPath.parse(https) == BlobPath.parse(encoded) == path


def covered_by_segments(outer: BlobPath, inner: BlobPath) -> bool:
    """Containment in other words: whole segments, one by one."""
    if (outer.account, outer.container) != (inner.account, inner.container):
        return False
    if not outer.is_prefix:
        return outer.name == inner.name
    wanted = [part for part in outer.name.split("/") if part]
    folders = inner.name.split("/")[:-1]
    return folders[: len(wanted)] == wanted


@unhurried
@given(near_paths, near_paths)
def test_a_path_covers_another_only_if_the_segments_say_so(outer: BlobPath, inner: BlobPath) -> None:
    """No text trick makes one prefix cover a sibling."""
    assert outer.covers(inner) is covered_by_segments(outer, inner)


@unhurried
@given(near_paths, near_paths, near_paths)
def test_containment_is_an_order(one: BlobPath, two: BlobPath, three: BlobPath) -> None:
    """Reflexive, antisymmetric, transitive."""
    assert one.covers(one)
    assert not (one.covers(two) and two.covers(one)) or one == two
    assert not (one.covers(two) and two.covers(three)) or one.covers(three)


@unhurried
@given(near_paths.filter(lambda path: path.is_prefix), relatives)
@example(blob("orders/"), "..%2fsecret")
def test_a_child_never_escapes(prefix: BlobPath, relative: str) -> None:
    """Whatever is put below a prefix is refused, or lies below it however often it is decoded."""
    try:
        child = prefix.child(relative)
    except ConfigError:
        return
    assert prefix.covers(child)
    assert child != prefix
    assert not {"", ".", ".."} & set(child.name.removesuffix("/").split("/"))


@unhurried
@given(st.text(max_size=60))
def test_no_text_at_all_raises_anything_but_a_config_error(text: str) -> None:
    """A pasted text is a path, a pattern, or a ConfigError."""
    for kind in (BlobPath, BlobPattern):
        for start in ("", ROOT, IN_HTTPS, "abfss://"):
            try:
                kind.parse(start + text)
            except ConfigError as refusal:
                assert "\n" not in refusal.message  # noqa: PT017  # both outcomes are right


glob_parts = st.lists(st.sampled_from([*"ab/*?[]!^-.&|~+(%", "**", "[a-c]", "[!b]", "/a"]), max_size=9).map("".join)
names = st.lists(st.sampled_from([*"abc/.-^]![&|~+(%*?", "orders"]), min_size=1, max_size=8).map("".join)


@unhurried
@given(glob_parts, names)
@example("[[]", "[")
@example("[a&&b]", "&")
def test_any_glob_agrees_with_beam(glob: str, name: str) -> None:
    """Where we accept a pattern we match what Beam's translate_pattern matches, for any name of a blob."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        try:
            pattern = BlobPattern.parse(f"{ROOT}orders/{glob}")
        except ConfigError:
            return
    full = f"orders/{name}"
    beams = f"orders/{glob}" + ("*" if not glob or glob.endswith("/") else "")
    assert pattern.matches(full) is (beam_matches(beams, full) and not full.endswith("/"))


@unhurried
@given(st.lists(st.sampled_from(["a", "b-c"]), max_size=3), glob_parts, st.one_of(names, relatives))
def test_a_match_never_crosses_the_fixed_prefix(folders: list[str], glob: str, name: str) -> None:
    """What matches starts with the prefix that the grant has to cover, and with what a listing is asked for."""
    try:
        pattern = BlobPattern.parse(ROOT + "".join(f"{folder}/" for folder in folders) + glob)
    except ConfigError:
        return
    if pattern.matches(name):
        assert name.startswith(pattern.list_prefix)
        assert name.startswith(pattern.prefix.name)
        assert pattern.list_prefix.startswith(pattern.prefix.name)


def test_paths_need_neither_beam_nor_azure() -> None:
    """The room that decides stands alone: a fresh interpreter loads neither."""
    script = (
        "import sys, beam_entra.paths, beam_entra.access;"
        "assert not {name.partition('.')[0] for name in sys.modules} & {'apache_beam', 'azure', 'msal'}"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
