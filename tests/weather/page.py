"""Makes docs/reliability.md from what the weather tests measured: `python -m tests.weather.page`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path

from tests.weather.cases import LONG, STORAGE, TOKEN, Case

__all__ = ["PAGE", "keep", "render", "rows"]

_ROOT = Path(__file__).resolve().parents[2]
_AT_ONCE_S = 0.1
_MEASURED = _ROOT / ".local" / "weather"
PAGE = _ROOT / "docs" / "reliability.md"

_TEXT = """\
# Reliability

<!-- Made by `make reliability-page` from what tests/weather measured; its words are in tests/weather/page.py. -->

What a job does when the token endpoint or Storage has a bad day. Each row below is a test, `tests/weather`, that runs
a whole job (read JSON Lines, transform, write) against a local tenant and Azurite, changes the weather when the
fourth blob is asked for, and then wants one of two things: the right output, each record once, with an audit trail
that verifies; or one error that names the cause and the next step, and no output at all. No job hangs: each has a
hard end.

## What happened

{table}

The time is from the first request that met the fault until one of its kind was answered again, or until the job ended
with its error; a second or two of it is chance, since pauses have jitter. DirectRunner, which these jobs run on,
tries no bundle again. Other runners do, several times, so that a fault which ends a bundle here is one more pause
there.

## What is tried again, and for how long

* **Tokens are asked for ahead**, when a fifth of their life is left or when Entra says so, and the one at hand serves
  as long as it lives: an outage that ends before it does is noticed by nobody. After a failed refresh the next one is
  30 seconds later.
* **When no token is left**, the endpoint is asked five times, with pauses that begin at half a second and double,
  each between nothing and that. `Retry-After` is kept to the second, and is waited for up to two minutes in all; if
  it asks for more, the error comes at once, and nobody in this process asks again until that time. Resets, stalls of
  more than 20 seconds, 408, 429, 5xx and answers that are no token are all tried again.
* **Requests to Storage** are sent seven times: after resets, 408, 429, 500, 502, 503 and 504. The pauses begin at a
  fifth of a second and double, up to ten, each between half of that and all of it: an outage of six seconds is
  survived. `Retry-After` is kept, and a request that should wait for more than two minutes fails at once. Each
  attempt is authorised anew, so none carries a SAS that ended in the pause.
* **A body that breaks off** is asked for again from the byte it has come to. Six attempts in a row that bring nothing
  are the end; as long as some bytes come, there is none.
* **A slow answer** is one that waits 60 seconds for a byte, or brings less than 64 KiB in 30 seconds of waiting. It
  is given up, and a read goes on from its byte; six slow ones in a row are the end. A request that the service takes
  in slowly has 60 seconds.
* **A claims challenge** leads to one new token with these claims, under `scoping = "bearer"` and for delegation keys.
* **A signature that Storage takes for none**, as when the account's delegation keys are revoked, leads to one new key,
  at most once a minute for each account.
* **A commit** whose answer was lost is sent again: block ids and the commit id tell whether it was this job's.

## What is not

A refusal: a role that is missing, a revoked application, an expired secret, a path outside the grants. It is raised
at once, as the error it is, and recorded. Nor is a job's end tried again: after its deadline everything is refused.

Where the trail cannot be written nothing else is done: bytes that were read are not handed on, and nothing is
committed.

## What the operator does

1. Read the error: it says what was tried, as whom, how often and since when, with Entra's or Storage's code and
   request id, and the fix. `beam-entra doctor` asks the same questions line by line.
2. Mend that, and run the job again. Blocks that were staged are seen by nobody, and Storage drops them after a week;
   what was committed is whole. A write to a prefix that holds an earlier run's blobs is refused, or replaces them
   with `overwrite`.
3. Where no token was left at the end, the trail could not be sealed: the error says so, and `beam-entra audit verify`
   says `not sealed`. When the identity is back and no worker of the job runs any more, `beam-entra audit seal` checks
   the segments and closes it, with the outcome `late`.
4. A job that should outlive longer outages needs tokens that live longer (Entra's are good for 60 to 90 minutes
   unless a policy says otherwise), not more attempts.
"""


def keep(case: Case, seconds: float) -> None:
    """Note how long a case took, for the page."""
    _MEASURED.mkdir(parents=True, exist_ok=True)
    _note(case).write_text(json.dumps({"fault": case.name, "seconds": round(seconds, 2)}), encoding="utf-8")


def rows() -> Iterable[tuple[str, Case]]:
    """Every case, with what the weather is about."""
    for case in (*TOKEN, *LONG, *STORAGE):
        yield ("Storage" if case in STORAGE or case.padding else "token endpoint"), case


def render(measured: Mapping[str, float]) -> str:
    """The page.

    Args:
        measured: Seconds by the case's name.
    """
    lines = ["| where | fault | what happened | time to recover |", "| --- | --- | --- | --- |"]
    for where, case in sorted(rows(), key=lambda row: row[0] == "Storage"):
        lines.append(f"| {where} | {case.name} | {_happened(case)} | {_time(case, measured[case.name])} |")
    return _TEXT.replace("{table}", "\n".join(lines))


def _happened(case: Case) -> str:
    return f"recovered: {case.happened}" if case.error is None else f"`{case.error.__name__}`: {case.happened}"


def _time(case: Case, seconds: float) -> str:
    told = f"{seconds:.1f} s" if seconds >= _AT_ONCE_S else "at once"
    if case.error is not None:
        return "refused at once" if told == "at once" else f"refused after {told}"
    return told if seconds else "nobody noticed"


def _note(case: Case) -> Path:
    return _MEASURED / f"{sha256(case.name.encode()).hexdigest()[:16]}.json"


def _main() -> None:
    missing = [case.name for _, case in rows() if not _note(case).exists()]
    if missing:
        sys.exit(f"not measured yet, run tests/weather first: {'; '.join(missing)}")
    notes = (json.loads(_note(case).read_text(encoding="utf-8")) for _, case in rows())
    PAGE.write_text(render({note["fault"]: note["seconds"] for note in notes}), encoding="utf-8")
    print(f"wrote docs/{PAGE.name}")


if __name__ == "__main__":
    _main()
