"""`beam-entra doctor`: why a job cannot get in, line by line, before it is launched."""

from __future__ import annotations

import json
from pathlib import Path

import click

__all__ = ["doctor"]


@click.command(
    short_help="Say whether a job could run, and what to mend.", context_settings={"ignore_unknown_options": True}
)
@click.option(
    "--access_manifest",
    required=True,
    type=click.Path(path_type=Path),
    help="Access manifest of the job.",
)
@click.option(
    "--access_endpoints",
    "--endpoints",
    "endpoints",
    type=click.Path(path_type=Path),
    envvar="BEAM_ENTRA_ENDPOINTS",
    show_envvar=True,
    help="Where the services are on this machine, for a local set-up.",
)
@click.option("--json", "as_data", is_flag=True, help="One JSON object at the end, in place of the lines.")
@click.argument("others", nargs=-1, type=click.UNPROCESSED, metavar="[FLAGS OF THE JOB]...")
@click.pass_context
def doctor(
    context: click.Context, access_manifest: Path, endpoints: Path | None, as_data: bool, others: tuple[str, ...]
) -> None:
    """Say whether a job could run with this manifest, here and now, and what to mend.

    Takes the flags that the job would be launched with; those of its runner and its own are not looked at. Run it where
    the workers run. Reads no data, and writes nothing but an audit trail of its own. Exits 0 when the job could run,
    else 1.
    """
    from rich.console import Console  # noqa: PLC0415  # `--help` starts without it

    from beam_entra.access import AccessManifest, Endpoints  # noqa: PLC0415
    from beam_entra.doctor import Examination, Printer, as_json  # noqa: PLC0415

    def load() -> AccessManifest:
        manifest = AccessManifest.load(access_manifest)
        return manifest.at(Endpoints.load(endpoints)) if endpoints else manifest

    examination = Examination(load)
    if as_data:
        for _ in examination.run():
            pass
        click.echo(json.dumps(as_json(examination), indent=2))
    else:
        printer = Printer(Console(highlight=False, markup=False, emoji=False))
        for finding in examination.run():
            printer.show(finding)
        printer.end(examination)
    context.exit(1 if examination.failures else 0)
