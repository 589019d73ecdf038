"""How a cost grows along an axis: as a straight line on two logarithmic scales, whose slope is 1 for what is linear."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

__all__ = ["AXES", "COSTS", "MOST_SLOPE", "Axis", "Cost", "Growth", "growth_of", "slope"]

MOST_SLOPE = 1.05

Point = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """What grows.

    Attributes:
        name: In the figures.
        shown: For people, as a heading.
        unit: What is counted along it.
        reading: What the jobs do.
    """

    name: str
    shown: str
    unit: str
    reading: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What it costs.

    Attributes:
        of: The cost, from what one job took.
        unit: `B`, `s`, or empty for a count.
        constant: It must not grow at all.
        counted: It is the same in every run; else it is timed or sampled, and varies.
    """

    name: str
    shown: str
    of: Callable[[Point], float]
    unit: str = ""
    constant: bool = False
    counted: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """One cost along one axis.

    Attributes:
        values: One for each point.
        slope: Of the line that fits best, both scales logarithmic.
        steepest: Between two neighbours.
        marginal: What one more unit of the axis costs, from the last two points.
        verdict: `constant`, `linear or better`, or `worse`.
    """

    axis: Axis
    cost: Cost
    at: tuple[int, ...]
    values: tuple[float, ...]
    slope: float
    steepest: float
    marginal: float
    verdict: str


AXES = (
    Axis(
        name="files",
        shown="Files",
        unit="blobs",
        reading="One process reads that many blobs of one line each. They come in packs, and each has a SAS, a request"
        " and a record of its own.",
    ),
    Axis(
        name="bundles",
        shown="Bundles",
        unit="bundles",
        reading="One process opens that many bundles, one after the other, each of which reads one blob: the least work"
        " that a bundle can do, and no other bundle's records to go along with.",
    ),
    Axis(
        name="bytes",
        shown="Bytes",
        unit="B",
        reading="One process reads one blob of that many bytes, line by line, and writes the lines again, with"
        " `ReadFromBlob` and `WriteToBlob` as they are without any setting.",
    ),
)

COSTS = (
    Cost(name="tokens", shown="token requests", of=lambda point: float(point["token_requests"]), constant=True),
    Cost(name="requests", shown="requests to Storage", of=lambda point: float(sum(point["requests"].values()))),
    Cost(name="appends", shown="of these, appends to the trail", of=lambda point: float(_asked(point, "AppendBlock"))),
    Cost(name="sas", shown="SAS issued", of=lambda point: float(point["records"].get("sas_issued", 0))),
    Cost(name="records", shown="audit records", of=lambda point: float(sum(point["records"].values()))),
    Cost(name="audit", shown="audit bytes", of=lambda point: float(point["audit_bytes"]), unit="B"),
    Cost(
        name="memory",
        shown="memory of the process",
        of=lambda point: float(point["peak_bytes"]),
        unit="B",
        counted=False,
    ),
    Cost(name="cpu", shown="its CPU time", of=lambda point: float(point["cpu_s"]), unit="s", counted=False),
)


def growth_of(axis: Axis, cost: Cost, points: Sequence[Point]) -> Growth:
    """A cost along an axis.

    Args:
        points: What the jobs took, smallest first; at least two.
    """
    at = tuple(int(point["at"]) for point in points)
    values = tuple(cost.of(point) for point in points)
    steps = [slope(pair_at, pair) for pair_at, pair in zip(pairwise(at), pairwise(values), strict=True)]
    fitted, steepest = slope(at, values), max(steps)
    bound = steepest if cost.counted else fitted
    if cost.constant:
        verdict = "constant" if len(set(values)) == 1 else "worse"
    else:
        verdict = "linear or better" if bound <= MOST_SLOPE else "worse"
    return Growth(
        axis=axis,
        cost=cost,
        at=at,
        values=values,
        slope=fitted,
        steepest=steepest,
        marginal=(values[-1] - values[-2]) / (at[-1] - at[-2]),
        verdict=verdict,
    )


def slope(at: Sequence[float], values: Sequence[float]) -> float:
    """Of the line of least squares, both scales logarithmic.

    Raises:
        ValueError: There is nothing to take a logarithm of.
    """
    across, up = ([math.log(value) for value in each] for each in (at, values))
    middle, height = sum(across) / len(across), sum(up) / len(up)
    rise = sum((x - middle) * (y - height) for x, y in zip(across, up, strict=True))
    return rise / sum((x - middle) ** 2 for x in across)


def _asked(point: Point, operation: str) -> int:
    count: int = point["requests"].get(operation, 0)
    return count
