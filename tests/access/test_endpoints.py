"""The endpoints file: where services are on this machine, and no way to change who or what."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import pytest

from beam_entra.access import Endpoints
from beam_entra.errors import ConfigError

FILE = "local.toml"
HIDDEN = "hunter2-do-not-show"
DOCUMENT = {
    "pipeline": "orders",
    "identity": {"tenant": "t", "authority": "https://login.microsoftonline.com", "assertion_file": "env:A"},
    "grants": {"read": ["x"]},
    "accounts": {"contosolake": {"endpoint": "https://contosolake.blob.core.windows.net", "hierarchical": True}},
    "digest": "d",
}


def test_the_example_of_the_docstring_is_read_and_applied() -> None:
    """What the module's first page shows is a file that works."""
    module = __import__("beam_entra.access.endpoints", fromlist=["endpoints"])
    example = "\n".join(line for line in (module.__doc__ or "").splitlines() if line.startswith("    "))
    applied = Endpoints.parse(example.replace("\n    ", "\n").strip(), file=FILE).applied_to(DOCUMENT)
    assert applied == DOCUMENT | {
        "identity": {
            "tenant": "t",
            "authority": "https://127.0.0.1:8443",
            "ca_file": "ca.pem",
            "assertion_file": "file:assertion.jwt",
        },
        "accounts": {
            "contosolake": {
                "endpoint": "https://127.0.0.1:10000/contosolake",
                "hierarchical": True,
                "emulator": True,
                "ca_file": "ca.pem",
            }
        },
    }


def test_an_empty_file_changes_nothing() -> None:
    """Every table is optional."""
    assert Endpoints.parse("", file=FILE).applied_to(DOCUMENT) == DOCUMENT


def test_an_account_that_the_manifest_does_not_use_is_ignored() -> None:
    """One local set-up serves many manifests, and adds no account to any of them."""
    text = '[accounts.another]\nendpoint = "https://127.0.0.1:10000/another"'
    assert Endpoints.parse(text, file=FILE).applied_to(DOCUMENT) == DOCUMENT


def test_a_file_is_loaded_and_travels(tmp_path: Path) -> None:
    """From disk, and through a pickle."""
    file = tmp_path / FILE
    file.write_text('[entra]\nauthority = "https://localhost:18443"\n')
    loaded = Endpoints.load(file)
    assert loaded.tables.entra.authority == "https://localhost:18443"
    assert pickle.loads(pickle.dumps(loaded)) == loaded  # noqa: S301  # our own bytes


def test_paths_are_relative_to_the_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers stand in other folders than the launcher; what is absolute, or no path, stays."""
    folder = tmp_path / "cloud"
    folder.mkdir()
    (folder / FILE).write_text(
        '[entra]\nca_file = "ca.pem"\n'
        '[accounts.alake]\nca_file = "/etc/ca.pem"\n[accounts.blake]\nca_file = "b/ca.pem"\n'
        '[settings]\nassertion_file = "a.jwt"\nclient_secret = "file:secret"\nother = "x"\n'
    )
    monkeypatch.chdir(tmp_path)
    tables = Endpoints.load(f"cloud/{FILE}").tables
    assert tables.entra.ca_file == str(folder / "ca.pem")
    assert [account.ca_file for account in tables.accounts.values()] == ["/etc/ca.pem", str(folder / "b/ca.pem")]
    assert tables.settings == {
        "assertion_file": str(folder / "a.jwt"),
        "client_secret": f"file:{folder / 'secret'}",
        "other": "x",
    }
    for given, loaded in {"file:a.jwt": f"file:{folder / 'a.jwt'}", "env:A": "env:A", "/a.jwt": "/a.jwt"}.items():
        (folder / FILE).write_text(f'[settings]\nassertion_file = "{given}"\n')
        assert Endpoints.load(folder / FILE).tables.settings["assertion_file"] == loaded


def test_a_setting_that_the_manifest_does_not_have_is_not_added() -> None:
    """One local set-up serves manifests of several credentials: it gives other values, never other keys."""
    text = '[settings]\nassertion_file = "a.jwt"\nclient_secret = "env:SECRET"'
    identity = {"tenant": "t", "authority": "https://login.microsoftonline.com", "client_secret": "env:PROD_SECRET"}
    applied = Endpoints.parse(text, file=FILE).applied_to({**DOCUMENT, "identity": identity})
    assert applied["identity"] == identity | {"client_secret": "env:SECRET"}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The error says what kind of file is missing."""
    with pytest.raises(ConfigError, match=r"nowhere\.toml: there is no such endpoints file"):
        Endpoints.load(tmp_path / "nowhere.toml")


@dataclass(frozen=True)
class Wrong:
    """A file, and the start of the line that must be told."""

    text: str
    line: str


ACCOUNT = "[accounts.contosolake]\n"
WRONG = {
    "a grant": Wrong('[grants]\nread = ["x"]', "[grants]: is not known. Known here: accounts, entra, settings"),
    "an audit path": Wrong('[audit]\npath = "x"', "[audit]: is not known"),
    "a lifetime": Wrong('[lifetime]\njob = "7d"', "[lifetime]: is not known"),
    "a tenant": Wrong('[entra]\ntenant = "x.com"', "[entra] tenant: is not known"),
    "a tenant among the settings": Wrong(
        '[settings]\ntenant = "x.com"', "[settings] tenant: is no setting of a credential"
    ),
    "a client among the settings": Wrong(
        '[settings]\nclient = "x"', "[settings] client: is no setting of a credential"
    ),
    "a command among the settings": Wrong(
        '[settings]\nassertion_command = "/bin/x"', "[settings] assertion_command: says who the job is, or what it runs"
    ),
    "a chain among the settings": Wrong('[settings]\nchain = "developer, x"', "[settings] chain: says who the job is"),
    "a provider's client among the settings": Wrong(
        '[settings]\noidc_client = "x"', "[settings] oidc_client: says who the job is"
    ),
    "a source among the settings": Wrong('[settings]\ncredential = "x"', "[settings] credential: is no setting of"),
    "an authority among the settings": Wrong(
        '[settings]\nauthority = "http://x"', "[settings] authority: is no setting of"
    ),
    "a plain authority": Wrong('[entra]\nauthority = "http://127.0.0.1"', "[entra] authority: is not an https URL"),
    "an authority with a tenant": Wrong('[entra]\nauthority = "https://x.com/t"', "[entra] authority: has a path"),
    "an empty CA file": Wrong('[entra]\nca_file = ""', "[entra] ca_file: is not a path"),
    "a plain endpoint": Wrong(
        ACCOUNT + 'endpoint = "http://127.0.0.1"', "[accounts.contosolake] endpoint: is not an https"
    ),
    "an endpoint with a user": Wrong(
        ACCOUNT + f'endpoint = "https://me:{HIDDEN}@x.com"', "[accounts.contosolake] endpoint: is not an https"
    ),
    "the endpoint of another account": Wrong(
        ACCOUNT + 'endpoint = "https://other.blob.core.windows.net"', "[accounts.contosolake] endpoint: is not the Blob"
    ),
    "an emulator that is nowhere": Wrong(
        ACCOUNT + "emulator = true", "[accounts.contosolake] emulator: needs an endpoint"
    ),
    "an emulator at Storage": Wrong(
        ACCOUNT + 'endpoint = "https://contosolake.blob.core.windows.net"\nemulator = true',
        "[accounts.contosolake] emulator: needs an endpoint that is not Storage's",
    ),
    "a wider SAS": Wrong(ACCOUNT + "hierarchical = false", "[accounts.contosolake] hierarchical: is not known"),
    "a wider permission": Wrong(ACCOUNT + "create_only = false", "[accounts.contosolake] create_only: is not known"),
    "an odd account": Wrong('[accounts."../x"]', "[accounts.'../x']: is no account"),
    "a secret": Wrong(f'[settings]\nclient_secret = "{HIDDEN}"', "[settings] client_secret: must not hold the secret"),
    "a setting that is a number": Wrong("[settings]\nretries = 3", "[settings] retries: must be text"),
    "settings that are no table": Wrong("settings = 3", "[settings]: must be a table"),
    "no TOML": Wrong("[entra", "is not TOML: Expected ']' at the end of a table declaration (at line 1, column 7)"),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_refused_at_the_key_that_is_wrong(wrong: Wrong) -> None:
    """It is as strict as the manifest, and can say nothing but where."""
    with pytest.raises(ConfigError) as refusal:
        Endpoints.parse(wrong.text, file=FILE)
    lines = refusal.value.message.split("\n")
    assert any(line.startswith(f"{FILE}: {wrong.line}") for line in lines), lines
    assert HIDDEN not in refusal.value.message


def test_all_problems_of_a_file_are_told_once() -> None:
    """Model and rules agree on a value of the wrong type, and say so in one line."""
    with pytest.raises(ConfigError) as refusal:
        Endpoints.parse('x = 1\n[settings]\nretries = 3\n[entra]\nca_file = ""', file=FILE)
    assert len(refusal.value.message.split("\n")) == 3
