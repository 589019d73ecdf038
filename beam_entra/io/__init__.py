"""What Beam sees: options, reading, writing, formats, and the base for connectors."""

from __future__ import annotations

from beam_entra.io.batches import BatchesToRows
from beam_entra.io.dofn import METRICS_NAMESPACE, Scoped, ScopedDoFn, scope_of
from beam_entra.io.filesystem import BlobFileSystem
from beam_entra.io.formats import Avro, Bytes, Csv, Format, JsonLines, Lines, Parquet
from beam_entra.io.options import EntraOptions
from beam_entra.io.read import BadRecord, ReadAllFromBlob, ReadFromBlob
from beam_entra.io.watch import Watch
from beam_entra.io.write import WriteToBlob

__all__ = [
    "METRICS_NAMESPACE",
    "Avro",
    "BadRecord",
    "BatchesToRows",
    "BlobFileSystem",
    "Bytes",
    "Csv",
    "EntraOptions",
    "Format",
    "JsonLines",
    "Lines",
    "Parquet",
    "ReadAllFromBlob",
    "ReadFromBlob",
    "Scoped",
    "ScopedDoFn",
    "Watch",
    "WriteToBlob",
    "scope_of",
]
