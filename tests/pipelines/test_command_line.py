"""What can be wrong with a launch, and what a person at a shell sees then: one error, its fix, and no traceback."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from beam_entra.audit.verify import verify
from beam_entra.testing.issuer import WorkloadIssuer
from tests.pipelines.conftest import Ended, Shop, ended

NOBODY = "00000000-0000-4000-8000-000000000000"
Change = Callable[[Shop], dict[str, str | None]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A launch that goes wrong.

    Attributes:
        error: The class of the error that is printed.
        says: What its text holds; of the likely fix, too, where that is not on a line of its own.
        flags: Flags that differ from the usual ones.
        manifest: Pieces of the manifest's text that differ.
        before: What is done to the cloud before.
        denied_by: Who refused it, in the record of it; empty when there is no record.
    """

    error: str
    says: tuple[str, ...]
    flags: Change = field(default=lambda shop: {})
    manifest: tuple[tuple[str, str], ...] = ()
    before: Callable[[Shop], object] = field(default=lambda shop: None)
    denied_by: str = ""


def _drop_assertion(shop: Shop) -> None:
    shop.cloud.assertion_file.unlink()


def _expire_assertion(shop: Shop) -> None:
    issuer: WorkloadIssuer = shop.cloud.issuer
    issuer.write_assertion_file(shop.cloud.assertion_file, shop.cloud.subject, life_s=-600)


def _write_manifest(text: str) -> Change:
    def changed(shop: Shop) -> dict[str, str | None]:
        path = shop.folder / "broken.toml"
        path.write_text(text, encoding="utf-8")
        return {"access_manifest": str(path)}

    return changed


CASES = {
    "no flags at all": Case(
        error="ConfigError",
        says=("--input and --products and --output",),
        flags=lambda shop: dict.fromkeys(("input", "products", "output", "access_manifest")),
    ),
    "no manifest": Case(
        error="ConfigError",
        says=("no access manifest", "--access_manifest"),
        flags=lambda shop: {"access_manifest": None},
    ),
    "a manifest that is not there": Case(
        error="ConfigError", says=("nowhere.toml",), flags=lambda shop: {"access_manifest": "nowhere.toml"}
    ),
    "a manifest that is no TOML": Case(
        error="ConfigError", says=("broken.toml", "line 1", "Correct"), flags=_write_manifest("pipeline = orders\n")
    ),
    "a manifest with a key that nobody knows": Case(
        error="ConfigError",
        says=("orders.access.toml: [grants] reed", "Did you mean read?"),
        manifest=(("read = [", 'reed = ["x"]\nread = ['),),
    ),
    "an output that is no prefix": Case(
        error="ConfigError", says=("--output",), flags=lambda shop: {"output": shop.output.rstrip("/")}
    ),
    "a report that cannot be written": Case(
        error="ConfigError", says=("nowhere",), flags=lambda shop: {"job_report": "/nowhere/report.json"}
    ),
    "an input outside of the grants": Case(
        error="NotGranted",
        says=("orders-secret/", "read = [...]"),
        flags=lambda shop: {"input": shop.raw.url("orders-secret/*")},
        denied_by="manifest",
    ),
    "an output outside of the grants": Case(
        error="NotGranted",
        says=("elsewhere/", "write = [...]"),
        flags=lambda shop: {"output": shop.curated.url("elsewhere/")},
        denied_by="manifest",
    ),
    "an input that matches nothing": Case(
        error="BlobNotFound",
        says=("no blob matches", "2031"),
        flags=lambda shop: {"input": shop.raw.url("orders/2031/*")},
    ),
    "products that are not there": Case(
        error="BlobNotFound", says=("products.csv",), before=lambda shop: shop.raw.delete("products.csv")
    ),
    "a container that does not exist": Case(
        error="BlobNotFound",
        says=("gone",),
        flags=lambda shop: {"input": "abfss://gone@contosolake.dfs.core.windows.net/orders/*"},
        manifest=(("read = [", 'read = ["abfss://gone@contosolake.dfs.core.windows.net/orders/",'),),
    ),
    "a tenant that does not exist": Case(
        error="IdentityRejected", says=("AADSTS90002",), manifest=(("tenant         = ", f'tenant = "{NOBODY}" #'),)
    ),
    "a client that the tenant does not know": Case(
        error="IdentityRejected", says=("AADSTS700016",), manifest=(("client         = ", f'client = "{NOBODY}" #'),)
    ),
    "an assertion that has expired": Case(
        error="IdentityRejected", says=("AADSTS700024",), before=_expire_assertion
    ),
    "an assertion file that is not there": Case(
        error="IdentityRejected", says=("assertion.jwt", "No such file"), before=_drop_assertion
    ),
    "an identity without the role for delegation keys": Case(
        error="AuditUnavailable",  # the audit trail is the first that needs one
        says=("AuthorizationPermissionMismatch", "Storage Blob Delegator", "request id"),
        before=lambda shop: shop.cloud.proxy.without_role(),
    ),
    "an identity that may not read": Case(
        error="AccessDenied",
        says=("AuthorizationPermissionMismatch", "Storage Blob Data Reader"),
        before=lambda shop: shop.cloud.proxy.without_role(
            where=lambda request: request.method == "GET" and f"/{shop.raw.name}/orders/" in request.path
        ),
        denied_by="storage",
    ),
}


@pytest.fixture
def stocked(shop: Shop) -> Shop:
    """A shop with a few orders."""
    shop.upload_sample(50)
    return shop


@pytest.mark.parametrize("name", CASES)
def test_a_launch_that_goes_wrong_says_so_once(stocked: Shop, name: str) -> None:
    """One error with its fix on standard error, exit code 1, nothing on standard output, no secret, nothing written."""
    case = CASES[name]
    manifest = stocked.manifest(*case.manifest)
    case.before(stocked)
    try:
        done = stocked.run(manifest=manifest, **case.flags(stocked))
    finally:
        stocked.cloud.issuer.write_assertion_file(stocked.cloud.assertion_file, stocked.cloud.subject)
    assert done.status == 1, done.said
    assert done.out == ""
    _holds_one_error(done, case)
    assert stocked.cloud.find_leaks(done.said) == []
    assert stocked.curated.list() == []
    if case.denied_by:
        _stands_in_the_trail(stocked, case)


def _holds_one_error(done: Ended, case: Case) -> None:
    lines = done.err.splitlines()
    assert lines[0].startswith(f"{case.error}: "), done.said
    assert [line for line in lines[1:] if not line.startswith("    ")] == [], done.said
    assert "Traceback" not in done.err
    assert "    fix: " in done.err or ".toml" in case.says[0], done.said
    for text in case.says:
        assert text in done.err, done.said


def _stands_in_the_trail(shop: Shop, case: Case) -> None:
    trail = shop.trail()
    verify(trail, seal_digest=shop.report()["seal_digest"])
    records = [json.loads(line) for name in trail.names() for line in trail.read(name).splitlines()]
    assert case.denied_by in [record["by"] for record in records if record["kind"] == "denied"]
    assert shop.report()["outcome"] == "failed"


@pytest.mark.parametrize(
    ("sent", "status", "says"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
    ids=["Ctrl-C", "SIGTERM"],
)
@pytest.mark.parametrize("method", ["GET", "PUT"], ids=["while it reads", "while it stages"])
def test_ctrl_c_ends_the_job_and_seals_its_trail(
    stocked: Shop, method: str, sent: signal.Signals, status: int, says: str
) -> None:
    """In the middle of a request: no traceback, nothing visible, and a trail that says it was interrupted."""
    folder = f"/{stocked.raw.name}/orders/" if method == "GET" else f"/{stocked.curated.name}/orders/run/"
    held = stocked.cloud.proxy.hold(where=lambda request: request.method == method and folder in request.path)
    process = stocked.launch()
    held.gate.wait_for_arrivals(timeout_s=60)
    process.send_signal(sent)
    held.gate.open()
    done = ended(process)
    assert done.status == status, done.said
    assert done.err.startswith(f"{says}\n    audit: "), done.said
    assert len(done.err.splitlines()) == 2, done.said
    assert stocked.curated.list() == []
    assert stocked.report()["outcome"] == "interrupted"
    verify(stocked.trail(), seal_digest=stocked.report()["seal_digest"])


def test_help_reads_well(shop: Shop) -> None:
    """Its own flags and those of identity and access; Beam's are mentioned, not listed."""
    done = shop.run("--help")
    assert done.status == 0, done.said
    assert done.out.startswith("usage: python -m pipelines.orders")
    for text in ("--input", "--products", "--output", "--access_manifest", "--job_report", "--runner=DirectRunner"):
        assert text in done.out
    assert "entra_job_scope" not in done.out
