"""Which SAS may be minted: a pure decision over a manifest, a path, a permission and the time.

Rules, cited by number in the code:

 1. No grant, no SAS. A read grant gives READ and LIST, a write grant WRITE, a delete grant DELETE. APPEND is for
    the job's own folder below the audit path alone, and for who names that folder: the trail. Who seals the trail, and
    who takes up a commit that died, and who is to empty a blob, has a rule of its own: `downscope_audit`,
    `downscope_marker`, `downscope_version`.
 2. READ, WRITE, DELETE and APPEND are for exactly one blob, and the SAS is for that blob.
 3. LIST is for a prefix. Its SAS is for that directory where the account has directories, else for the container,
    which is wider; then our side holds every listing to `guarded_prefix`.
 4. The letters are the fewest that do: "r", "w" (or "c" where the account says so), "d", "l", "ac".
 5. A SAS ends with the first of its own life, the job's deadline and the delegation key; rounding never adds time.

See: https://learn.microsoft.com/rest/api/storageservices/create-user-delegation-sas
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import takewhile
from typing import Literal, Required, TypedDict, Unpack

from beam_entra.access.manifest import AccessManifest, AccountSettings, Grant, Permission
from beam_entra.errors import Diagnosis, IdentityExpired, IdentityUnavailable, NotGranted
from beam_entra.paths import BlobPath

__all__ = [
    "Permission",
    "SasSpec",
    "downscope",
    "downscope_audit",
    "downscope_marker",
    "downscope_version",
    "granted",
    "require_grant",
]

_GRANTED_BY = {
    Permission.READ: Permission.READ,
    Permission.LIST: Permission.READ,
    Permission.WRITE: Permission.WRITE,
    Permission.DELETE: Permission.DELETE,
}
_NEAREST = 3
_MARKER = "_COMMITTING"


@dataclass(frozen=True, slots=True, kw_only=True)
class SasSpec:
    """All that a user delegation SAS says, but for the signature.

    Attributes:
        account: Name of the storage account.
        container: Name of the container.
        name: The blob; the directory without a "/" at the end; "" for a container.
        resource: What `name` is.
        permissions: SAS letters, in the order in which Storage wants them.
        expires: Aware UTC instant, in whole seconds.
        guarded_prefix: What our side must hold a listing to; the blob's own name for a blob.
    """

    account: str
    container: str
    name: str
    resource: Literal["blob", "container", "directory"]
    permissions: str
    expires: datetime
    guarded_prefix: str


class Times(TypedDict, total=False):
    """What decides when a SAS ends; `downscope` says what each is."""

    now: Required[datetime]
    deadline: Required[datetime]
    key_expires: datetime | None


def granted(manifest: AccessManifest, path: BlobPath, permission: Permission) -> Grant | None:
    """The grant that covers an access; None when there is none. A prefix is covered when all below it is."""
    wanted = _GRANTED_BY.get(permission)
    return next((grant for grant in manifest.grants if grant.permission is wanted and grant.path.covers(path)), None)


def require_grant(manifest: AccessManifest, path: BlobPath, permission: Permission) -> Grant:
    """The grant that covers an access, for a prefix one to all below it: nothing is decided about a SAS.

    Raises:
        NotGranted: There is none. It names this very path, and the line that would grant it.
    """
    grant = granted(manifest, path, permission)
    if grant is None:
        raise _not_granted(manifest, path, permission)
    return grant


def downscope(
    manifest: AccessManifest,
    path: BlobPath,
    permission: Permission,
    *,
    now: datetime,
    deadline: datetime,
    key_expires: datetime | None = None,
    folder: BlobPath | None = None,
) -> SasSpec:
    """Decide on a SAS no wider than the grants.

    Args:
        manifest: What the job may do.
        path: One blob; for LIST a prefix.
        permission: What is to be done. APPEND is for the job's own trail alone.
        now: Aware instant.
        deadline: Aware instant at which the job ends.
        key_expires: Aware instant at which the delegation key ends, if there is one yet.
        folder: The job's own folder below the audit path. Without it nothing may be appended to.

    Raises:
        NotGranted: No grant covers it. Nothing was sent.
        IdentityExpired: The deadline has passed.
        IdentityUnavailable: The key has expired; a new one can be acquired.
    """
    own = folder is not None and manifest.audit.covers(folder) and folder.covers(path)
    if not (permission is Permission.APPEND and own):
        require_grant(manifest, path, permission)  # rule 1
    return _spec(manifest, path, permission, now=now, deadline=deadline, key_expires=key_expires)


def downscope_audit(
    manifest: AccessManifest, path: BlobPath, permission: Permission, **times: Unpack[Times]
) -> SasSpec:
    """Decide on a SAS for who seals the trail: READ and LIST below the audit path, and nothing else.

    Arguments and errors are those of `downscope`.
    """
    if permission not in (Permission.READ, Permission.LIST) or not manifest.audit.covers(path):
        cause = f"the audit of pipeline {manifest.pipeline} is sealed without {permission} on {path}"
        hint = f"only read and list are given, below {manifest.audit}"
        raise NotGranted(cause, _diagnosis(manifest, path, permission, hint))
    return _spec(manifest, path, permission, **times)


def downscope_marker(
    manifest: AccessManifest, path: BlobPath, permission: Permission, **times: Unpack[Times]
) -> SasSpec:
    """Decide on a SAS for who takes up a commit that died: READ of the marker that it left, where the job may write.

    Arguments and errors are those of `downscope`.
    """
    marker = path.name.rpartition("/")[2] == _MARKER
    if permission is not Permission.READ or not marker or granted(manifest, path, Permission.WRITE) is None:
        cause = f"a commit of pipeline {manifest.pipeline} is taken up without {permission} on {path}"
        hint = f"only read is given, of the {_MARKER} below what the job may write"
        raise NotGranted(cause, _diagnosis(manifest, path, permission, hint))
    return _spec(manifest, path, permission, **times)


def downscope_version(
    manifest: AccessManifest, path: BlobPath, permission: Permission, **times: Unpack[Times]
) -> SasSpec:
    """Decide on a SAS for who asks which version of a blob there is to replace: READ, where the job may write.

    Arguments and errors are those of `downscope`.
    """
    if permission is not Permission.READ or granted(manifest, path, Permission.WRITE) is None:
        cause = f"pipeline {manifest.pipeline} replaces a blob without {permission} on {path}"
        hint = "only read is given, of one blob that the job may write"
        raise NotGranted(cause, _diagnosis(manifest, path, permission, hint))
    return _spec(manifest, path, permission, **times)


def _spec(
    manifest: AccessManifest, path: BlobPath, permission: Permission, **times: Unpack[Times]
) -> SasSpec:
    expires = _ends(manifest, **times)
    if path.is_prefix != (permission is Permission.LIST):  # rules 2 and 3
        cause, hint = (
            (f"{path} is a prefix, and {permission} is for one blob", "name the blob")
            if path.is_prefix
            else (f"{path} is one blob, and {permission} is for a prefix", 'end the path in "/"')
        )
        raise NotGranted(cause, _diagnosis(manifest, path, permission, hint))
    account = manifest.accounts[path.account]
    resource = _resource(path, account)
    return SasSpec(
        account=path.account,
        container=path.container,
        name="" if resource == "container" else path.name.removesuffix("/"),
        resource=resource,
        permissions=_letters(permission, account),
        expires=expires,
        guarded_prefix=path.name,
    )


def _resource(path: BlobPath, account: AccountSettings) -> Literal["blob", "container", "directory"]:
    if not path.is_prefix:
        return "blob"
    has_directories = account.hierarchical and not account.emulator
    return "directory" if has_directories and path.name else "container"


def _letters(permission: Permission, account: AccountSettings) -> str:  # rule 4
    """The letters. Azurite lets no one stage blocks with "c"; there a writer has "w" whatever the account says."""
    write = "c" if account.create_only and not account.emulator else "w"
    return {
        Permission.READ: "r",
        Permission.WRITE: write,
        Permission.DELETE: "d",
        Permission.LIST: "l",
        Permission.APPEND: "ac",
    }[permission]


def _ends(
    manifest: AccessManifest, *, now: datetime, deadline: datetime, key_expires: datetime | None = None
) -> datetime:
    """When a SAS ends: rule 5."""
    if any(instant is not None and instant.utcoffset() is None for instant in (now, deadline, key_expires)):
        raise ValueError("now, deadline and key_expires must be aware")
    if _floored(deadline) <= now:
        raise IdentityExpired(
            f"the deadline of pipeline {manifest.pipeline} has passed: {_floored(deadline):%Y-%m-%dT%H:%M:%SZ}",
            Diagnosis(
                identity=_identity(manifest),
                hint="launch the job again; if it needs longer, raise job in [lifetime] of the access manifest",
            ),
        )
    if key_expires is not None and _floored(key_expires) <= now:
        raise IdentityUnavailable(
            f"the delegation key ended at {_floored(key_expires):%Y-%m-%dT%H:%M:%SZ}",
            Diagnosis(identity=_identity(manifest), hint="acquire a new delegation key, then ask again"),
        )
    return _floored(min(now + manifest.lifetime.token, deadline, key_expires or deadline))


def _floored(instant: datetime) -> datetime:
    return instant.astimezone(UTC).replace(microsecond=0)


def _not_granted(manifest: AccessManifest, path: BlobPath, permission: Permission) -> NotGranted:
    kind = _GRANTED_BY.get(permission)
    if kind is None:
        cause = f"to append {path} is for the trail of its own job of pipeline {manifest.pipeline} alone"
        hint = f"nothing but the trail itself appends, and only in its job's folder below {manifest.audit}"
    else:
        nearest = _nearest(manifest, path, kind)
        cause = f"pipeline {manifest.pipeline} has no grant to {permission} {path}; {nearest}"
        hint = _missing_line(manifest, path, kind)
    return NotGranted(cause, _diagnosis(manifest, path, permission, hint))


def _missing_line(manifest: AccessManifest, path: BlobPath, kind: Permission) -> str:
    """The line that would grant it, if the manifest could hold one."""
    if manifest.audit.covers(path) or path.covers(manifest.audit):
        return f"nothing can be granted that overlaps the audit path {manifest.audit}; use another path"
    if re.search(r"[*?[]", path.name):
        return "a grant cannot name a blob with a glob character; grant its folder, or rename the blob"
    line = json.dumps(str(path), ensure_ascii=False)  # a JSON string is a TOML string
    covered = [str(grant.path) for grant in manifest.grants if grant.permission is kind and path.covers(grant.path)]
    instead = f" in place of {', '.join(covered)}" if covered else ""
    return f"if it should, add to {kind} = [...] in table [grants] of the access manifest the line {line},{instead}"


def _nearest(manifest: AccessManifest, path: BlobPath, kind: Permission) -> str:
    def likeness(grant: Grant) -> tuple[bool, bool, int]:
        there = grant.path
        in_account = there.account == path.account
        in_container = in_account and there.container == path.container
        pairs = zip(there.name.split("/"), path.name.split("/"), strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return in_container, in_account, shared if in_container else 0

    of_kind = [grant for grant in manifest.grants if grant.permission is kind]
    nearest = sorted(of_kind, key=likeness, reverse=True)[:_NEAREST]
    return f"nearest {kind} grants: {', '.join(str(g.path) for g in nearest)}" if nearest else f"it has no {kind} grant"


def _diagnosis(manifest: AccessManifest, path: BlobPath, permission: Permission, hint: str) -> Diagnosis:
    return Diagnosis(tried=f"{permission} {path}", identity=_identity(manifest), hint=hint)


def _identity(manifest: AccessManifest) -> str:
    who = manifest.identity
    return f"pipeline {manifest.pipeline} in {manifest.environment}, client {who.client}, tenant {who.tenant}"
