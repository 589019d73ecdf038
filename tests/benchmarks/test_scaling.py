"""How costs grow: slopes and verdicts, the figures that are kept, the pictures, and the arithmetic of a petabyte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beam_entra.access import AccessManifest, Endpoints
from beam_entra.clock import utc_now
from beam_entra.paths import BlobPath
from beam_entra.session import JobScope, Session, seal_job
from benchmarks.scaling.growth import AXES, COSTS, MOST_SLOPE, Cost, growth_of, slope
from benchmarks.scaling.limits import ACCOUNT_EGRESS, ACCOUNT_REQUESTS
from benchmarks.scaling.page import FIGURES, PAGE, pictures, render
from benchmarks.scaling.petabyte import SMALL_BYTES, Job, Load, Units, demands, first_to_break, hours_at_limits
from benchmarks.scaling.plot import Curve, Panel, draw
from benchmarks.sides.growth import Wire
from tests.io.conftest import Lake, lake

__all__ = ["lake"]

ROOT = Path(__file__).parents[2]
(FILES, BUNDLES, BYTES) = AXES
COST = {cost.name: cost for cost in COSTS}
SVG = {"": "http://www.w3.org/2000/svg"}


def point(at: int, **changed: Any) -> dict[str, Any]:
    """What a job took that costs as much as it is large, and a little besides."""
    usual: dict[str, Any] = {
        "at": at,
        "units": at,
        "job_s": 0.5 + at * 1e-3,
        "seal_s": 0.1 + at * 1e-4,
        "wall_s": 1 + at * 1e-3,
        "cpu_s": 1 + at * 1e-3,
        "idle_bytes": 100_000_000,
        "peak_bytes": 150_000_000 + at,
        "token_requests": 1,
        "requests": {"GetBlob": at, "AppendBlock": at // 10 + 3, "GetUserDelegationKey": 1},
        "records": {"read": at, "sas_issued": at + 2, "token_acquired": 1},
        "audit_bytes": 1000 * at + 5000,
        "segments": 1,
    }
    return {**usual, **changed}


def figures() -> dict[str, Any]:
    """As measured, in round numbers."""
    copied = [
        point(
            at,
            cpu_s=1 + at / 50e6,
            requests={"GetBlob": at // 8_000_000, "PutBlock": at // 4_000_000, "AppendBlock": at // 8_000_000 + 1},
            records={"read": at // 8_000_000, "staged": at // 4_000_000, "sas_issued": 2},
            audit_bytes=at // 8_000 + 5000,
        )
        for at in (80_000_000, 800_000_000)
    ]
    runs = {str(n): {job: [{"job_s": s, "units": 1e6, "token_requests": n + 1}] for job, s in jobs} for n, jobs in RUNS}
    return {
        "taken": "2030-01-01",
        "full": True,
        "machine": dict.fromkeys(("processor", "memory", "system", "python", "apache-beam", "azurite"), "x")
        | {"cores": "2"},
        "axes": {
            "files": [point(at) for at in (100, 1_000, 10_000)],
            "bundles": [point(at) for at in (10, 100, 1_000)],
            "bytes": copied,
        },
        "workers": runs,
        "staged": {"blocks": 1_000_000, "bytes": 100_000_000},
    }


RUNS: tuple[tuple[int, tuple[tuple[str, float], ...]], ...] = (
    (0, (("boot", 1), ("full", 11))),
    (1, (("boot", 5), ("full", 15))),
    (2, (("boot", 6), ("full", 11))),
)


# Slopes


@given(
    power=st.floats(-2, 3),
    factor=st.floats(1e-3, 1e6),
    at=st.lists(st.integers(1, 10**7), min_size=2, max_size=6, unique=True),
)
def test_the_slope_of_a_power_is_its_exponent(power: float, factor: float, at: list[int]) -> None:
    """Whatever the points are."""
    assert slope(at, [factor * x**power for x in at]) == pytest.approx(power, abs=1e-6)


@pytest.mark.parametrize(
    ("cost", "changed", "verdict"),
    [
        ("requests", [{}, {}, {}], "linear or better"),
        ("tokens", [{}, {}, {}], "constant"),
        ("tokens", [{}, {}, {"token_requests": 2}], "worse"),
        ("tokens", [{}, {"token_requests": 2}, {}], "worse"),
        ("requests", [{}, {}, {"requests": {"GetBlob": 13_000}}], "worse"),
        ("requests", [{"requests": {"GetBlob": 9_000}}, {}, {"requests": {"GetBlob": 13_000}}], "worse"),
        ("cpu", [{}, {}, {"cpu_s": 40}], "linear or better"),
        ("cpu", [{"cpu_s": 1}, {"cpu_s": 11.5}, {"cpu_s": 132}], "worse"),
        ("memory", [{}, {}, {"peak_bytes": 40_000_000_000}], "worse"),
    ],
)
def test_what_is_counted_may_not_grow_faster_than_linearly_anywhere(
    cost: str, changed: list[dict[str, Any]], verdict: str
) -> None:
    """Between two neighbours, be the rest as it may; what is timed may vary about its line, and tokens not at all."""
    points = [point(at, **more) for at, more in zip((100, 1_000, 10_000), changed, strict=True)]
    assert growth_of(FILES, COST[cost], points).verdict == verdict


def test_what_one_more_costs_is_taken_from_the_largest_jobs() -> None:
    """What a job costs at its start is in neither."""
    growth = growth_of(FILES, COST["audit"], [point(at) for at in (100, 1_000, 10_000)])
    assert growth.marginal == 1000
    assert growth.slope < growth.steepest < 1


# The figures that are kept


KEPT = json.loads(FIGURES.read_text(encoding="utf-8"))


@pytest.mark.parametrize("cost", COSTS, ids=lambda cost: cost.name)
@pytest.mark.parametrize("axis", AXES, ids=lambda axis: axis.name)
def test_the_figures_that_are_kept_are_linear_or_better(axis: Any, cost: Cost) -> None:
    """Each cost along each axis; a process asks for one token."""
    points = KEPT["axes"][axis.name]
    growth = growth_of(axis, cost, points)
    assert growth.verdict == ("constant" if cost.constant else "linear or better")
    if cost.constant:
        assert set(growth.values) == {1}
    else:
        assert (growth.steepest if cost.counted else growth.slope) <= MOST_SLOPE


@pytest.mark.skipif(not KEPT["full"], reason="the figures that are kept are those of a quick look, and say so")
def test_the_figures_that_are_kept_are_of_full_size() -> None:
    """10^2 to 10^5 files, 10 to 10^4 bundles, 1 GiB, and a token for each process, the launcher among them."""
    assert KEPT["axes"]["bytes"][-1]["at"] == 1 << 30
    assert [each["at"] for each in KEPT["axes"]["files"]] == [10**2, 10**3, 10**4, 10**5]
    assert [each["at"] for each in KEPT["axes"]["bundles"]] == [10, 10**2, 10**3, 10**4]
    for processes, jobs in KEPT["workers"].items():
        for run in jobs["full"]:
            assert run["token_requests"] == int(processes) + 1


def test_the_page_in_the_docs_is_made_from_the_figures_beside_it() -> None:
    """And so are its pictures; nobody writes them by hand, and they name no folder of a machine."""
    page = PAGE.read_text(encoding="utf-8")
    assert page == render(KEPT)
    for name, drawn in pictures(KEPT).items():
        assert (PAGE.parent / name).read_text(encoding="utf-8") == drawn
        assert f"({name})" in page
    assert {file.name for file in PAGE.parent.glob("scaling-*.svg")} == set(pictures(KEPT))
    for folder in ("home", "root", "tmp", "Users"):
        assert f"/{folder}/" not in page + json.dumps(KEPT)


# The page


def test_the_page_says_what_is_worse_than_linear() -> None:
    """By name, and in its table."""
    made = figures()
    assert "all are linear or better" in render(made)
    made["axes"]["bundles"][-1]["token_requests"] = 5
    made["axes"]["files"][-1]["audit_bytes"] *= 2
    page = render(made)
    assert "not constant where it must be: audit bytes with files; token requests with bundles.**" in page
    assert page.count("| **worse** |") == 2
    assert "a quick look, no result" in render({**made, "full": False})


def test_the_page_says_what_workers_do_without_their_booting() -> None:
    """A job of one line takes 5 s with one worker and 6 s with two; what is left is halved by the second."""
    page = render(figures())
    assert "Two workers do 2.00 times what one does." in page
    assert "Booting costs 4 s with one worker and 5 s with two" in page
    assert "| 2 | 6 s | 11 s | 200 thousand records/s | 3 |" in page


# A petabyte, on paper


def test_the_petabyte_follows_from_the_unit_costs() -> None:
    """Large blobs: 50 MB/s a worker, a GET for 8 MB, a block for 4 MB, a record for each."""
    units, job = Units.of(figures()), Job()
    load = Load.of(job, units)
    assert load.hours == pytest.approx((1e15 / 50e6 + 1e6 * 1e-3) / 1000 / 3600)
    assert load.gets == pytest.approx(1e15 / 8e6 + 1e6)
    assert load.puts == pytest.approx(1e15 / 4e6)
    assert load.records == pytest.approx(1e15 / 8e6 * 3 + 2e6)
    assert load.audit_bytes == pytest.approx(1e15 / 8e3 + 1e6 * 1e3)
    assert load.commit_bytes == pytest.approx(1e15 / 4e6 * 100)
    asked = {demand.of: demand for demand in demands(job, units)}
    egress = asked["read from the account of the input"]
    assert egress.rate == pytest.approx(1000 * 50e6, rel=1e-3)
    assert egress.share == pytest.approx(1000 * 50e6 / ACCOUNT_EGRESS.value, rel=1e-3)
    assert asked["token requests, while the workers start"].rate == pytest.approx(1000 / 60)
    first = first_to_break(list(asked.values()))
    assert first.of == "written to the account of the output"
    assert hours_at_limits(job, units) == pytest.approx(first.hours)


def test_the_page_says_what_breaks_first() -> None:
    """With the figures that it follows from; and what one process does for all takes longer than the job, or not."""
    made = figures()
    page = render(made)
    assert "**What breaks first:** written to the account of the output, 6.7 times what one account gives." in page
    assert "| written to the account of the output | 400 Gbit/s | 60 Gbit/s (25 Gbit/s) | **6.7 x** |" in page
    assert "Matching lists 1 million blobs in 200 requests" in page
    assert "longer than the job" in page
    made["axes"]["files"][-1]["seal_s"] = 0.01
    assert "longer than the job" not in render(made)


def test_small_blobs_break_the_requests_first() -> None:
    """Each is a request, whatever its length; only what is written costs by the byte."""
    units, job = Units.of(figures()), Job(blob_bytes=1e4)
    load = Load.of(job, units)
    assert job.blob_bytes < SMALL_BYTES
    assert load.gets == pytest.approx(1e11)
    first = first_to_break(demands(job, units))
    assert first.of == "requests to the account of the input"
    assert hours_at_limits(job, units) == pytest.approx(1e11 / ACCOUNT_REQUESTS.value / 3600)


def test_with_few_workers_nothing_breaks() -> None:
    """The share of each limit goes with their number, and the time is the workers' own."""
    units, job = Units.of(figures()), Job(workers=10)
    assert first_to_break(demands(job, units)).share < 1
    assert hours_at_limits(job, units) == Load.of(job, units).hours


# Pictures


def test_a_picture_has_each_point_where_it_belongs() -> None:
    """Both scales are logarithmic: equal factors are equal distances; more is to the right, and higher up."""
    curve = Curve(name="x < y & z", points=[(1, 1), (10, 10), (100, 100), (1000, 1000)])
    root = ElementTree.fromstring(draw([Panel(title="T", across="a", up="b", curves=[curve])], describe="<d>"))  # noqa: S314 - our own
    dots = [(float(dot.get("cx", "")), float(dot.get("cy", ""))) for dot in root.iterfind(".//circle", SVG)]
    steps = {(round(x2 - x1, 0), round(y2 - y1, 0)) for (x1, y1), (x2, y2) in pairwise(dots)}
    ((right, down),) = steps
    assert right > 0 > down
    assert "x < y & z" in [text.text for text in root.iterfind(".//text", SVG)]
    assert root.findtext("title", namespaces=SVG) == "<d>"


VALUES = st.floats(1e-3, 1e12)


@settings(max_examples=50)
@given(st.lists(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=5), min_size=1, max_size=6))
def test_no_point_and_no_name_is_outside_the_picture(curves: list[list[tuple[float, float]]]) -> None:
    """Whatever the values; and no two names cover each other."""
    panel = Panel(
        title="T", across="a", up="b", curves=[Curve(name=f"n{at}", points=each) for at, each in enumerate(curves)]
    )
    root = ElementTree.fromstring(draw([panel], describe="d"))  # noqa: S314 - our own
    width, height = (float(root.get(side, "")) for side in ("width", "height"))
    for dot in root.iterfind(".//circle", SVG):
        assert 0 < float(dot.get("cx", "")) < width
        assert 0 < float(dot.get("cy", "")) < height
    names = sorted(
        float(text.get("y", "")) for text in root.iterfind(".//text", SVG) if (text.text or "").startswith("n")
    )
    assert all(0 < y < height for y in names)
    assert all(lower - upper >= 14.8 for upper, lower in pairwise(names))


# Measuring


def test_requests_are_counted_as_a_proxy_sees_them(lake: Lake) -> None:
    """Each attempt, by operation, whoever of the session sends it."""
    lake.raw.upload("in/one", b"12345")
    manifest = AccessManifest.load(lake.write_manifest()).at(Endpoints.load(lake.cloud.endpoints_file))
    lake.cloud.proxy.respond(503, "ServerBusy", where=lambda request: request.operation == "GetBlob", times=1)
    before = len(lake.cloud.proxy.requests)
    with Wire() as wire, Session(JobScope.launch(manifest, now=utc_now())).bundle("look") as bundle:
        session = bundle.session
        blob = bundle.properties(BlobPath.parse(lake.raw.url("in/one")))
        assert bundle.read(blob, 0, 5) == b"12345"
        bundle.close("ok")
        seal_job(session, outcome="ok", error=None)
    session.close()
    seen = Counter(exchange.operation for exchange in list(lake.cloud.proxy.requests)[before:])
    assert wire.requests == seen
    assert wire.requests["GetBlob"] >= 2
    assert wire.requests["AppendBlock"] >= 2


@pytest.mark.timeout(420)
def test_all_of_it_runs(tmp_path: Path) -> None:
    """Small jobs, for real: each axis, worker processes, a page of their figures; SAS and audit grow as they may."""
    results = tmp_path / "scaling.json"
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks.scaling", "--quick", f"--results={results}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    measured = json.loads(results.read_text(encoding="utf-8"))
    assert "a quick look, no result" in render(measured)
    assert "Worker processes" not in render(measured)
    assert len(pictures(measured)) == 3
    for axis in AXES:
        points = measured["axes"][axis.name]
        verdicts = {name: growth_of(axis, COST[name], points).verdict for name in ("tokens", "sas", "records", "audit")}
        assert verdicts.pop("tokens") == "constant"
        assert set(verdicts.values()) == {"linear or better"}
        for each in points:
            assert each["token_requests"] == 1
            assert each["requests"]["AppendBlock"] >= 1
    last = measured["axes"]["files"][-1]
    assert (last["units"], last["records"]["read"], last["requests"]["GetBlob"] >= last["units"]) == (1000, 1000, True)
    assert measured["axes"]["bundles"][-1]["records"]["bundle_closed"] >= 100
    assert measured["axes"]["bytes"][-1]["records"]["staged"] >= 8
    (jobs,) = measured["workers"].values()
    assert jobs["full"][0]["units"] > 200_000
    assert jobs["full"][0]["token_requests"] == 3
    assert str(tmp_path) not in results.read_text(encoding="utf-8")
