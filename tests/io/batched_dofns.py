"""Batched DoFns. Beam reads their annotations, which `from __future__ import annotations` would make texts of."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc


class Sale(NamedTuple):
    """A row's class."""

    key: str
    amount: int


class Sums(beam.DoFn):
    """A batched DoFn: the sum of each batch, and how many rows it had."""

    @beam.DoFn.yields_elements
    def process_batch(self, batch: pa.RecordBatch) -> Iterator[tuple[int, int]]:
        """Batches in, elements out."""
        assert isinstance(batch, pa.RecordBatch)
        yield pc.sum(batch.column("amount")).as_py(), batch.num_rows


class Doubled(beam.DoFn):
    """A batched DoFn from batches to batches."""

    def process_batch(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Batches in, batches out."""
        yield batch.set_column(batch.schema.get_field_index("amount"), "amount", pc.multiply(batch["amount"], 2))

    def infer_output_type(self, input_type: Any) -> Any:
        """Rows as they came."""
        return input_type
