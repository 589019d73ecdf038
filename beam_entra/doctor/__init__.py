"""The doctor: would this job, launched here and now, be let in everywhere? Line by line, with the fix.

* what is said: finding.py
* what is asked: checks.py lists the checks in order; network.py, identity.py, storage.py are they
* how it is shown: show.py, for people and as JSON

Below `io` and `cli`: it knows nothing of Beam, and `--preflight` and `beam-entra doctor` run the same checks.
"""

from __future__ import annotations

from beam_entra.doctor.checks import Examination
from beam_entra.doctor.finding import Finding, Mark
from beam_entra.doctor.show import Printer, as_json

__all__ = ["Examination", "Finding", "Mark", "Printer", "as_json"]
