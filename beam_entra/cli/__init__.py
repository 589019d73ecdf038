"""`beam-entra`: one module a subcommand."""

from __future__ import annotations

import logging
import sys

import click

from beam_entra.cli.audit import audit
from beam_entra.cli.doctor import doctor
from beam_entra.cli.local import local
from beam_entra.cli.worker import worker
from beam_entra.errors import BeamEntraError, printable

__all__ = ["main"]


class _Commands(click.Group):
    """Prints an error of ours as one, without a traceback; exit code 1."""

    def invoke(self, ctx: click.Context) -> object:
        logging.getLogger("azure.identity").setLevel(logging.ERROR)  # it warns of each failure that it raises
        try:
            return super().invoke(ctx)
        except BeamEntraError as error:
            click.echo(f"{type(error).__name__}: {error}", err=True)
            for note in getattr(error, "__notes__", ()):
                click.echo(f"    {printable(note)}", err=True)
            sys.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="beam-entra")
def main() -> None:
    """Beam pipelines under the job's own identity: can they run, what did they do, and a local cloud to try them in."""


main.add_command(audit)
main.add_command(doctor)
main.add_command(local)
main.add_command(worker)
