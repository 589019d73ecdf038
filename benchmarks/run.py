"""Runs the sides of a group in rounds, A B A B, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.cloud import BenchCloud, bring_up
from benchmarks.rows import Group, Side
from benchmarks.task import Task

__all__ = ["Children", "SideFailed", "run_group", "sides_of_round"]

_ROOT = Path(__file__).resolve().parents[1]
_LAST_LINES = 15

Runs = dict[str, list[dict[str, Any]]]


class SideFailed(RuntimeError):
    """A side ended with an error, or two sides of a row have different answers."""


def run_group(group: Group, *, pairs: int, scale: float, say: Callable[[str], object]) -> Runs:
    """Run every side of a group `pairs` times, some more often and floors less; a list of outcomes for each.

    Raises:
        SideFailed: A side did not do its work.
    """
    runs: Runs = {side.name: [] for side in group.sides}
    with bring_up(group.rtt_ms, sources=group.sources) as cloud, Children(cloud) as children:
        cloud.raw.put_all(group.blobs(scale))  # while the children's server imports what they need
        for number in range(max(side.rounds(pairs) for side in group.sides)):
            for side in sides_of_round(group, number, pairs):
                outcome = _run_side(cloud, children, group, side, number, scale)
                runs[side.name].append(outcome)
                say(f"{group.name:12} round {number + 1}  {side.name:17} {_told(outcome)}")
            if number == 0:
                _check_answers(group, runs)
            else:
                _check_repetition(group, runs)
    return runs


def sides_of_round(group: Group, number: int, pairs: int) -> list[Side]:
    """The sides that run in a round, in the order in which they do."""
    sides = [side for side in group.sides if number < side.rounds(pairs)]
    return sides[::-1] if group.mirrored and number % 2 else sides


class Children:
    """The processes that do the tasks; see `benchmarks.child`."""

    def __init__(self, cloud: BenchCloud) -> None:
        self._words = (cloud.folder / "children.txt").open("w+", encoding="utf-8")
        self._server = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            env=cloud.environment(),
            cwd=_ROOT,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.communicate()  # closes its input, its sign to leave
        self._words.close()

    def do(self, task: Task) -> dict[str, Any]:
        """Do one task, and give its outcome.

        Raises:
            SideFailed: It ended with an error.
        """
        assert self._server.stdin is not None  # noqa: S101 - it was made with pipes
        assert self._server.stdout is not None  # noqa: S101 - likewise
        print(json.dumps(asdict(task)), file=self._server.stdin, flush=True)
        for line in self._server.stdout:
            if line.startswith("{"):  # a pipeline may print, too
                outcome: dict[str, Any] = json.loads(line)
                if "failed" in outcome:
                    break
                return outcome
        self._words.seek(0)
        words = "\n".join(self._words.read().splitlines()[-_LAST_LINES:])
        raise SideFailed(f"{task.side} ended with an error:\n{words}")


def _run_side(
    cloud: BenchCloud, children: Children, group: Group, side: Side, number: int, scale: float
) -> dict[str, Any]:
    output = f"out/{side.name}-{number}/"
    before = cloud.cloud.tenant.token_requests
    outcome = children.do(Task(side=side.does, given=dict(side.given(scale)), output=output, **cloud.settings()))
    outcome["token_requests"] = cloud.cloud.tenant.token_requests - before
    if group.writes and not side.floor:
        outcome["written"] = cloud.sizes_of(output)
        if number == 0:  # it takes a while; later rounds are held against the first by sizes
            outcome["answer"] = cloud.digest_of(output)
        cloud.clear(output)
    return outcome


def _check_answers(group: Group, runs: Runs) -> None:
    """The sides of a row must have found the same; those that are told of how many units, as much for each of these."""
    told = {side.name for side in group.sides if "units" in side.given(1.0)}
    for row in group.rows:
        sides = [side for side in (row.ours, row.theirs, row.floor) if side]
        found = {side: runs[side][-1] for side in sides if runs[side] and runs[side][-1]["answer"] is not None}
        for (one, mine), (other, theirs) in pairwise(found.items()):
            same = mine["answer"] == theirs["answer"]
            if told >= {one, other}:
                same = mine["answer"] * theirs["units"] == theirs["answer"] * mine["units"]
            if not same:
                answers = f"{one} {mine['answer']}, {other} {theirs['answer']}"
                raise SideFailed(f"the sides of {row.name} do not agree: {answers}")


def _check_repetition(group: Group, runs: Runs) -> None:
    for name, (first, *_, last) in ((name, of_side) for name, of_side in runs.items() if len(of_side) > 1):
        if [first.get("units"), first.get("written")] != [last.get("units"), last.get("written")]:
            raise SideFailed(f"{name} of {group.name} did something else than in the first round: {first}, {last}")


def _told(outcome: dict[str, Any]) -> str:
    peak_mb = (outcome["peak_bytes"] - outcome["idle_bytes"]) / 1e6
    times = f"{outcome['wall_s']:7.2f} s  {outcome['cpu_s']:7.2f} CPU s  {outcome['stolen_s']:6.2f} s stolen"
    return f"{times}  {peak_mb:6.0f} MB above idle"
