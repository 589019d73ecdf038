"""Settling: what is to be committed is in a checkpoint before it is.

A runner that goes back to a checkpoint computes again what came after it, and stages it again, to other blocks. Had it
been committed meanwhile, the two could not be told from a loss or a doubling. So where a runner has checkpoints, a
group waits until two of them are complete: that one is may be heard of a group that came while it was being made, but
then the second one has it. After that the same group, with the same blocks, is what every attempt commits, and all but
the first find it done.

That a checkpoint is complete is what a bundle's finalizer tells. Nothing is committed in a finalizer, whose errors
nobody hears; it only takes a note, in the process. A note that is lost with its process is waited for anew.

What a checkpoint ends of a bundle has to be in it, too, and on its way before the watermark is: see
`flush_before_checkpoints`.
"""

from __future__ import annotations

import argparse
import logging
import threading
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.coders import Coder, PickleCoder
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.utils.timestamp import Duration

from beam_entra.errors import ConfigError, Diagnosis
from beam_entra.io.claim import OneClaim
from beam_entra.io.dofn import Scoped, ScopedDoFn
from beam_entra.io.options import EntraOptions

__all__ = ["flush_before_checkpoints", "settled"]

_LOG = logging.getLogger(__name__)
_CHECKPOINTS = 2
_LOOKS = 2  # an interval between checkpoints
_SHORTEST_S, _LONGEST_S = 0.2, 10.0  # from one look to the next
_PATIENCE_S, _PATIENCE = 60.0, 10  # at least; in intervals


class Settling(NamedTuple):
    """A restriction: how far the waiting for one group has come.

    Attributes:
        note: What the finalizer notes; empty before the first one.
        checkpoints: Complete ones that have been heard of.
        since_s: When the waiting began, in seconds of the epoch.
        over: The group has been given.
    """

    note: str = ""
    checkpoints: int = 0
    since_s: float = 0.0
    over: bool = False


_OVER = Settling(over=True)


class _Notes:
    """The notes of one process: which are expected, and which have been taken."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: dict[str, bool] = {}

    def expect(self) -> str:
        note = uuid.uuid4().hex
        with self._lock:
            self._taken[note] = False
        return note

    def take(self, note: str) -> None:
        with self._lock:
            if note in self._taken:
                self._taken[note] = True

    def taken(self, note: str) -> bool | None:
        """Whether it was, told once; None if nobody expects it here."""
        with self._lock:
            found = self._taken.get(note)
            if found:
                del self._taken[note]
            return found

    def forget(self, note: str) -> None:
        with self._lock:
            self._taken.pop(note, None)


_NOTES = _Notes()


class _Settle(ScopedDoFn, RestrictionProvider):  # type: ignore[misc]  # Beam's class is untyped
    """Gives each element once it is in a checkpoint."""

    def __init__(self, interval_s: float) -> None:
        self._again_s = min(max(interval_s / _LOOKS, _SHORTEST_S), _LONGEST_S)
        self._patience_s = max(_PATIENCE * interval_s, _PATIENCE_S)

    def initial_restriction(self, _element: Any) -> Settling:
        return Settling()

    def create_tracker(self, restriction: Settling) -> OneClaim:
        return OneClaim(restriction, _OVER, unfinished="the group has not been given")

    def restriction_size(self, _element: Any, _restriction: Settling) -> int:
        return 1

    def restriction_coder(self) -> Coder:
        return PickleCoder()

    def process(
        self, element: Any, finalizer: Any = beam.DoFn.BundleFinalizerParam, tracker: Any = beam.DoFn.RestrictionParam()
    ) -> Iterator[Any]:
        at: Settling = tracker.current_restriction()
        if at.over:
            return
        session = self.session()
        now_s = session.clock().timestamp()
        since_s = at.since_s or now_s
        taken = _NOTES.taken(at.note)
        checkpoints = at.checkpoints + bool(taken)
        late = now_s - since_s > self._patience_s
        if checkpoints >= _CHECKPOINTS or late:
            if tracker.try_claim(_OVER):
                _NOTES.forget(at.note)
                if late:
                    _LOG.warning("no checkpoint for %.0f s: what came is committed without one", now_s - since_s)
                yield element
            return
        note = at.note
        if taken is not False:
            note = _NOTES.expect()
            finalizer.register(lambda: _NOTES.take(note))
        elif now_s - since_s < self._again_s / 2:  # resumed sooner than asked
            session.pause(self._again_s / 2)
        if tracker.try_claim(Settling(note, checkpoints, since_s)):
            tracker.defer_remainder(Duration(self._again_s))


def settled(groups: beam.PCollection[Any]) -> beam.PCollection[Any]:
    """The same groups, each in a checkpoint if the runner is one that makes them and was told to.

    Flink is, with `--checkpointing_interval`. In-process runners make none, and Dataflow gives a group to every attempt
    as it gave it to the first.

    Raises:
        ConfigError: The interval is no number.
    """
    options = groups.pipeline.options.get_all_options(retain_unknown_options=True)
    given = options.get("checkpointing_interval") or 0
    try:
        interval_ms = int(given)
    except ValueError:
        raise ConfigError(
            f"--checkpointing_interval={given} is no number", Diagnosis(hint="milliseconds: 30000")
        ) from None
    return groups if interval_ms <= 0 else groups | "Settle" >> Scoped(_Settle(interval_ms / 1000))


class _FlinkOptions(EntraOptions):
    """A flag of Beam's runner for Flink, which is in Java.

    Not derived from PipelineOptions at first hand: Beam would add it to every parser, beside a user's own of that name.
    """

    @classmethod
    def _add_argparse_args(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--finish_bundle_before_checkpointing", action="store_true", default=None)


def flush_before_checkpoints(pipeline: beam.Pipeline) -> None:
    """Have Flink's runner end its bundles before a checkpoint, and not in it.

    Else it keeps what a bundle gives at its end until the step's next bundle or watermark. Where none follows, as
    behind the one element that a watch begins with, that is for ever; and a watermark can go ahead of it, so that it is
    late.

    Who has set it otherwise keeps that, and is warned.
    """
    from apache_beam.runners.portability.flink_runner import FlinkRunner  # noqa: PLC0415  # a batch needs it not
    from apache_beam.runners.portability.portable_runner import PortableRunner  # noqa: PLC0415

    # Those of Spark and Prism derive from it, too; they do not know the option, and would say so.
    if type(pipeline.runner) not in (PortableRunner, FlinkRunner):
        return
    options = pipeline.options.view_as(_FlinkOptions)
    if options.finish_bundle_before_checkpointing is None:
        options.finish_bundle_before_checkpointing = True
    elif str(options.finish_bundle_before_checkpointing).lower() == "false":
        _LOG.warning(
            "finish_bundle_before_checkpointing is false: on Flink, what a checkpoint ends can be kept back for ever, "
            "or be late, in a job with a watch or windows; leave the option out"
        )
