"""What can go wrong, and what to do about it.

    BeamEntraError                    message, hint, diagnostics(), retryable
    ├ ConfigError (ValueError)        the manifest, a path or a flag; before anything was sent
    ├ PreflightFailed                 `--preflight` found that the job could not run; nothing has run
    ├ WorkerLost                      a worker process died, and the runner starts no other; retryable
    ├ IdentityError
    │ ├ IdentityUnavailable           Entra or the credential's source did not answer; retryable
    │ ├ IdentityRejected              Entra said no: wrong tenant, client, secret, assertion, ...
    │ └ IdentityExpired               the job's deadline has passed
    ├ AccessError (PermissionError)
    │ ├ NotGranted                    our refusal, before the network: nothing was sent
    │ └ AccessDenied                  Storage's refusal; carries its request id
    ├ StorageError (OSError)
    │ ├ BlobNotFound (FileNotFoundError)
    │ ├ BlobExists (FileExistsError)
    │ ├ BlobChanged                   the ETag is no longer the one seen at match time
    │ └ Throttled                     503 or 429 after every retry; retryable
    ├ FormatError (ValueError)        a record, or a compressed stream, that cannot be decoded
    └ AuditError
      ├ AuditUnavailable              a record could not be made durable, so the access failed
      └ TrailBroken                   `verify` found the first bad segment and line

Every error carries a `Diagnosis`: what was tried, as whom, where, the service's request id, the likely fix. An
error is made of two positional arguments, message and diagnosis, so that it survives pickling and Beam's habit of
building a copy with the step's name added to the message. None of the fields may ever hold a secret. What is printed of
them holds nothing that a terminal would act on: a message may quote a record, or a name that somebody else has given.
"""

from __future__ import annotations

import dataclasses
import errno
import re
from dataclasses import dataclass
from typing import ClassVar

__all__ = [
    "AccessDenied",
    "AccessError",
    "AuditError",
    "AuditUnavailable",
    "BeamEntraError",
    "BlobChanged",
    "BlobExists",
    "BlobNotFound",
    "ConfigError",
    "Diagnosis",
    "FormatError",
    "IdentityError",
    "IdentityExpired",
    "IdentityRejected",
    "IdentityUnavailable",
    "NotGranted",
    "PreflightFailed",
    "StorageError",
    "Throttled",
    "TrailBroken",
    "WorkerLost",
    "find_rendered_error",
    "printable",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The facts around an error. Every field is safe to log.

    Attributes:
        tried: The operation, as a phrase that follows "tried to": `read abfss://raw@lake.../a.jsonl`.
        identity: As whom: pipeline, client, tenant.
        status: HTTP status of the answer, if there was one.
        code: The service's own error code: `AADSTS700213`, `AuthorizationPermissionMismatch`.
        request_id: Storage's `x-ms-request-id`, or Entra's trace id.
        client_request_id: The `x-ms-client-request-id` that was sent.
        correlation_id: Entra's correlation id: with the trace id it finds the attempt in the sign-in log.
        attempts: How often it was tried; 0 when nothing was sent.
        retry_after_s: Seconds to wait, as the service asked.
        hint: The likely fix, as an instruction.
    """

    tried: str = ""
    identity: str = ""
    status: int | None = None
    code: str = ""
    request_id: str = ""
    client_request_id: str = ""
    correlation_id: str = ""
    attempts: int = 0
    retry_after_s: float | None = None
    hint: str = ""


_NOTHING_KNOWN = Diagnosis()


def printable(text: str) -> str:
    """Text on one line in which nothing is left that a terminal would act on: such characters are escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class BeamEntraError(Exception):
    """Base of every error that beam_entra raises on purpose."""

    retryable: ClassVar[bool] = False

    def __init__(self, message: str, diagnosis: Diagnosis = _NOTHING_KNOWN) -> None:
        super().__init__(message, diagnosis)

    @property
    def message(self) -> str:
        """One sentence: what is wrong."""
        return str(self.args[0])

    @property
    def diagnosis(self) -> Diagnosis:
        """The facts around it."""
        diagnosis: Diagnosis = self.args[1]
        return diagnosis

    @property
    def hint(self) -> str:
        """The likely fix; empty when there is none to give."""
        return self.diagnosis.hint

    def diagnostics(self) -> dict[str, str | int | float]:
        """The known facts by name, for a structured log."""
        facts = dataclasses.asdict(self.diagnosis)
        return {"error": type(self).__name__, "message": self.message} | {k: v for k, v in facts.items() if v}

    def explained(self, **facts: object) -> BeamEntraError:
        """The same error with facts added that only the caller knows; what is already known stays."""
        missing = {name: value for name, value in facts.items() if not getattr(self.diagnosis, name)}
        return type(self)(self.message, dataclasses.replace(self.diagnosis, **missing))  # type: ignore[arg-type]  # names are checked by replace()

    def __str__(self) -> str:
        known = self.diagnosis
        lines = [printable(line) for line in self.message.split("\n")]
        service = ", ".join(
            part
            for part in (
                f"HTTP {known.status}" if known.status else "",
                known.code,
                f"request id {known.request_id}" if known.request_id else "",
                f"client request id {known.client_request_id}" if known.client_request_id else "",
                f"correlation id {known.correlation_id}" if known.correlation_id else "",
                f"{known.attempts} attempts" if known.attempts > 1 else "",
            )
            if part
        )
        for label, text in (
            ("tried to", known.tried),
            ("as", known.identity),
            ("answer", service),
            ("fix", known.hint),
        ):
            if text:
                lines.append(f"    {label + ':':<9} {printable(text)}")
        return "\n".join(lines)


class ConfigError(BeamEntraError, ValueError):
    """The manifest, a path or a flag is wrong. Nothing was sent."""


class PreflightFailed(BeamEntraError):
    """The checks that `--preflight` asks for say that the job could not run. It was not launched."""


class WorkerLost(BeamEntraError):
    """A worker process died, and the runner starts no other in its place. The job is to be launched again."""

    retryable = True


class IdentityError(BeamEntraError):
    """The job cannot prove who it is."""


class IdentityUnavailable(IdentityError):
    """The token endpoint, or the source of the credential, did not answer usefully."""

    retryable = True


class IdentityRejected(IdentityError):
    """Entra refused the credential. Trying again will not help."""


class IdentityExpired(IdentityError):
    """The job's deadline has passed; every access is refused from then on."""


class AccessError(BeamEntraError, PermissionError):
    """An access was refused."""

    _ERRNO: ClassVar[int] = errno.EACCES

    def __init__(self, message: str, diagnosis: Diagnosis = _NOTHING_KNOWN) -> None:
        super().__init__(message, diagnosis)
        self.errno, self.strerror = self._ERRNO, message  # OSError has taken the two arguments for these two


class NotGranted(AccessError):
    """No grant of the manifest covers the access. Nothing was sent."""


class AccessDenied(AccessError):
    """Storage refused a credential that the manifest allowed."""


class StorageError(BeamEntraError, OSError):
    """Storage answered with an error that is not about permission."""

    _ERRNO: ClassVar[int] = errno.EIO

    def __init__(self, message: str, diagnosis: Diagnosis = _NOTHING_KNOWN) -> None:
        super().__init__(message, diagnosis)
        self.errno, self.strerror = self._ERRNO, message  # OSError has taken the two arguments for these two


class BlobNotFound(StorageError, FileNotFoundError):
    """The blob or its container does not exist, or a pattern matched nothing."""

    _ERRNO = errno.ENOENT


class BlobExists(StorageError, FileExistsError):
    """The blob to be committed exists and is somebody else's."""

    _ERRNO = errno.EEXIST


class BlobChanged(StorageError):
    """The blob is no longer the one that was matched; its ETag differs."""


class Throttled(StorageError):
    """Storage asked to slow down more often than we were ready to try."""

    retryable = True


class FormatError(BeamEntraError, ValueError):
    """A record or a compressed stream cannot be decoded."""


class AuditError(BeamEntraError):
    """Something about the audit trail."""


class AuditUnavailable(AuditError):
    """A record could not be made durable, so the access it stands for has failed."""

    retryable = True


class TrailBroken(AuditError):
    """The trail does not verify. The message names the first bad segment and line."""


_RENDERED = re.compile(r"^(?:beam_entra\.errors\.)(\w+): (.*(?:\n {4}(?:tried to|as|answer|fix): .*)*)", re.MULTILINE)


def find_rendered_error(text: str) -> BeamEntraError | None:
    """Find the last of our errors in a runner's text, such as the traceback that a worker process sent.

    Runners carry a worker's error to the launcher as text. This gives it back as an error of the same type whose
    message is what the worker's error printed.

    Returns:
        None when the text holds none of our errors.
    """
    found = None
    for name, message in _RENDERED.findall(text):
        kind = globals().get(name)
        if isinstance(kind, type) and issubclass(kind, BeamEntraError):
            found = kind(message)
    return found
