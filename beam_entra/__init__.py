"""Apache Beam pipelines whose I/O is scoped to the job's identity.

The names below live in `beam_entra.io` and `beam_entra.launch`; they are looked up when first used, so that the rooms
that need no Beam (paths, access, audit, the command line) load without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from beam_entra.io import (
        Avro,
        BadRecord,
        BatchesToRows,
        Bytes,
        Csv,
        EntraOptions,
        Format,
        JsonLines,
        Lines,
        Parquet,
        ReadAllFromBlob,
        ReadFromBlob,
        Scoped,
        ScopedDoFn,
        Watch,
        WriteToBlob,
        scope_of,
    )
    from beam_entra.launch import JobReport, ScopedPipeline, command_line

__all__ = [
    "Avro",
    "BadRecord",
    "BatchesToRows",
    "Bytes",
    "Csv",
    "EntraOptions",
    "Format",
    "JobReport",
    "JsonLines",
    "Lines",
    "Parquet",
    "ReadAllFromBlob",
    "ReadFromBlob",
    "Scoped",
    "ScopedDoFn",
    "ScopedPipeline",
    "Watch",
    "WriteToBlob",
    "command_line",
    "scope_of",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = "launch" if name in {"JobReport", "ScopedPipeline", "command_line"} else "io"
    return getattr(importlib.import_module(f"beam_entra.{room}"), name)
