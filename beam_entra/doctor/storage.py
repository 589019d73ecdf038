"""Does Storage let this identity do exactly what the manifest grants? Audit, grants, what is in the way, the seal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from beam_entra.access.manifest import Grant, Permission, Scoping
from beam_entra.doctor.finding import Finding, blocked, failed, failed_with, good, skipped, warned
from beam_entra.doctor.identity import who
from beam_entra.doctor.visit import Visit
from beam_entra.errors import AuditError, BeamEntraError, BlobNotFound, IdentityError
from beam_entra.paths import BlobPath
from beam_entra.session import seal_job
from beam_entra.session.probing import NOT_TO_BE_DONE, Deed, Prober, a_blob_of
from beam_entra.storage.answers import Answer
from beam_entra.storage.probes import Refusal

__all__ = ["check_audiences", "check_audit", "check_grants", "check_public_access", "check_seal", "check_shared_key"]

_READER, _CONTRIBUTOR = "Storage Blob Data Reader", "Storage Blob Data Contributor"
_ROLES = {Permission.READ: _READER, Permission.WRITE: _CONTRIBUTOR, Permission.DELETE: _CONTRIBUTOR}
_ROLE_MISSING = "AuthorizationPermissionMismatch"
_NOT_CREATED = {_ROLE_MISSING, "BlobNotFound"}  # a refusal to create may be that the segment exists: an append tells
_KEYS_OFF = "KeyBasedAuthenticationNotPermitted"
_FORBIDDEN = 403
_BECAUSE_OF_THE_CONDITION = {409, 412}


def check_audit(visit: Visit) -> Iterator[Finding]:
    """The trail can be written; and what writes it can do nothing else to it."""
    audit, folder = visit.manifest.audit, str(visit.job.folder)
    if why := visit.why_not(f"account {audit.account}"):
        visit.lost["audit"] = "nothing can be recorded"
        yield blocked("audit", str(audit), why)
        return
    try:
        visit.bundle = visit.live.bundle("doctor")
        visit.bundle.settle()
    except (AuditError, IdentityError) as error:
        visit.lost["audit"] = "nothing can be recorded"
        lacking = error.diagnosis.code in _NOT_CREATED
        fix = _role(visit, audit, _CONTRIBUTOR) if lacking else _fix(visit, audit, error, _CONTRIBUTOR)
        yield failed_with("audit", str(audit), error, fix)
        return
    if visit.manifest.scoping is Scoping.BEARER:
        fix = "set an immutability policy that allows appends on the container; it holds for everybody"
        yield warned("audit", folder, 'written; under scoping = "bearer" the job\'s token may also change it', fix)
        return
    if open_to := [deed for deed, found in _tried(visit.prober) if not _proven(deed, found)]:
        found = f"written; but who may append to it may also {_or(open_to)} it"
        yield failed("audit", folder, found, "do not run here: this endpoint does not hold a SAS to its permissions")
        return
    yield good("audit", folder, f"written; who appends to it cannot {_or(NOT_TO_BE_DONE)} it")


def _or(deeds: Iterable[str]) -> str:
    *others, last = deeds
    return f"{', '.join(others)} or {last}" if others else last


def _tried(prober: Prober) -> Iterator[tuple[Deed, Refusal]]:
    for deed in NOT_TO_BE_DONE:
        yield deed, prober.try_on_own_segment(deed)


def _proven(deed: str, found: Refusal) -> bool:
    """The right to create covers Put Blob of a new blob: there Storage may look at the condition first."""
    return found.status == _FORBIDDEN or (deed == "overwrite" and found.status in _BECAUSE_OF_THE_CONDITION)


def check_grants(visit: Visit) -> Iterator[Finding]:
    """Storage lets the identity do what each grant says, under the very SAS that the job would have."""
    for grant in visit.manifest.grants:
        if why := visit.why_not(f"account {grant.path.account}", "audit"):
            yield blocked(grant.permission.value, str(grant.path), why)
            continue
        try:
            yield _granted(visit, grant)
        except BeamEntraError as error:
            if _is_of_no_container(grant.path, error):
                visit.missing.add(_container(grant.path))
            fix = _fix(visit, grant.path, error, _ROLES[grant.permission])
            yield failed_with(grant.permission.value, str(grant.path), error, fix)


def check_audiences(visit: Visit) -> Iterator[Finding]:
    """Entra gives a token for each other service that the manifest grants one for."""
    for audience in visit.manifest.audiences:
        if why := visit.why_not("audit"):
            yield blocked("audience", audience, why)
            continue
        try:
            token = visit.asking.access_token(audience)
        except BeamEntraError as error:
            yield failed_with("audience", audience, error)
        else:
            yield good("audience", audience, "Entra gives a token", expires=f"{token.expires:%Y-%m-%dT%H:%M:%SZ}")


def _granted(visit: Visit, grant: Grant) -> Finding:
    path, check = grant.path, grant.permission.value
    if grant.permission is Permission.WRITE:
        visit.prober.ask_to_write(a_blob_of(path))
        return good(check, str(path), "allowed")
    if grant.permission is Permission.DELETE:
        visit.prober.ask_to_delete(a_blob_of(path))
        return good(check, str(path), "allowed")
    if not path.is_prefix:
        if not visit.prober.is_there(path):
            return warned(check, str(path), "allowed; there is no such blob", "put it there before the job needs it")
        visit.blobs[_container(path)] = path
        return good(check, str(path), "allowed")
    first = visit.prober.first_below(path)
    visit.prober.is_there(first or a_blob_of(path))
    if first is None:
        return good(check, str(path), "allowed, to list and to read; nothing is there")
    visit.blobs[_container(path)] = first
    return good(check, str(path), "allowed, to list and to read")


def check_public_access(visit: Visit) -> Iterator[Finding]:
    """Nobody is let in without a credential."""
    for account, containers in _containers(visit).items():
        if why := visit.why_not(f"account {account}", "audit"):
            yield blocked("public access", account, why)
            continue
        looked_at = [path for path in containers if _container(path) not in visit.missing]
        if not looked_at:
            yield blocked("public access", account, "there is no container to look at")
            continue
        try:
            open_ones = [path.container for path in looked_at if _is_public(visit, path)]
        except BeamEntraError as error:
            yield failed_with("public access", account, error)
            continue
        if not open_ones:
            yield good("public access", account, f"off for {', '.join(path.container for path in looked_at)}")
            continue
        fix = f"switch it off: az storage account update --name {account} --allow-blob-public-access false"
        found = f"anybody may read from {', '.join(open_ones)}"
        written = {grant.path.container for grant in visit.manifest.grants if grant.permission is not Permission.READ}
        harmless = not (written | {visit.manifest.audit.container}) & set(open_ones)
        yield (warned if harmless else failed)("public access", account, found, fix)


def _is_public(visit: Visit, container: BlobPath) -> bool:
    blob = visit.blobs.get(_container(container)) or a_blob_of(container)
    return any(_answers_anybody(visit.prober.look_as_nobody(path)) for path in (container, blob))


def _answers_anybody(found: Refusal | Answer) -> bool:
    """That one blob is not there is said only to those who might read it."""
    return isinstance(found, Answer) or found.code == "BlobNotFound"


def check_shared_key(visit: Visit) -> Iterator[Finding]:
    """The accounts' own keys, which open everything, open nothing."""
    for account, containers in _containers(visit).items():
        if why := visit.why_not(f"account {account}", "audit"):
            yield blocked("shared key", account, why)
            continue
        try:
            found = visit.prober.look_under_a_wrong_key(containers[0])
        except BeamEntraError as error:
            yield failed_with("shared key", account, error)
            continue
        if found.code == _KEYS_OFF:
            yield good("shared key", account, "off")
        else:
            ask = f"az storage account show --name {account} --query allowSharedKeyAccess"
            yield skipped("shared key", account, f"not known; {ask}")


def check_seal(visit: Visit) -> Iterator[Finding]:
    """The trail of this examination can be read back, verified and sealed, as the launcher does at a job's end."""
    outcome, error = ("failed", f"doctor: {', '.join(visit.failures)}") if visit.failures else ("ok", None)
    try:
        visit.asking.close("failed" if visit.failures else "ok")
        visit.seal = seal_job(visit.live, outcome=outcome, error=error)
    except BeamEntraError as problem:
        yield failed_with("seal", "", problem, _fix(visit, visit.manifest.audit, problem, _READER))
        return
    records = sum(visit.seal.record.counts.values())
    yield good("seal", "", f"{records} records read back, verified and sealed", seal_digest=visit.seal.digest)


def _containers(visit: Visit) -> dict[str, list[BlobPath]]:
    """Each account's containers that the manifest names, as paths, in order."""
    found: dict[str, dict[BlobPath, None]] = {}
    for path in (*(grant.path for grant in visit.manifest.grants), visit.manifest.audit):
        found.setdefault(path.account, {})[BlobPath(account=path.account, container=path.container, name="")] = None
    return {account: list(paths) for account, paths in found.items()}


def _container(path: BlobPath) -> str:
    return f"{path.container} of {path.account}"


def _role(visit: Visit, path: BlobPath, role: str) -> str:
    return f"give {who(visit)} the role {role} on container {path.container} of storage account {path.account}"


def _is_of_no_container(path: BlobPath, error: BeamEntraError) -> bool:
    return error.diagnosis.code == "ContainerNotFound" or (isinstance(error, BlobNotFound) and not path.name)


def _fix(visit: Visit, path: BlobPath, error: BeamEntraError, role: str) -> str:
    if error.diagnosis.code == _ROLE_MISSING:
        return _role(visit, path, role)
    if _is_of_no_container(path, error):
        name = f"--account-name {path.account} --name {path.container}"
        return f"create it: az storage container create {name} --auth-mode login"
    return ""
