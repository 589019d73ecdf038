"""`beam-entra worker`, and `beam-entra-worker` for runners that take the name of one executable."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import click

from beam_entra.errors import BeamEntraError

__all__ = ["main", "worker"]


@click.command(
    short_help="Be a worker of a Beam job.",
    context_settings={"help_option_names": ["-h", "--help"], "ignore_unknown_options": True},
)
@click.option("--id", "worker_id", default="", metavar="ID", help="What the runner calls the worker.")
@click.option("--provision_endpoint", default="", metavar="HOST:PORT", help="Where to ask what the worker is for.")
@click.option("--logging_endpoint", default="", metavar="HOST:PORT", help="Where to send the log.")
@click.option("--artifact_endpoint", default="", metavar="HOST:PORT", help="Where to fetch the job's artifacts.")
@click.option("--control_endpoint", default="", metavar="HOST:PORT", help="Where to get work.")
@click.option(
    "--semi_persist_dir",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="A folder for the worker's own.  [default: where temporary files go]",
)
@click.option("--worker_pool", is_flag=True, help="Start a worker for each that a runner asks for; see --port.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Of the pool. Its port has no authentication.")
@click.option("--port", default=50000, show_default=True, help="Of the pool.")
@click.argument("others", nargs=-1, type=click.UNPROCESSED)
def worker(
    worker_id: str,
    provision_endpoint: str,
    logging_endpoint: str,
    artifact_endpoint: str,
    control_endpoint: str,
    semi_persist_dir: Path | None,
    worker_pool: bool,
    host: str,
    port: int,
    others: tuple[str, ...],
) -> None:
    """Be a worker of a Beam job, as a runner starts one: --environment_type=PROCESS or EXTERNAL, without Docker.

    Beam's contract for SDK containers: a runner passes the flags. Those that it adds in later versions are ignored.
    """
    from beam_entra.launch.worker import print_to_stderr, run_worker  # noqa: PLC0415  # `--help` starts without Beam

    if worker_pool:
        _serve_pool(host, port)
        return
    if not worker_id or not provision_endpoint:
        raise click.UsageError("--id and --provision_endpoint, which a runner passes, or --worker_pool")
    print_to_stderr()
    run_worker(
        worker_id,
        provision_endpoint=provision_endpoint,
        logging_endpoint=logging_endpoint,
        artifact_endpoint=artifact_endpoint,
        control_endpoint=control_endpoint,
        semi_persist_dir=semi_persist_dir,
    )


def _serve_pool(host: str, port: int) -> None:
    from beam_entra.launch.worker import WorkerPool  # noqa: PLC0415  # see worker

    pool = WorkerPool(host=host, port=port)
    click.echo(f"The worker pool is at {pool.address}; Ctrl-C stops it.")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        pool.wait()
    except KeyboardInterrupt:
        pool.close()


def main() -> None:
    """Run the command; an error of ours is one line, exit code 1."""
    try:
        worker()
    except BeamEntraError as error:
        click.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(1)
