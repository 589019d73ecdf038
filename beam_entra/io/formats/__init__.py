"""How records lie in a blob: `Lines`, `JsonLines`, `Csv`, and the bases for one of your own."""

from __future__ import annotations

from beam_entra.io.formats.avro import Avro
from beam_entra.io.formats.base import BlobFormat, BlockFormat, FileFormat, FileWriter, Format, as_mapping, batch_of
from beam_entra.io.formats.csv import Csv
from beam_entra.io.formats.json_lines import JsonLines
from beam_entra.io.formats.lines import Lines

__all__ = [
    "Avro",
    "BlobFormat",
    "BlockFormat",
    "Csv",
    "FileFormat",
    "FileWriter",
    "Format",
    "JsonLines",
    "Lines",
    "as_mapping",
    "batch_of",
]
