"""The error tree: every error survives what runners do to errors, and says what to do next."""

from __future__ import annotations

import copy
import errno
import pickle
import traceback

import pytest

from beam_entra import errors
from beam_entra.errors import (
    AccessDenied,
    AccessError,
    AuditError,
    AuditUnavailable,
    BeamEntraError,
    BlobChanged,
    BlobExists,
    BlobNotFound,
    ConfigError,
    Diagnosis,
    FormatError,
    IdentityError,
    IdentityExpired,
    IdentityRejected,
    IdentityUnavailable,
    NotGranted,
    StorageError,
    Throttled,
    TrailBroken,
    WorkerLost,
    find_rendered_error,
    printable,
)

KINDS = sorted(
    (kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, BeamEntraError)),
    key=lambda kind: kind.__name__,
)
FULL = Diagnosis(
    tried="read abfss://raw@contosolake.dfs.core.windows.net/a.jsonl",
    identity="orders (prod), client 0b8e22f4, tenant contoso.onmicrosoft.com",
    status=403,
    code="AuthorizationPermissionMismatch",
    request_id="4f6e2a10-001e-0001-0000-000000000000",
    client_request_id="b7c9-0",
    attempts=3,
    retry_after_s=1.5,
    hint="give the identity the role Storage Blob Data Reader",
)


def every_kind(test):
    """Run a test for each class of the tree."""
    return pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)(test)


def test_the_tree_is_complete():
    """The classes that the module exports are the tree, and each stands in the tree that its docstring draws."""
    assert {kind.__name__ for kind in KINDS} == set(errors.__all__) - {"Diagnosis", "find_rendered_error", "printable"}
    for kind in KINDS:
        assert kind.__name__ in (errors.__doc__ or "")


@every_kind
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_survives_pickling(kind, protocol):
    """A worker's error arrives at the launcher with its message and every fact."""
    error = kind("it went wrong", FULL)
    arrived = pickle.loads(pickle.dumps(error, protocol))  # noqa: S301 - made in the line above
    assert type(arrived) is kind
    assert (arrived.message, arrived.diagnosis, str(arrived)) == ("it went wrong", FULL, str(error))


@every_kind
@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy], ids=["copy", "deepcopy"])
def test_an_error_survives_copying(kind, way):
    """A copy says the same."""
    copied = way(kind("it went wrong", FULL))
    assert (type(copied), copied.message, copied.diagnosis) == (kind, "it went wrong", FULL)


@every_kind
def test_an_error_survives_beams_step_name(kind):
    """Beam builds a copy of an error with the step's name added to its first argument."""
    error = kind("it went wrong", FULL)
    told = type(error)(error.args[0] + " [while running 'Read/Fetch']", *error.args[1:])
    assert told.message == "it went wrong [while running 'Read/Fetch']"
    assert told.diagnosis == FULL
    assert FULL.hint in str(told)


@every_kind
def test_an_error_needs_no_diagnosis(kind):
    """An error without facts prints its message and nothing else."""
    error = kind("it went wrong")
    assert str(error) == "it went wrong"
    assert error.hint == ""
    assert error.diagnostics() == {"error": kind.__name__, "message": "it went wrong"}


def test_an_error_prints_every_fact_that_helps():
    """What was tried, as whom, the service's answer with both ids, and the fix: each on a line of its own."""
    assert str(AccessDenied("Storage refused the access", FULL)).splitlines() == [
        "Storage refused the access",
        "    tried to: read abfss://raw@contosolake.dfs.core.windows.net/a.jsonl",
        "    as:       orders (prod), client 0b8e22f4, tenant contoso.onmicrosoft.com",
        f"    answer:   HTTP 403, {FULL.code}, request id {FULL.request_id}, client request id b7c9-0, 3 attempts",
        "    fix:      give the identity the role Storage Blob Data Reader",
    ]


@every_kind
def test_an_error_gives_a_terminal_nothing_to_act_on(kind):
    """Messages may quote a record, facts a header: neither clears the screen, moves the cursor or forges a line."""
    hostile = "no\x1b[2J\r\x9b1A\u202e\ud800"
    error = kind(f"first {hostile}\nsecond", Diagnosis(tried=hostile, code=f"{hostile}\nfix: none", hint=hostile))
    first, second, tried, answer, fix = str(error).split("\n")
    escaped = r"no\x1b[2J\r\x9b1A\u202e\ud800"
    assert (first, second) == (f"first {escaped}", "second")
    assert tried == f"    tried to: {escaped}"
    assert answer == rf"    answer:   {escaped}\nfix: none"
    assert fix == f"    fix:      {escaped}"
    assert error.message.startswith(f"first {hostile}"), "what it is made of stays as it was"


def test_what_people_write_stays_as_it_is():
    """Only what a terminal acts on is escaped."""
    assert printable("naïve 世界 - [bold]") == "naïve 世界 - [bold]"
    assert printable("a\nb\tc\x7f") == r"a\nb\tc\x7f"


def test_diagnostics_are_flat_facts_for_a_log():
    """A structured log gets each known fact by its name, and no empty ones."""
    facts = AccessDenied("no", Diagnosis(status=403, request_id="r-1")).diagnostics()
    assert facts == {"error": "AccessDenied", "message": "no", "status": 403, "request_id": "r-1"}


def test_explaining_adds_only_what_is_missing():
    """The caller's facts fill gaps; what the place of the error knew stays, and so does the type."""
    error = AccessDenied("no", Diagnosis(status=403, hint="the near fix"))
    told = error.explained(identity="orders", hint="a far fix")
    assert type(told) is AccessDenied
    assert told.diagnosis == Diagnosis(status=403, hint="the near fix", identity="orders")
    assert error.diagnosis.identity == ""


@pytest.mark.parametrize(
    ("kind", "bases"),
    [
        (ConfigError, (ValueError,)),
        (FormatError, (ValueError,)),
        (IdentityUnavailable, (IdentityError,)),
        (IdentityRejected, (IdentityError,)),
        (IdentityExpired, (IdentityError,)),
        (NotGranted, (AccessError, PermissionError, OSError)),
        (AccessDenied, (AccessError, PermissionError, OSError)),
        (StorageError, (OSError,)),
        (BlobNotFound, (StorageError, FileNotFoundError)),
        (BlobExists, (StorageError, FileExistsError)),
        (BlobChanged, (StorageError,)),
        (Throttled, (StorageError,)),
        (AuditUnavailable, (AuditError,)),
        (TrailBroken, (AuditError,)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_class_relations(kind, bases):
    """Code that knows only Python's own errors handles ours."""
    for base in (*bases, BeamEntraError):
        assert issubclass(kind, base)


def test_only_what_may_pass_by_itself_is_retryable():
    """A refusal is not retried; no answer, a busy service, an unwritten record and a lost worker may be."""
    assert {kind for kind in KINDS if kind.retryable} == {IdentityUnavailable, Throttled, AuditUnavailable, WorkerLost}


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        (BlobNotFound, errno.ENOENT),
        (BlobExists, errno.EEXIST),
        (NotGranted, errno.EACCES),
        (AccessDenied, errno.EACCES),
        (StorageError, errno.EIO),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_os_error_has_an_errno(kind, number):
    """Code that looks at `errno` and `strerror`, as libraries that open files do, finds what it expects there."""
    error = pickle.loads(pickle.dumps(kind("it went wrong", FULL)))  # noqa: S301 - made in this line
    assert (error.errno, error.strerror) == (number, "it went wrong")


# ---------------------------------------------------------------- errors that come as text


def rendered(error: BeamEntraError) -> str:
    """The traceback of an error, as a worker process sends it."""
    try:
        raise error
    except BeamEntraError as raised:
        return "".join(traceback.format_exception(raised))


@every_kind
def test_a_rendered_error_is_found_again(kind):
    """Out of a runner's text comes an error of the worker's type that prints what the worker's error printed."""
    error = kind("it went wrong [while running 'Read/Fetch']", FULL)
    text = f"Error received from SDK harness for instruction 7: {rendered(error)}\nworker 1 is gone"
    found = find_rendered_error(str(RuntimeError(text)))
    assert type(found) is kind
    assert str(found) == str(error)


def test_the_last_of_several_tracebacks_counts():
    """Of an error and what it led to, the latter is what ended the job."""
    text = "\n\nDuring handling of the above exception, another exception occurred:\n\n".join(
        [rendered(BlobNotFound("the blob does not exist", FULL)), rendered(AuditUnavailable("the trail is gone", FULL))]
    )
    found = find_rendered_error(text)
    assert isinstance(found, AuditUnavailable)
    assert found.message.startswith("the trail is gone")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "RuntimeError: something else",
        "beam_entra.errors.NoSuchError: made up",
        "beam_entra.errors.Diagnosis: not an error",
        "the log said beam_entra.errors.NotGranted: in the middle of a line",
    ],
)
def test_text_without_our_errors_gives_none(text):
    """What only looks like one of our errors is not taken for one."""
    assert find_rendered_error(text) is None
