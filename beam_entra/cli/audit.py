"""`beam-entra audit`: verify, show and seal audit trails."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import click
from rich.console import Console
from rich.text import Text

from beam_entra.audit.record import SEAL_NAME
from beam_entra.audit.show import Story, show_blob, show_trail
from beam_entra.audit.store import FolderTrail, TrailReader, find_trails
from beam_entra.audit.verify import RunningSummary, TrailSummary, verify, verify_running
from beam_entra.errors import BeamEntraError, TrailBroken, printable
from beam_entra.paths import BlobPattern

__all__ = ["audit"]

_MANIFEST = click.option(
    "--access_manifest",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Access manifest of the job; needed for an abfss:// PATH.",
)
_ENDPOINTS = click.option(
    "--access_endpoints",
    "--endpoints",
    "endpoints",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    envvar="BEAM_ENTRA_ENDPOINTS",
    show_envvar=True,
    help="Where the services are on this machine, for a local set-up.",
)
_UNKNOWN = "how the job ended is not known"


@click.group()
def audit() -> None:
    """Verify, show and seal the record of what jobs did, and as whom.

    PATH is the folder of one job's trail or a folder of several, local or abfss://.
    """


@audit.command("verify")
@click.argument("path")
@click.option(
    "--seal-digest", metavar="HEX", help="Digest of a seal, final or interim, as it was kept elsewhere. For one trail."
)
@click.option("--running", is_flag=True, help="A job without a seal is known to run still: check it as far as it goes.")
@_MANIFEST
@_ENDPOINTS
def verify_command(
    path: str, seal_digest: str | None, running: bool, access_manifest: Path | None, endpoints: Path | None
) -> None:
    """Check that trails are whole and unchanged.

    Exits 0 when all are. Otherwise exits 1 and names the first bad segment and line of each that is not.

    Of a trail without a seal only what its interim seals hold is known to be whole: exit code 1, since its job may have
    been killed, and the end of its trail cut off. With --running it is 0.
    """
    trails = _open(path, access_manifest, endpoints)
    if seal_digest is not None and len(trails) > 1:
        raise click.UsageError(f"--seal-digest is for one trail; {path} holds {len(trails)}")
    out, err = _console(), _console(stderr=True)
    broken = 0
    for folder, reader in trails.items():
        try:
            summary: TrailSummary | RunningSummary
            if running and not (SEAL_NAME in reader.names() and reader.read(SEAL_NAME)):
                summary = verify_running(reader, seal_digest=seal_digest)
            else:
                summary = verify(reader, seal_digest=seal_digest)
        except TrailBroken as error:
            broken += 1
            err.print(_broken(folder, error), soft_wrap=True)
        else:
            _report(summary, out, in_detail=not folder)
    if broken:
        raise click.exceptions.Exit(1)


@audit.command("show")
@click.argument("path")
@click.option("--blob", metavar="PATTERN", help="Only who touched this blob, and under which SAS, key and token.")
@_MANIFEST
@_ENDPOINTS
def show_command(path: str, blob: str | None, access_manifest: Path | None, endpoints: Path | None) -> None:
    """Print trails for people to read.

    A trail that is not sealed yet is shown as it is. One that does not verify is shown as far as it can be read, and
    the exit code is 1.
    """
    pattern = BlobPattern.parse(blob) if blob is not None else None
    out, err = _console(), _console(stderr=True)
    touched = broken = False
    for folder, reader in _open(path, access_manifest, endpoints).items():
        story = Story.read(reader)
        if pattern is None:
            show_trail(story, out)
            out.print()
        else:
            touched |= show_blob(story, out, pattern)
        if story.broken:
            broken = True
            err.print(_broken(folder, story.broken), soft_wrap=True)
    if pattern is not None and not touched:
        out.print(Text(f"no record of {pattern}"), soft_wrap=True)
    if broken:
        raise click.exceptions.Exit(1)


@audit.command("seal")
@click.argument("path")
@click.option("--interim", is_flag=True, help="Seal what there is of jobs that are still running; from cron, say.")
@_MANIFEST
@_ENDPOINTS
def seal_command(path: str, interim: bool, access_manifest: Path | None, endpoints: Path | None) -> None:
    """Seal the trail of a job whose launcher was killed. Prints the seal's digest.

    PATH is the job's folder, abfss://. Be sure that none of its workers is at work any more. The seal's outcome is
    "late", which says that nobody knows how the job ended; standard error tells what was sealed. A seal that the
    launcher had begun, and was killed before it ended it, is ended, and keeps its outcome.

    With --interim, PATH may be the folder of several jobs, too. Each that has no seal gets an interim seal, if
    anything was added since the last one: what stands can no longer be changed unnoticed, and the job goes on. Prints
    each job and the digest. A launcher does this by itself while it waits for its job. A job that cannot be sealed, or
    whose final seal was begun and not ended, is named, with exit code 1.
    """
    if "://" not in path:
        raise click.UsageError("PATH must be the job's folder in Storage: a copy of a trail is not sealed")
    if access_manifest is None:
        raise click.UsageError("a remote PATH needs --access_manifest: whose credentials should seal it?")
    if interim:
        _seal_interim(path, access_manifest, endpoints)
        return
    from beam_entra.session import seal_late  # noqa: PLC0415  see _open

    seal = seal_late(path, access_manifest, endpoints)
    told, counts = seal.record, seal.record.counts
    opened = counts.get("bundle_opened", 0)
    unclosed = opened - counts.get("bundle_closed", 0)
    ended = f"ended {told.outcome}, as the seal says that its launcher had begun"
    _console(stderr=True).print(
        Text.assemble(
            ("sealed late", "bold yellow"),
            f"  {told.job}  as it stood at {told.time:%Y-%m-%dT%H:%M:%SZ}; ",
            f"{_UNKNOWN if told.outcome == 'late' else ended}; ",
            f"{_many(sum(counts.values()), 'record')} in {_many(len(told.segments), 'segment')}, ",
            f"{_many(opened, 'bundle')}" + (f", {unclosed} ended without closing" if unclosed else ""),
        ),
        soft_wrap=True,
    )
    click.echo(seal.digest)


def _seal_interim(path: str, access_manifest: Path, endpoints: Path | None) -> None:
    from beam_entra.session import seal_running  # noqa: PLC0415  see _open

    sealed = seal_running(path, access_manifest, endpoints)
    err = _console(stderr=True)
    for job, outcome in sealed.items():
        if isinstance(outcome, BeamEntraError):
            err.print(Text.assemble(("NOT SEALED", "bold red"), f"  {job}: {outcome}"), soft_wrap=True)
        else:
            click.echo(f"{job} {outcome.last}")
    if any(isinstance(outcome, BeamEntraError) for outcome in sealed.values()):
        raise click.exceptions.Exit(1)


def _open(path: str, access_manifest: Path | None, endpoints: Path | None) -> Mapping[str, TrailReader]:
    """The trails at a path; ends the command when there is none."""
    reader: TrailReader
    if "://" in path:
        if access_manifest is None:
            raise click.UsageError("a remote PATH needs --access_manifest: whose credentials should read it?")
        from beam_entra.session import open_trail  # noqa: PLC0415  a local folder needs no Azure libraries

        reader = open_trail(path, access_manifest, endpoints)
    else:
        reader = FolderTrail(path)
    trails = find_trails(reader)
    if not trails:
        _fail(f"no audit trail at {path}")
    return trails


def _report(summary: TrailSummary | RunningSummary, out: Console, *, in_detail: bool) -> None:
    """One line for a trail, and with `in_detail` one for each segment and the seal's digest."""
    if isinstance(summary, TrailSummary):
        _report_sealed(summary, out)
    else:
        _report_running(summary, out)
    if not in_detail:
        return
    width = len(str(max((segment.sealed.records for segment in summary.segments), default=0)))
    for segment in summary.segments:
        how = "ended without closing" if isinstance(summary, TrailSummary) else "not closed"
        unclosed = f", {len(segment.open_bundles)} {how}" if segment.open_bundles else ""
        where = (
            f"{printable(segment.opened.host)} pid {segment.opened.pid}"
            if segment.opened
            else "died before its first record"
        )
        text = f"    {segment.sealed.segment}  {segment.sealed.records:>{width}} records  {where}{unclosed}"
        out.print(Text(text), soft_wrap=True)
    if summary.held_by not in ("", SEAL_NAME):
        says = f"    the digest is that of {summary.held_by}: what came later it does not hold"
        out.print(Text(says), soft_wrap=True)
    if isinstance(summary, TrailSummary):
        out.print(Text(f"    seal digest {summary.seal_digest}", "dim"), soft_wrap=True)
    elif summary.interim_digest:
        out.print(Text(f"    interim seal digest {summary.interim_digest}", "dim"), soft_wrap=True)


def _report_running(summary: RunningSummary, out: Console) -> None:
    after = summary.records - summary.sealed_records
    held = "no interim seal yet"
    if summary.interim_time is not None:
        held = f"{_many(summary.sealed_records, 'record')} held by interim seals, the last of "
        held += f"{summary.interim_time:%Y-%m-%d %H:%M:%S} UTC"
    out.print(
        Text.assemble(
            ("running", "bold yellow"),
            f"   {summary.job}  {held}; {_many(after, 'record')} after it, which no seal holds yet, ",
            f"in {_many(len(summary.segments), 'segment')}",
        ),
        soft_wrap=True,
    )


def _report_sealed(summary: TrailSummary, out: Console) -> None:
    unclosed = f", {summary.open_bundles} ended without closing" if summary.open_bundles else ""
    wider = "; scoped by bearer, wider than SAS" if summary.scoping == "bearer" else ""
    seal = summary.seal
    late = f" (sealed at {seal.time:%Y-%m-%dT%H:%M:%SZ}, not by its launcher; {_UNKNOWN})"
    out.print(
        Text.assemble(
            ("verified", "bold green"),
            f"  {summary.job}  ended {seal.outcome}{late if seal.outcome == 'late' else ''}; ",
            f"{_many(summary.records, 'record')} in {_many(len(summary.segments), 'segment')}, ",
            f"{_many(summary.bundles, 'bundle')}{unclosed}{wider}",
        ),
        soft_wrap=True,
    )


def _broken(folder: str, error: TrailBroken) -> Text:
    """Which trail it is, if there are several, and why; folders have whatever names somebody gave them."""
    return Text.assemble(("BROKEN", "bold red"), f"  {printable(folder)}{folder and ': '}{error}")


def _console(*, stderr: bool = False) -> Console:
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def _fail(message: str) -> NoReturn:
    _console(stderr=True).print(Text.assemble(("error", "bold red"), f"  {message}"), soft_wrap=True)
    raise click.exceptions.Exit(1)


def _many(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
