"""How records lie in a blob: `Lines`, `JsonLines`, `Csv`, and the bases for one of your own."""

from __future__ import annotations

from beam_entra.io.formats.avro import Avro
from beam_entra.io.formats.base import BlobFormat, BlockFormat, FileFormat, FileWriter, Format, as_mapping, batch_of
from beam_entra.io.formats.csv import Csv
from beam_entra.io.formats.json_lines import JsonLines
from beam_entra.io.formats.lines import Lines
from beam_entra.io.formats.parquet import Parquet
from beam_entra.io.formats.whole import Bytes

__all__ = [
    "Avro",
    "BlobFormat",
    "BlockFormat",
    "Bytes",
    "Csv",
    "FileFormat",
    "FileWriter",
    "Format",
    "JsonLines",
    "Lines",
    "Parquet",
    "as_mapping",
    "batch_of",
]
