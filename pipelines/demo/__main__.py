"""`make demo`: a job on a cloud of this machine, its totals and its trail checked, and one refusal."""

from __future__ import annotations

import shutil
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import click

from beam_entra.access import AccessManifest
from beam_entra.errors import BeamEntraError
from pipelines.demo.cloud import bring_up
from pipelines.demo.screen import Screen
from pipelines.demo.steps import ACCOUNT, CLI, MANIFEST, Demo, shown

_INTERRUPTED = 130


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--orders", default=50_000, show_default=True, help="Lines of sample data.")
@click.option("--runner", default="DirectRunner", show_default=True, help="Beam runner of the job.")
@click.option("--keep", is_flag=True, help="Leave the tenant and Azurite up, to look around.")
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".local", "demo"),
    show_default=True,
    help="Where inputs, outputs and audit trails are left.",
)
def main(orders: int, runner: str, keep: bool, folder: Path) -> None:
    """Run the orders pipeline on a cloud of this machine, and check all that it says."""
    signal.signal(signal.SIGTERM, _interrupt)
    screen = Screen()
    try:
        problems = _run(screen, orders, runner, keep, folder.absolute())
    except KeyboardInterrupt:
        screen.say("\ninterrupted; everything is stopped")
        sys.exit(_INTERRUPTED)
    except BeamEntraError as error:
        screen.bad(str(error))
        sys.exit(1)
    sys.exit(bool(problems))


def _run(screen: Screen, orders: int, runner: str, keep: bool, folder: Path) -> list[str]:
    began = time.monotonic()
    for name in ("input", "output", "audit"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
    manifest = AccessManifest.load(MANIFEST)
    screen.title("beam_entra demo: a job under its own identity, checked, and one refusal")
    screen.step("A cloud on this machine")
    with bring_up(manifest, account=ACCOUNT, keep=keep) as cloud:
        screen.say(f"Entra tenant  {cloud.authority}")
        screen.say(f"Storage       {cloud.storage} (Azurite)")
        demo = Demo(screen, cloud, manifest, folder, runner)
        expected = demo.upload_orders(orders)
        job = demo.run_the_job(expected)
        if job.report and not job.finished.status:
            demo.check_totals(expected, job)
            demo.verify(job)
        demo.show_refusal()
    screen.step("Done" if not demo.problems else "Not well")
    for problem in demo.problems:
        screen.bad(problem)
    screen.say(f"{time.monotonic() - began:.0f} s; sample orders, outputs and audit trails are in {shown(folder)}/")
    screen.say(f"read a trail:     {shown(CLI)} audit show {shown(job.trail)}")
    if keep:
        _explain_kept(screen, demo, job.report.get("audit", manifest.audit))
    return demo.problems


def _explain_kept(screen: Screen, demo: Demo, trail: object) -> None:
    cli = shown(CLI)
    screen.step("The cloud stays up")
    screen.say(f'point at it:      eval "$({cli} local env)"')
    screen.say(f"look around:      {cli} local ls")
    screen.say(f"                  {cli} local ls {demo.output}")
    screen.say(f"                  {cli} local cat {demo.output}clean/_SUCCESS")
    screen.say(f"its trail there:  {cli} audit show {trail} --access_manifest {MANIFEST}")
    screen.say(f"stop it:          {cli} local down")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
