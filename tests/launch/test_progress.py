"""The line on the terminal that says how a job stands: what it says, where it is drawn, and that it harms nothing."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

import apache_beam as beam
import pytest

from beam_entra import JsonLines, ReadFromBlob, WriteToBlob
from beam_entra.errors import StorageError
from beam_entra.launch.progress import Figures, JobFigures, drawn, shown_progress
from beam_entra.testing.storage_requests import matching
from tests.launch.terminal import Terminal
from tests.launch.test_runners import RUNNERS

LINE = r"\d+:\d\d:\d\d left; [^\r\n\x1b]+ tokens?"
BLOBS = r"(\d+)/(\d+) blobs"
RECORDS = 100
SETTLED = 60


def threads() -> set[str]:
    """The names of the threads that the line has started and that are still there."""
    return {each.name for each in threading.enumerate() if each.name.startswith("beam-entra-progress")}


# What it says

SAYINGS = {
    "nothing yet": (Figures(counts={}, left=timedelta(hours=1)), "1:00:00 left; starting; 0 tokens"),
    "a token": (
        Figures(counts={"tokens_acquired": 1}, left=timedelta(minutes=59, seconds=58.9)),
        "0:59:58 left; starting; 1 token",
    ),
    "everything": (
        Figures(
            counts={
                "records_read": 1_234_567,
                "bytes_read": 123_449_999,
                "blobs_read": 5,
                "blobs_matched": 9,
                "records_written": 1000,
                "bytes_staged": 999_949,
                "tokens_acquired": 2,
            },
            left=timedelta(days=2, hours=1),
        ),
        "2 days, 1:00:00 left; 5/9 blobs, 1,234,567 records, 123.4 MB read; 1,000 records, 999.9 kB written; 2 tokens",
    ),
    "found, and nothing read": (Figures(counts={"blobs_matched": 9}), "0/9 blobs read; 0 tokens"),
    "what a trail tells": (
        Figures(counts={"bytes_read": 1_500_000, "blobs_read": 3, "tokens_acquired": 4}),
        "3 blobs, 1.5 MB read; 4 tokens",
    ),
    "written alone": (Figures(counts={"bytes_staged": 12_000_000_000_000}), "12.0 TB written; 0 tokens"),
    "more than there is a unit for": (Figures(counts={"bytes_read": 10**19}), "10,000.0 PB read; 0 tokens"),
    "just under a unit": (Figures(counts={"bytes_read": 999_950}), "1.0 MB read; 0 tokens"),
    "the deadline has passed": (Figures(counts={}, left=timedelta(seconds=-5)), "0:00:00 left; starting; 0 tokens"),
    "more read than found, as after a retry": (
        Figures(counts={"blobs_read": 4, "blobs_matched": 3}),
        "4/4 blobs read; 0 tokens",
    ),
    "begun, by the trail": (Figures(counts={"blobs_begun": 4}), "4 blobs read; 0 tokens"),
    "begun, and fewer done": (
        Figures(counts={"blobs_begun": 4, "blobs_read": 2, "blobs_matched": 5}),
        "2/5 blobs read; 0 tokens",
    ),
}


@pytest.mark.parametrize(("figures", "line"), SAYINGS.values(), ids=SAYINGS)
def test_figures_are_a_line_for_people(figures: Figures, line: str) -> None:
    """What is not known is left out."""
    assert str(figures) == line


# Where it is drawn


def test_the_line_is_kept_up_to_date_and_goes(terminal: Terminal) -> None:
    """It is drawn again and again, the last time in the end; nothing of it is left, and no thread."""
    numbers = iter(range(1000))
    with redirect_stderr(terminal.stream), drawn(lambda: f"at number {next(numbers)}", terminal.stream):
        terminal.wait_for("at number 2")
        assert terminal.written.count("\x1b[?25l") <= terminal.written.count("\x1b[?25h"), "it is there after a kill"
        said = next(numbers)
    assert threads() == set()
    terminal.close()
    assert re.findall(r"at number (\d+)", terminal.written)[-1] == str(said + 1)
    assert terminal.screen() == []
    assert terminal.written.count("\x1b[?25l") <= terminal.written.count("\x1b[?25h"), "the cursor is there"


def test_a_line_that_is_too_long_is_cut() -> None:
    """It would be drawn below itself for ever."""
    narrow = Terminal(columns=20)
    try:
        with drawn(lambda: "0123456789" * 5, narrow.stream):
            narrow.wait_for("0123456789", times=2)
    finally:
        narrow.close()
    assert "0123456789012345678" in narrow.written
    assert "01234567890123456789" not in narrow.written
    assert narrow.screen() == []


def test_what_is_printed_and_logged_goes_above_it(terminal: Terminal) -> None:
    """Each line whole and in order, whatever its length, also by handlers that were made before."""
    handler = logging.StreamHandler(terminal.stream)
    logger = logging.getLogger("tests.progress")
    logger.addHandler(handler)
    logger.propagate = False
    long = "x" * 300
    stream = terminal.stream
    try:
        with redirect_stderr(stream), redirect_stdout(stream), drawn(lambda: "the line", stream):
            terminal.wait_for("the line")
            logger.warning("logged")
            logger.warning(long)
            print("printed to standard output")
            print("printed to standard error, with [brackets] and :smile:", file=sys.stderr)
            print("in", end=" ")
            print("pieces")
            sys.stdout.writelines(["two\n", "lines\n"])
            terminal.wait_for("lines")
            terminal.wait_for("the line", times=terminal.written.count("the line") + 1)
            print("and no end", end="")
            assert sys.stdout.encoding == "utf-8"
            assert sys.stdout.fileno() == stream.fileno()
        assert handler.stream is stream
        logger.warning(" afterwards")
    finally:
        logger.removeHandler(handler)
    terminal.close()
    wrapped = [long[at : at + 120] for at in range(0, 300, 120)]
    assert terminal.screen() == [
        "logged",
        *wrapped,
        "printed to standard output",
        "printed to standard error, with [brackets] and :smile:",
        "in pieces",
        "two",
        "lines",
        "and no end afterwards",
    ]
    assert long in terminal.written, "no line end was put into it"


def test_streams_are_given_back(terminal: Terminal) -> None:
    """Standard output and error are the same objects as before; those that somebody has put there meanwhile stay."""
    mine = io.StringIO()
    with redirect_stderr(terminal.stream), redirect_stdout(terminal.stream):
        with drawn(lambda: "the line", terminal.stream):
            assert sys.stderr is not terminal.stream
            sys.stdout = mine
        assert sys.stderr is terminal.stream
        assert sys.stdout is mine


def test_a_file_is_no_terminal(lake: Any) -> None:
    """Nothing is drawn, nobody is asked, and no thread is there."""
    pipeline = lake.pipeline()
    with redirect_stderr(io.StringIO()) as said, shown_progress(pipeline.scope, lambda: None):
        assert threads() == set()
    assert said.getvalue() == ""


def test_a_process_without_standard_error(lake: Any) -> None:
    """As daemons are: nothing is drawn."""
    pipeline = lake.pipeline()
    with redirect_stderr(None), shown_progress(pipeline.scope, lambda: None):
        assert threads() == set()


def test_a_standard_error_that_is_no_file_or_is_closed_stops_no_job(lake: Any) -> None:
    """Hosts put things of their own there that can be written to, and no more; daemons close it."""

    class Sink:
        def write(self, text: str) -> int:
            return len(text)

    closed = io.StringIO()
    closed.close()
    pipeline = lake.pipeline()
    for stream in (Sink(), closed):
        with redirect_stderr(cast("Any", stream)), shown_progress(pipeline.scope, lambda: None):
            assert threads() == set()


def test_a_dumb_terminal_is_left_alone(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no line can be taken back, none is drawn."""
    monkeypatch.setenv("TERM", "dumb")
    with redirect_stderr(terminal.stream), drawn(lambda: "the line", terminal.stream):
        assert sys.stderr is terminal.stream
    terminal.close()
    assert terminal.written == ""


def test_an_error_of_the_source_ends_the_drawing_alone(terminal: Terminal) -> None:
    """Whatever it is; the block goes on."""
    asked = threading.Event()

    def source() -> str:
        asked.set()
        raise StorageError("no figures")

    with drawn(source, terminal.stream):
        assert asked.wait(SETTLED)
    assert threads() == set()


def test_a_terminal_that_goes_away_ends_the_drawing_alone() -> None:
    """The window is closed: the block goes on."""
    closed = Terminal()
    numbers = iter(range(1000))
    reached = threading.Event()

    def source() -> str:
        number = next(numbers)
        if number == 1:
            closed.hang_up()
            reached.set()
        return f"at number {number}"

    with drawn(source, closed.stream):
        assert reached.wait(SETTLED)
    assert threads() == set()
    closed.close()


# Where it comes from

HELD, MET = threading.Event(), threading.Event()


def hold(order: dict[str, int]) -> dict[str, int]:
    """Wait in mid-job, until the test has looked."""
    if order["id"] == RECORDS:
        MET.set()
        assert HELD.wait(SETTLED)
    return order


def upload(lake: Any, blobs: int) -> None:
    """Some blobs with many records each; one holds the record that `hold` waits at."""
    for number in range(blobs):
        lake.upload_json(f"in/{number}.jsonl", [{"id": number * RECORDS + at} for at in range(RECORDS)])


@pytest.mark.parametrize("runner", ["one process", "several threads"])
def test_a_job_in_this_process_is_told_at_every_moment(lake: Any, runner: str) -> None:
    """What has been found and read by then, and the time that is left."""
    upload(lake, 3)
    HELD.clear()
    MET.clear()
    seen: list[Figures] = []
    pipeline = lake.pipeline(*RUNNERS[runner])
    figures = JobFigures(pipeline.scope, lambda: pipeline.result)

    def look() -> None:
        assert MET.wait(SETTLED)
        seen.append(figures())
        HELD.set()

    looking = threading.Thread(target=look)
    looking.start()
    with pipeline as p:
        orders = p | ReadFromBlob(lake.raw.url("in/*"), JsonLines(), block_bytes=300) | beam.Map(hold)
        orders | WriteToBlob(lake.curated.url("out/"), JsonLines(), shards=1)
    looking.join()
    (middle,) = seen
    assert middle.counts["blobs_matched"] == 3
    assert middle.counts["blobs_read"] < 3
    assert middle.counts["records_read"] <= 3 * RECORDS
    # They are counted when a block is through; of several threads one may begin with the blob that is held.
    assert middle.counts["records_read"] > 0 or runner == "several threads"
    assert middle.counts["bytes_read"] > 0
    assert middle.counts["tokens_acquired"] == 1
    assert middle.left is not None
    assert timedelta() < middle.left < timedelta(hours=1)
    assert pipeline.report.metrics["blobs_read"] == 3


def test_a_rolling_life_has_no_time_left(lake: Any) -> None:
    """It is moved on by each token; a number would mean nothing."""
    pipeline = lake.pipeline(manifest=lake.manifest(rolling=True))
    assert JobFigures(pipeline.scope, lambda: None)().left is None


def test_workers_elsewhere_are_told_by_the_trail(lake: Any) -> None:
    """Two worker processes: what they read while the job runs, each one's token, and the launcher's."""
    upload(lake, 4)
    stopped = lake.cloud.proxy.hold(where=matching("PutBlockList", container=lake.curated.name), times=1)
    pipeline = lake.pipeline(*RUNNERS["several processes"], "--no_progress")
    told: list[Counter[str]] = []

    def look() -> None:
        try:
            stopped.gate.wait_for_arrivals(timeout_s=SETTLED)
            with JobFigures(pipeline.scope, lambda: pipeline.result, every_s=0.02) as figures:
                for _ in range(SETTLED * 10):
                    told.append(Counter(figures().counts))
                    if told[-1]["tokens_acquired"] >= 2 and told[-1]["bytes_staged"]:
                        break
                    threading.Event().wait(0.1)
        finally:
            stopped.gate.open()

    looking = threading.Thread(target=look)
    looking.start()
    with pipeline as p:
        orders = p | ReadFromBlob(lake.raw.url("in/*"), JsonLines(), block_bytes=300)
        orders | WriteToBlob(lake.curated.url("out/"), JsonLines(), shards=2)
    looking.join()
    report = pipeline.report
    last = told[-1]
    assert last["bytes_read"] == report.metrics["bytes_read"]
    assert (last["blobs_begun"], last["blobs_read"]) == (4, 0)
    assert 0 < last["bytes_staged"] <= report.metrics["bytes_staged"]
    assert 2 <= last["tokens_acquired"] <= report.records["token_acquired"]
    assert lake.trail(report.job).verify().open_bundles == 0, "the look at the trail has an end in it"


def test_where_this_process_works_nobody_looks_at_the_trail(lake: Any) -> None:
    """All that there is to tell is here: no request and no record is spent on it."""
    upload(lake, 1)
    HELD.clear()
    MET.clear()
    pipeline = lake.pipeline()

    def look() -> None:
        assert MET.wait(SETTLED)
        with JobFigures(pipeline.scope, lambda: pipeline.result, every_s=0.01):
            threading.Event().wait(0.5)  # some ten looks, if there were any
        HELD.set()

    looking = threading.Thread(target=look)
    looking.start()
    lake.upload_json("in/hold.jsonl", [{"id": RECORDS}])
    with pipeline as p:
        p | ReadFromBlob(lake.raw.url("in/*"), JsonLines()) | beam.Map(hold)
    looking.join()
    steps = [each["step"] for each in lake.only_trail().records("bundle_opened")]
    assert "watch the audit trail" not in steps


@pytest.mark.parametrize("fault", ["denied", "busy"])
def test_a_trail_that_cannot_be_looked_at_does_no_harm(lake: Any, fault: str) -> None:
    """The figures of others are missing; who may not look asks once, and not at every look."""
    pipeline = lake.pipeline()
    listing = matching("ListBlobs", container=lake.audit.name)
    refused = (403, "AuthorizationPermissionMismatch") if fault == "denied" else (409, "Whatever")
    broken = lake.cloud.proxy.respond(*refused, where=listing)
    turns: SimpleQueue[None] = SimpleQueue()
    with pipeline as p, JobFigures(pipeline.scope, lambda: turns.put(None), every_s=0.01) as figures:
        lake.cloud.proxy.wait_for(lambda seen: sum(listing(each.request) for each in seen) >= 1 + (fault == "busy"))
        for _ in range(turns.qsize() + 11):  # more than two looks
            turns.get(timeout=SETTLED)
        asked = lake.cloud.proxy.count(listing)
        assert figures().counts["bytes_read"] == 0
        broken.clear()
        p | beam.Create([1])
    assert (asked == 1) is (fault == "denied")
    assert threads() == set()
    lake.only_trail().verify()


# On the command line


def job(lake: Any, terminal: Terminal, *flags: str) -> subprocess.Popen[str]:
    """Start a job that reads and writes, with a terminal for its standard error."""
    arguments = ["--input", lake.raw.url("in/*"), "--output", lake.curated.url("out/"), "--block_bytes=300"]
    launched = lake.launch(*arguments, flags=[*RUNNERS["one process"], *flags], stderr=terminal.slave)
    assert isinstance(launched, subprocess.Popen)
    return launched


def report_of(launched: subprocess.Popen[str]) -> Any:
    """What it printed when it had ended well."""
    out, _ = launched.communicate(timeout=60)
    assert launched.returncode == 0
    return json.loads(out.splitlines()[-1])


def blobs(lines: Sequence[str]) -> list[tuple[int, int]]:
    """Done and total, of each line that says so."""
    found = [re.search(BLOBS, line) for line in lines]
    return [(int(match[1]), int(match[2])) for match in found if match]


def test_a_job_on_a_terminal_says_how_it_stands(
    lake: Any, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures grow, the time goes down, all blobs are known while one is not read; the last are the report's."""
    monkeypatch.setenv("COLUMNS", "60")  # the terminal is wider than a shell once thought
    upload(lake, 5)
    stopped = lake.cloud.proxy.hold(where=matching("GetBlob", blob="in/3.jsonl"))
    launched = job(lake, terminal)
    with ExitStack() as stack:
        stack.callback(launched.kill)
        stopped.gate.wait_for_arrivals(timeout_s=60)
        begun = terminal.wait_for(rf"{LINE}", times=1)
        seen = terminal.wait_for(r"\d/5 blobs[^\r\n\x1b]+ tokens?", times=4)
        lines = terminal.wait_for(LINE, times=len(begun) + 4)
        stopped.gate.open()
        report = report_of(launched)
    assert all(done < total == 5 for done, total in blobs(seen))
    left = [line.partition(" left")[0] for line in lines]
    assert left == sorted(left, reverse=True)
    assert len(set(left)) > 1
    terminal.close()
    last = re.findall(LINE, terminal.written)[-1]
    assert last.partition("; ")[2] == str(Figures(counts=report["metrics"])), terminal.written[-2000:]
    assert "5/5 blobs, 500 records" in last
    assert not [line for line in terminal.screen() if " left; " in line]
    assert lake.cloud.find_leaks(terminal.written) == []
    lake.trail(report["job"]).verify()


def test_a_job_that_is_to_be_quiet_is(lake: Any, terminal: Terminal) -> None:
    """With `--no_progress` nothing is drawn, and nothing taken away."""
    upload(lake, 1)
    report = report_of(job(lake, terminal, "--no_progress"))
    assert report["outcome"] == "ok"
    terminal.close()
    assert "\x1b" not in terminal.written
    assert " left; " not in terminal.written


def test_ctrl_c_takes_the_line_away_and_ends_the_job_in_order(lake: Any, terminal: Terminal) -> None:
    """What is said in the end stands there alone, each line whole; the trail is sealed."""
    upload(lake, 2)
    stopped = lake.cloud.proxy.hold(where=matching("GetBlob", blob="in/1.jsonl"))
    launched = job(lake, terminal)
    with ExitStack() as stack:
        stack.callback(launched.kill)
        stopped.gate.wait_for_arrivals(timeout_s=60)
        terminal.wait_for(LINE, times=2)
        launched.send_signal(signal.SIGINT)
        stopped.gate.open()
        launched.communicate(timeout=60)
    assert launched.returncode == 130
    terminal.close()
    screen = terminal.screen()
    assert "interrupted" in screen, screen
    assert not [line for line in screen if " left; " in line], screen
    assert lake.only_trail().verify().seal.outcome == "interrupted"


def test_a_terminal_that_hangs_up_does_not_fail_the_job(lake: Any, terminal: Terminal) -> None:
    """All is written, the trail is sealed, the exit code is 0."""
    upload(lake, 2)
    stopped = lake.cloud.proxy.hold(where=matching("GetBlob", blob="in/1.jsonl"))
    launched = job(lake, terminal)
    with ExitStack() as stack:
        stack.callback(launched.kill)
        terminal.wait_for(LINE)
        terminal.hang_up()
        stopped.gate.open()
        report = report_of(launched)
    assert report["outcome"] == "ok"
    assert len(lake.written()) == 2 * RECORDS
    lake.only_trail().verify()


def test_what_a_terminal_that_hung_up_has_not_taken_fails_no_exit(terminal: Terminal) -> None:
    """Python flushes standard error when it ends, and gives 120 where that fails."""
    lines = [
        "import contextlib, sys",
        "from beam_entra.launch.progress import drawn",
        "with drawn(lambda: 'at work', sys.stderr):",
        "    sys.stdin.read()",
        "    with contextlib.suppress(OSError):",
        "        print('nobody reads this', file=sys.stderr)",
    ]
    command = [sys.executable, "-c", "\n".join(lines)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=terminal.slave, env=environment) as launched:
        terminal.wait_for("at work")
        terminal.hang_up()
        launched.communicate(timeout=60)
    assert launched.returncode == 0


def test_a_file_in_place_of_a_terminal_is_left_as_it_is(tmp_path: Path) -> None:
    """What is written to it behind the block is there."""
    with (tmp_path / "log").open("w", encoding="utf-8") as log:
        with drawn(lambda: "at work", log):
            pass
        log.write("done")
    assert (tmp_path / "log").read_text(encoding="utf-8") == "done"
