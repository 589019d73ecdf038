"""`beam-entra doctor`: flags, exit codes, and its two forms."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

from beam_entra.cli import main
from tests.io.conftest import Lake, lake

__all__ = ["lake"]  # the fixture


@pytest.fixture(autouse=True)
def assertion(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `beam-entra local env` sets."""
    monkeypatch.setenv("AZURE_FEDERATED_TOKEN_FILE", str(lake.cloud.assertion_file))
    monkeypatch.delenv("BEAM_ENTRA_ENDPOINTS", raising=False)


def doctor(lake: Lake, *flags: str, **changes: Any) -> Result:
    """Examine the lake's job."""
    where = [f"--access_manifest={lake.write_manifest(**changes)}", f"--access_endpoints={lake.cloud.endpoints_file}"]
    return CliRunner().invoke(main, ["doctor", *where, *flags])


def test_a_job_that_can_run(lake: Lake) -> None:
    """Exit code 0; every line is on standard output, none of it coloured."""
    done = doctor(lake)
    assert done.exit_code == 0, done.output
    assert "\nThis job can run (" in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stderr == ""
    lake.only_trail().verify()


def test_a_job_that_cannot(lake: Lake) -> None:
    """Exit code 1; the fix is below the line."""
    lake.cloud.proxy.without_role()
    done = doctor(lake)
    assert done.exit_code == 1
    assert "  FAIL  delegation key  contosolake: " in done.stdout
    assert "the role Storage Blob Delegator" in done.stdout
    assert "This job cannot run: see delegation key" in done.stdout


def test_json(lake: Lake) -> None:
    """One object and nothing else, with the same exit code."""
    done = doctor(lake, "--json")
    assert (done.exit_code, json.loads(done.stdout)["ok"]) == (0, True)
    lake.cloud.tenant.fail(400)
    failed = doctor(lake, "--json")
    said = json.loads(failed.stdout)
    assert (failed.exit_code, said["ok"], said["failed"], said["seal_digest"]) == (1, False, ["token"], "")


def test_the_flags_of_a_launch(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the runner and of the job are taken and not looked at; the endpoints may come from the environment."""
    done = doctor(lake, "--runner=DataflowRunner", "--input", "abfss://a@b/c", "--streaming", "--preflight")
    assert done.exit_code == 0, done.output
    monkeypatch.setenv("BEAM_ENTRA_ENDPOINTS", str(lake.cloud.endpoints_file))
    done = CliRunner().invoke(main, ["doctor", "--access_manifest", str(lake.write_manifest())])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("flag", ["--access_endpoints", "--endpoints"])
@pytest.mark.parametrize("joined", [True, False], ids=["in one word", "in two"])
def test_where_the_services_are(lake: Lake, monkeypatch: pytest.MonkeyPatch, flag: str, joined: bool) -> None:
    """By either name, over what the environment says."""
    monkeypatch.setenv("BEAM_ENTRA_ENDPOINTS", str(lake.folder / "nowhere.toml"))
    file = str(lake.cloud.endpoints_file)
    given = [f"{flag}={file}"] if joined else [flag, file]
    done = CliRunner().invoke(main, ["doctor", "--access_manifest", str(lake.write_manifest()), *given])
    assert done.exit_code == 0, done.output


def test_a_manifest_that_is_not_there(lake: Lake) -> None:
    """That is the first line, not a usage error; without the flag it is one."""
    done = CliRunner().invoke(main, ["doctor", "--access_manifest", str(lake.folder / "nothing.toml")])
    assert done.exit_code == 1
    assert "  FAIL  manifest  " in done.stdout
    assert "nothing.toml" in done.stdout
    assert CliRunner().invoke(main, ["doctor"]).exit_code == 2


def test_a_file_that_will_not_do(lake: Lake) -> None:
    """The fix is for the file that is wrong: a folder in place of the manifest, or endpoints that are no TOML."""
    (lake.folder / "broken.toml").write_text("[entra")
    folder = CliRunner().invoke(main, ["doctor", "--access_manifest", str(lake.folder)])
    broken = doctor(lake, f"--access_endpoints={lake.folder / 'broken.toml'}")
    assert (folder.exit_code, broken.exit_code) == (1, 1)
    said = " ".join(folder.stdout.split())
    assert "cannot be read: Is a directory fix: name the access manifest, and see that this user may read it" in said
    said = " ".join(broken.stdout.split())
    assert "broken.toml: is not TOML" in said
    assert "fix: mend that file as it says" in said


def test_nothing_secret_is_printed(lake: Lake) -> None:
    """In neither form."""
    assert lake.cloud.find_leaks(doctor(lake).output + doctor(lake, "--json").output) == []
