"""Downscoping: for any manifest, path and moment the SAS is no wider and no longer than it may be."""

from __future__ import annotations

import pickle
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from beam_entra.access import (
    AccessManifest,
    AccountSettings,
    Grant,
    Lifetime,
    Permission,
    SasSpec,
    downscope,
    downscope_audit,
    downscope_marker,
    downscope_version,
    granted,
)
from beam_entra.access.downscope import require_grant
from beam_entra.errors import ConfigError, IdentityExpired, IdentityUnavailable, NotGranted
from beam_entra.paths import BlobPath

READ, WRITE, LIST, APPEND = Permission.READ, Permission.WRITE, Permission.LIST, Permission.APPEND
DELETE = Permission.DELETE
NOW = datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)
DEADLINE = NOW + timedelta(hours=2)
LAKE = "contosolake.dfs.core.windows.net"
MANIFEST = AccessManifest.parse(
    f"""
pipeline = "orders"
environment = "prod"
[identity]
tenant = "contoso.onmicrosoft.com"
client = "0b8e22f4-8f2d-4c1a-9b54-6b1c0d3e5a77"
credential = "federated_file"
[lifetime]
job = "2h"
[grants]
read = ["abfss://raw@{LAKE}/orders/", "abfss://raw@{LAKE}/products.csv"]
write = ["abfss://curated@{LAKE}/orders/"]
delete = ["abfss://curated@{LAKE}/orders/temporary/"]
[audit]
path = "abfss://audit@{LAKE}/orders/"
""",
    file="orders.access.toml",
)


def path(container: str, name: str, account: str = "contosolake") -> BlobPath:
    """A path, for short."""
    return BlobPath(account=account, container=container, name=name)


FOLDER = path("audit", "orders/job/")


def on(*, hierarchical: bool = False, emulator: bool = False, create_only: bool = False) -> AccessManifest:
    """The manifest with facts about its account."""
    account = AccountSettings(
        endpoint="https://127.0.0.1:10000/contosolake",
        hierarchical=hierarchical,
        emulator=emulator,
        create_only=create_only,
    )
    return replace(MANIFEST, accounts={"contosolake": account})


def spec(asked: BlobPath, permission: Permission, manifest: AccessManifest = MANIFEST) -> SasSpec:
    """The decision at a fixed moment, for who names the folder of the job."""
    return downscope(manifest, asked, permission, now=NOW, deadline=DEADLINE, folder=FOLDER)


# ---------------------------------------------------------------- what is given


@dataclass(frozen=True)
class Given:
    """An access, and what its SAS must be."""

    asked: BlobPath
    permission: Permission
    resource: str
    name: str
    letters: str
    manifest: AccessManifest = MANIFEST


GIVEN = {
    "a blob to read": Given(path("raw", "orders/a"), READ, "blob", "orders/a", "r"),
    "a blob to read far below": Given(path("raw", "orders/2026/01/a"), READ, "blob", "orders/2026/01/a", "r"),
    "the one blob to read": Given(path("raw", "products.csv"), READ, "blob", "products.csv", "r"),
    "a blob to write": Given(path("curated", "orders/a"), WRITE, "blob", "orders/a", "w"),
    "a blob to delete": Given(path("curated", "orders/temporary/a"), DELETE, "blob", "orders/temporary/a", "d"),
    "a blob to create": Given(path("curated", "orders/a"), WRITE, "blob", "orders/a", "c", on(create_only=True)),
    "a blob to create on Azurite": Given(
        path("curated", "orders/a"), WRITE, "blob", "orders/a", "w", on(create_only=True, emulator=True)
    ),
    "a prefix to list": Given(path("raw", "orders/"), LIST, "container", "", "l"),
    "a prefix to list below": Given(path("raw", "orders/2026/"), LIST, "container", "", "l"),
    "a directory to list": Given(
        path("raw", "orders/2026/"), LIST, "directory", "orders/2026", "l", on(hierarchical=True)
    ),
    "a directory to list on Azurite": Given(
        path("raw", "orders/2026/"), LIST, "container", "", "l", on(hierarchical=True, emulator=True)
    ),
    "a whole container to list": Given(
        path("raw", ""),
        LIST,
        "container",
        "",
        "l",
        replace(on(hierarchical=True), grants=(Grant(permission=READ, path=path("raw", "")),)),
    ),
    "a segment of the trail": Given(
        path("audit", "orders/job/segment-1.jsonl"), APPEND, "blob", "orders/job/segment-1.jsonl", "ac"
    ),
}


@pytest.mark.parametrize("case", GIVEN.values(), ids=GIVEN)
def test_a_granted_access_gets_the_least_sas_for_it(case: Given) -> None:
    """One resource, the fewest letters, and a listing that our side holds to the prefix."""
    assert spec(case.asked, case.permission, case.manifest) == SasSpec(
        account="contosolake",
        container=case.asked.container,
        name=case.name,
        resource=case.resource,  # type: ignore[arg-type]  # compared, not used
        permissions=case.letters,
        expires=datetime(2026, 3, 1, 12, 15, tzinfo=UTC),
        guarded_prefix=case.asked.name,
    )


# ---------------------------------------------------------------- what is refused

REFUSED = {
    "a sibling whose name starts alike": (path("raw", "orders-secret/a"), READ),
    "the blob that is named like the prefix": (path("raw", "orders"), READ),
    "the blob whose name starts alike": (path("raw", "products.csv.bak"), READ),
    "what is below the one blob": (path("raw", "products.csv/a"), READ),
    "another case": (path("raw", "Orders/a"), READ),
    "a look-alike of the slash": (path("raw", "orders\uff0fa"), READ),
    "another container": (path("curated", "orders/a"), READ),
    "a container whose name starts alike": (path("raw2", "orders/a"), READ),
    "another account": (path("raw", "orders/a", account="otherlake"), READ),
    "to read what may only be written": (path("curated", "orders/a"), READ),
    "to write what may only be read": (path("raw", "orders/a"), WRITE),
    "to list what may only be written": (path("curated", "orders/"), LIST),
    "to list above the grant": (path("raw", ""), LIST),
    "to list beside the grant": (path("raw", "orders-secret/"), LIST),
    "to list below the one blob": (path("raw", "products.csv/"), LIST),
    "to list one blob": (path("raw", "orders/a"), LIST),
    "to read a prefix": (path("raw", "orders/"), READ),
    "to write a prefix": (path("curated", "orders/"), WRITE),
    "to append to what may be written": (path("curated", "orders/a"), APPEND),
    "to append to what may be read": (path("raw", "orders/a"), APPEND),
    "to append to a prefix": (path("audit", "orders/"), APPEND),
    "to append beside the trail": (path("audit", "orders-2/a"), APPEND),
    "to append to another job's trail": (path("audit", "orders/job-2/segment"), APPEND),
    "to append above the job's folder": (path("audit", "orders/segment"), APPEND),
    "to read the trail": (path("audit", "orders/job/segment"), READ),
    "to delete what may only be written": (path("curated", "orders/a"), DELETE),
    "to delete what may only be read": (path("raw", "orders/a"), DELETE),
    "to read what may only be deleted": (path("curated", "orders/temporary/a"), READ),
    "to list what may only be deleted": (path("curated", "orders/temporary/"), LIST),
    "to delete a prefix": (path("curated", "orders/temporary/"), DELETE),
    "to delete the trail": (path("audit", "orders/job/segment"), DELETE),
    "to write the trail": (path("audit", "orders/job/segment"), WRITE),
    "to list the trail": (path("audit", "orders/"), LIST),
}


@pytest.mark.parametrize(("asked", "permission"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("manifest", [MANIFEST, on(hierarchical=True, create_only=True)], ids=["flat", "hierarchical"])
def test_what_is_not_granted_is_refused(asked: BlobPath, permission: Permission, manifest: AccessManifest) -> None:
    """Deny by default; the refusal names the access and the pipeline, on one line, and says that nothing was sent."""
    with pytest.raises(NotGranted) as refusal:
        spec(asked, permission, manifest)
    error = refusal.value
    assert str(asked) in error.message
    assert permission in error.message
    assert "\n" not in error.message
    assert error.hint
    assert error.diagnosis.tried == f"{permission} {asked}"
    assert "pipeline orders in prod" in error.diagnosis.identity
    assert error.diagnosis.attempts == 0
    assert type(pickle.loads(pickle.dumps(error))) is NotGranted  # noqa: S301  # our own bytes


def hint(asked: BlobPath, permission: Permission) -> str:
    """What a refusal advises."""
    with pytest.raises(NotGranted) as refusal:
        spec(asked, permission)
    return refusal.value.hint


HINTS = {
    "a read": (path("raw", "x/a"), READ, 'read = [...] in table [grants] of the access manifest the line "{path}",'),
    "a listing": (path("raw", "x/"), LIST, 'read = [...] in table [grants] of the access manifest the line "{path}",'),
    "a write": (path("out", "x/a"), WRITE, 'write = [...] in table [grants] of the access manifest the line "{path}",'),
    "what holds grants": (
        path("raw", ""),
        LIST,
        f"in place of abfss://raw@{LAKE}/orders/, abfss://raw@{LAKE}/products.csv",
    ),
    "the trail": (path("audit", "orders/a"), WRITE, "nothing can be granted that overlaps the audit path"),
    "above the trail": (path("audit", ""), LIST, "nothing can be granted that overlaps the audit path"),
    "a name with a glob": (path("raw", "a[1]"), READ, "a grant cannot name a blob with a glob character"),
    "an append": (path("raw", "a"), APPEND, "nothing but the trail itself appends"),
    "a prefix to read": (path("raw", "orders/"), READ, "name the blob"),
    "a blob to list": (path("raw", "orders/a"), LIST, 'end the path in "/"'),
}


@pytest.mark.parametrize(("asked", "permission", "says"), HINTS.values(), ids=HINTS)
def test_a_refusal_says_what_to_change(asked: BlobPath, permission: Permission, says: str) -> None:
    """The next step is a line and its table, or why no line can help."""
    assert says.format(path=asked) in hint(asked, permission)


def test_the_line_that_a_refusal_advises_is_toml_and_grants_it() -> None:
    """Even for a name that needs quoting."""
    asked = path("raw", 'new "x"/caf\u00e9')
    line = hint(asked, READ).partition("the line ")[2]
    added = tomllib.loads(f"read = [{line}]")["read"]
    document = MANIFEST.to_dict()
    document["grants"]["read"] += added
    assert spec(asked, READ, AccessManifest.from_dict(document)).name == asked.name


def test_a_refusal_names_the_nearest_grants_first() -> None:
    """Those of the same container, then those with more folders in common; at most three."""
    names = [("other", "orders/2026/"), ("raw", "b/"), ("raw", "orders/2025/"), ("raw", "c/"), ("raw", "orders-x/")]
    grants = tuple(Grant(permission=READ, path=path(*name)) for name in names)
    with pytest.raises(NotGranted) as refusal:
        spec(path("raw", "orders/2026/a"), READ, replace(MANIFEST, grants=grants))
    nearest = refusal.value.message.partition("nearest read grants: ")[2].split(", ")
    assert nearest == [str(path("raw", name)) for name in ("orders/2025/", "b/", "c/")]
    with pytest.raises(NotGranted, match="it has no write grant"):
        spec(path("raw", "a"), WRITE, replace(MANIFEST, grants=grants))


def test_the_grant_behind_an_access_can_be_asked_for() -> None:
    """Before any bundle runs, a planner can ask for whole prefixes."""
    assert granted(MANIFEST, path("raw", "orders/2026/"), READ) == MANIFEST.grants[0]
    assert granted(MANIFEST, path("raw", "orders/2026/"), LIST) == MANIFEST.grants[0]
    assert granted(MANIFEST, path("curated", "orders/"), WRITE) == MANIFEST.grants[2]
    assert granted(MANIFEST, path("curated", ""), WRITE) is None
    assert granted(MANIFEST, path("audit", "orders/a"), APPEND) is None


def test_a_grant_can_be_required_of_a_whole_prefix() -> None:
    """The refusal names the prefix and the line for it; grants for single blobs below it are not enough."""
    assert require_grant(MANIFEST, path("curated", "orders/2026/"), WRITE) == MANIFEST.grants[2]
    one = replace(MANIFEST, grants=(Grant(permission=WRITE, path=path("curated", "orders/_SUCCESS")),))
    with pytest.raises(NotGranted) as refusal:
        require_grant(one, path("curated", "orders/"), WRITE)
    assert f"no grant to write {path('curated', 'orders/')};" in refusal.value.message
    assert f'"{path("curated", "orders/")}"' in refusal.value.hint
    assert f"in place of {path('curated', 'orders/_SUCCESS')}" in refusal.value.hint


# ---------------------------------------------------------------- sealing


def test_sealing_may_read_and_list_below_the_audit_path() -> None:
    """Which nothing else may."""
    moments = {"now": NOW, "deadline": DEADLINE}
    read = downscope_audit(MANIFEST, path("audit", "orders/job/a"), READ, **moments)
    listing = downscope_audit(MANIFEST, path("audit", "orders/job/"), LIST, **moments)
    directory = downscope_audit(on(hierarchical=True), path("audit", "orders/job/"), LIST, **moments)
    assert (read.resource, read.name, read.permissions) == ("blob", "orders/job/a", "r")
    assert (listing.resource, listing.guarded_prefix, listing.permissions) == ("container", "orders/job/", "l")
    assert (directory.resource, directory.name, directory.permissions) == ("directory", "orders/job", "l")


@pytest.mark.parametrize(
    ("asked", "permission"),
    [
        (path("audit", "orders/a"), WRITE),
        (path("audit", "orders/a"), APPEND),
        (path("audit", "orders-2/a"), READ),
        (path("audit", ""), LIST),
        (path("raw", "orders/a"), READ),
        (path("audit", "orders/"), READ),
        (path("audit", "orders/a"), LIST),
    ],
)
def test_sealing_may_do_nothing_else(asked: BlobPath, permission: Permission) -> None:
    """Not even what the job itself is granted."""
    with pytest.raises(NotGranted, match=r"audit|is a prefix|is one blob"):
        downscope_audit(MANIFEST, asked, permission, now=NOW, deadline=DEADLINE)


# ---------------------------------------------------------------- taking up a commit


def test_who_takes_up_a_commit_may_read_its_marker() -> None:
    """Which the job itself may not: it may write there, and nothing else."""
    asked = path("curated", "orders/a/_COMMITTING")
    made = downscope_marker(MANIFEST, asked, READ, now=NOW, deadline=DEADLINE)
    assert (made.resource, made.name, made.permissions) == ("blob", asked.name, "r")
    with pytest.raises(NotGranted):
        downscope(MANIFEST, asked, READ, now=NOW, deadline=DEADLINE)


@pytest.mark.parametrize(
    ("asked", "permission"),
    [
        (path("curated", "orders/_COMMITTING"), WRITE),
        (path("curated", "orders/_COMMITTING"), LIST),
        (path("curated", "orders/_COMMITTING/"), READ),
        (path("curated", "orders/_COMMITTING/"), LIST),
        (path("curated", "orders/_COMMITTING-00003"), READ),
        (path("curated", "orders/_COMMITTING.jsonl"), READ),
        (path("curated", "orders/all_COMMITTING"), READ),
        (path("curated", "orders/_SUCCESS"), READ),
        (path("curated", "orders/part-a"), READ),
        (path("curated", "other/_COMMITTING"), READ),
        (path("raw", "orders/_COMMITTING"), READ),
        (path("audit", "orders/_COMMITTING"), READ),
    ],
)
def test_who_takes_up_a_commit_may_do_nothing_else(asked: BlobPath, permission: Permission) -> None:
    """No other blob, and nothing where the job may not write."""
    with pytest.raises(NotGranted, match="_COMMITTING"):
        downscope_marker(MANIFEST, asked, permission, now=NOW, deadline=DEADLINE)


# ---------------------------------------------------------------- what is replaced


def test_who_replaces_a_blob_may_ask_which_version_is_there() -> None:
    """A reader's SAS for that one blob."""
    asked = path("curated", "orders/part-a")
    made = downscope_version(MANIFEST, asked, READ, now=NOW, deadline=DEADLINE)
    assert (made.resource, made.name, made.permissions) == ("blob", asked.name, "r")


@pytest.mark.parametrize(
    ("asked", "permission"),
    [
        (path("curated", "orders/part-a"), WRITE),
        (path("curated", "orders/"), LIST),
        (path("curated", "orders/"), READ),
        (path("curated", "other/part-a"), READ),
        (path("raw", "orders/part-a"), READ),
        (path("audit", "orders/part-a"), READ),
    ],
)
def test_who_replaces_a_blob_may_do_nothing_else(asked: BlobPath, permission: Permission) -> None:
    """Nothing where the job may not write, and no more than one blob."""
    with pytest.raises(NotGranted, match=r"replaces a blob without|is a prefix"):
        downscope_version(MANIFEST, asked, permission, now=NOW, deadline=DEADLINE)


# ---------------------------------------------------------------- time


@pytest.mark.parametrize("decide", [downscope, downscope_audit], ids=["job", "sealing"])
@pytest.mark.parametrize("left", [timedelta(0), timedelta(microseconds=1), timedelta(seconds=0.5), timedelta(days=-1)])
def test_after_the_deadline_everything_is_refused(decide: Callable[..., SasSpec], left: timedelta) -> None:
    """Also within its last second, for a SAS ends on a whole one."""
    asked = path("raw", "orders/a") if decide is downscope else path("audit", "orders/a")
    with pytest.raises(IdentityExpired, match="the deadline of pipeline orders has passed: 2026-0") as refusal:
        decide(MANIFEST, asked, READ, now=NOW, deadline=NOW + left)
    assert "job in [lifetime]" in refusal.value.hint


def test_what_is_not_granted_is_said_before_what_is_too_late() -> None:
    """More time would not help."""
    with pytest.raises(NotGranted):
        downscope(MANIFEST, path("raw", "x"), READ, now=NOW, deadline=NOW)


def test_an_expired_key_is_no_end_of_the_job() -> None:
    """The caller can acquire another."""
    with pytest.raises(IdentityUnavailable, match="the delegation key ended at 2026-03-01T12:00:00Z") as refusal:
        downscope(MANIFEST, path("raw", "orders/a"), READ, now=NOW, deadline=DEADLINE, key_expires=NOW)
    assert refusal.value.retryable


ENDS = {
    "its own life": (DEADLINE, None, NOW + timedelta(minutes=15)),
    "the deadline": (NOW + timedelta(minutes=5), None, NOW + timedelta(minutes=5)),
    "the key": (DEADLINE, NOW + timedelta(minutes=3), NOW + timedelta(minutes=3)),
    "the deadline before the key": (NOW + timedelta(minutes=2), NOW + timedelta(minutes=3), NOW + timedelta(minutes=2)),
    "a deadline in another time zone": (
        (NOW + timedelta(minutes=5)).astimezone(timezone(timedelta(hours=-8))),
        None,
        NOW + timedelta(minutes=5),
    ),
}


@pytest.mark.parametrize(("deadline", "key", "ends"), ENDS.values(), ids=ENDS)
def test_a_sas_ends_with_whatever_ends_first(deadline: datetime, key: datetime | None, ends: datetime) -> None:
    """Floored to the second, in UTC."""
    made = downscope(MANIFEST, path("raw", "orders/a"), READ, now=NOW, deadline=deadline, key_expires=key)
    assert made.expires == ends.replace(microsecond=0)
    assert made.expires.tzinfo is UTC


@pytest.mark.parametrize("naive", ["now", "deadline", "key_expires"])
def test_a_naive_time_is_refused(naive: str) -> None:
    """A time without a zone decides nothing."""
    moments = {"now": NOW, "deadline": DEADLINE, "key_expires": DEADLINE}
    moments[naive] = moments[naive].replace(tzinfo=None)
    with pytest.raises(ValueError, match="must be aware"):
        downscope(MANIFEST, path("raw", "orders/a"), READ, **moments)


# ---------------------------------------------------------------- properties

accounts = st.sampled_from(["alake", "blake"])
containers = st.sampled_from(["raw", "raw2"])
folders = st.lists(st.sampled_from(["a", "ab", "a-", "b"]), max_size=3).map("/".join)
paths = st.builds(
    lambda account, container, folder, ending: path(container, folder + (ending if folder else ""), account),
    accounts,
    containers,
    folders,
    st.sampled_from(["", "/"]),
)
grants = st.builds(
    lambda permission, granted: Grant(permission=permission, path=granted), st.sampled_from([READ, WRITE]), paths
)
account_facts = st.builds(
    lambda hierarchical, emulator, create_only: AccountSettings(
        endpoint="https://127.0.0.1:10000/x", hierarchical=hierarchical, emulator=emulator, create_only=create_only
    ),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)


@st.composite
def manifests(draw: st.DrawFn) -> AccessManifest:
    """Any manifest that the rules let through."""
    drawn = draw(st.lists(grants, min_size=1, max_size=5))
    audit = draw(
        st.one_of(st.just(path("audit", "x/", "alake")), paths.filter(lambda drawn_path: drawn_path.is_prefix))
    )
    kept: list[Grant] = []
    for grant in drawn:
        clash = audit.covers(grant.path) or grant.path.covers(audit)
        of_kind = [other.path for other in kept if other.permission is grant.permission]
        if not clash and not any(other.covers(grant.path) or grant.path.covers(other) for other in of_kind):
            kept.append(grant)
    assume(kept)
    used = {audit.account, *(grant.path.account for grant in kept)}
    life = Lifetime(job=timedelta(hours=2), token=timedelta(seconds=draw(st.integers(5, 3600))))
    facts = {name: draw(account_facts) for name in sorted(used)}
    return replace(MANIFEST, grants=tuple(kept), audit=audit, accounts=facts, lifetime=life)


moments = st.integers(0, 3 * 3_600_000_000).map(lambda elapsed_us: NOW + timedelta(microseconds=elapsed_us))


@settings(deadline=None, max_examples=300)
@given(manifests(), paths, st.sampled_from(Permission), st.tuples(moments, moments, st.none() | moments))
def test_a_sas_is_never_wider_or_longer_than_it_may_be(
    manifest: AccessManifest,
    asked: BlobPath,
    permission: Permission,
    times: tuple[datetime, datetime, datetime | None],
) -> None:
    """Whatever is asked: a refusal, or exactly the path asked, the least letters, and no second too many."""
    now, deadline, key_expires = times
    wanted = READ if permission is LIST else permission
    allowed = any(grant.permission is wanted and grant.path.covers(asked) for grant in manifest.grants)
    if permission is APPEND:
        allowed = manifest.audit.covers(asked)
    try:
        made = downscope(
            manifest, asked, permission, now=now, deadline=deadline, key_expires=key_expires, folder=manifest.audit
        )
    except NotGranted:
        assert not allowed or asked.is_prefix != (permission is LIST)
        return
    except IdentityExpired:
        assert deadline.replace(microsecond=0) <= now
        return
    except IdentityUnavailable:
        assert key_expires is not None
        assert key_expires.replace(microsecond=0) <= now
        return
    assert allowed
    assert (made.account, made.container, made.guarded_prefix) == (asked.account, asked.container, asked.name)
    assert made.permissions in {READ: ["r"], WRITE: ["w", "c"], LIST: ["l"], APPEND: ["ac"]}[permission]
    facts = manifest.accounts[asked.account]
    if permission is not LIST:
        assert (made.resource, made.name) == ("blob", asked.name)
    elif facts.hierarchical and not facts.emulator and asked.name:
        assert (made.resource, made.name + "/") == ("directory", asked.name)
    else:
        assert (made.resource, made.name) == ("container", "")
    assert made.permissions != "c" or (facts.create_only and not facts.emulator)
    assert now < made.expires <= min(now + manifest.lifetime.token, deadline, key_expires or deadline)
    assert made.expires.microsecond == 0


@pytest.mark.parametrize("folder", [None, path("audit", "orders-2/"), path("curated", "orders/")], ids=str)
def test_who_names_no_folder_of_a_job_appends_to_nothing(folder: BlobPath | None) -> None:
    """The folder must itself be below the audit path: naming one that is not opens nothing."""
    asked = (folder or FOLDER).child("segment")
    with pytest.raises(NotGranted):
        downscope(MANIFEST, asked, APPEND, now=NOW, deadline=DEADLINE, folder=folder)


@settings(deadline=None, max_examples=100)
@given(manifests(), paths, st.sampled_from(Permission))
def test_a_job_never_reaches_its_own_record_but_to_append(
    manifest: AccessManifest, asked: BlobPath, permission: Permission
) -> None:
    """No manifest that the rules let through gives READ, WRITE or LIST on the audit path, or above it."""
    if not (manifest.audit.covers(asked) or asked.covers(manifest.audit)) or permission is APPEND:
        return
    with pytest.raises(NotGranted):
        spec(asked, permission, manifest)


@settings(deadline=None, max_examples=100)
@given(manifests(), paths, st.sampled_from([READ, WRITE]))
def test_the_advice_of_a_refusal_is_a_manifest_that_grants_it(
    manifest: AccessManifest, asked: BlobPath, permission: Permission
) -> None:
    """Whoever follows the hint gets a manifest without problems, unless the hint says that none can be."""
    try:
        spec(asked, permission, manifest)
        return
    except NotGranted as refusal:
        advice = refusal.hint
    if "the line " not in advice:
        return
    line, _, instead = advice.partition("the line ")[2].partition(" in place of ")
    document = manifest.to_dict()
    kept = [text for text in document["grants"][permission] if text not in instead.split(", ")]
    document["grants"][permission] = kept + tomllib.loads(f"x = [{line}]")["x"]
    del document["accounts"]
    try:
        assert granted(AccessManifest.from_dict(document), asked, permission)
    except ConfigError as error:
        pytest.fail(error.message)
