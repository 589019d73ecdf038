"""How often Beam's sampling thread looks: each bundle's end waits for it."""

from __future__ import annotations

from typing import Any

import apache_beam as beam
import pytest
from apache_beam.runners.worker.statesampler import DEFAULT_SAMPLING_PERIOD_MS, StateSampler, get_current_tracker

from beam_entra.launch import sampling
from beam_entra.launch.sampling import LONGEST_MS, sample_often


def period_ms(_element: object) -> int:
    """Of the bundle that is at work."""
    found: int = get_current_tracker().sampling_period_ms
    return found


def test_a_scoped_pipelines_bundles_do_not_wait_long(lake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever they would as Beam has it."""
    monkeypatch.setattr(StateSampler.__init__, "__defaults__", (DEFAULT_SAMPLING_PERIOD_MS,))

    def look(_element: object) -> None:
        assert period_ms(None) == LONGEST_MS < DEFAULT_SAMPLING_PERIOD_MS

    with lake.pipeline() as p:
        p | beam.Create([1]) | beam.Map(look)


def test_a_beam_that_is_made_otherwise_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other parameter stands there is not known."""

    class Other:
        def __init__(self, prefix: str, longest_ms: int = 7) -> None: ...

    monkeypatch.setattr(sampling, "StateSampler", Other)
    sample_often()
    assert Other.__init__.__defaults__ == (7,)
