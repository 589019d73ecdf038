"""Record batches in Beam: how they travel, and how they become rows with a schema, which Beam passes on as batches.

A PCollection *of* record batches has `pyarrow.RecordBatch` as its element type: each element is a batch. A PCollection
of rows may be *held in* record batches: its element type is a row's, and Beam's batched DoFns, those with
`process_batch(self, batch: pa.RecordBatch)`, get the batches. `BatchesToRows` makes the second of the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Any, Optional

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.coders import Coder, registry
from apache_beam.typehints import native_type_compatibility, typehints
from apache_beam.typehints.batch import BatchConverter
from apache_beam.typehints.row_type import RowTypeConstraint
from apache_beam.utils.timestamp import Timestamp

from beam_entra.errors import ConfigError, Diagnosis, FormatError

__all__ = ["BatchesToRows", "RecordBatchCoder", "RowBatchConverter", "arrow_type", "columns_of", "concrete"]

# Arrow's types and what their values are in a row. The first one of a Python type is what a row's values become.
_TYPES: tuple[tuple[pa.DataType, type], ...] = (
    (pa.string(), str),
    (pa.int64(), int),
    (pa.int64(), np.int64),
    (pa.float64(), float),
    (pa.float64(), np.float64),
    (pa.bool_(), bool),
    (pa.binary(), bytes),
    (pa.int32(), np.int32),
    (pa.int16(), np.int16),
    (pa.int8(), np.int8),
    (pa.float32(), np.float32),
    (pa.large_string(), str),
    (pa.large_binary(), bytes),
)
_INSTANTS = pa.timestamp("us", "UTC")


class RecordBatchCoder(Coder):  # type: ignore[misc]  # Beam's class is untyped
    """Record batches as Arrow's IPC streams of one. A slice is written without the batch that it is of."""

    def encode(self, value: pa.RecordBatch) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, value.schema) as writer:
            writer.write_batch(value)
        encoded: bytes = sink.getvalue().to_pybytes()
        return encoded

    def decode(self, encoded: bytes) -> pa.RecordBatch:
        with pa.ipc.open_stream(pa.py_buffer(encoded)) as reader:
            return reader.read_next_batch()

    def estimate_size(self, value: pa.RecordBatch) -> int:
        size: int = value.nbytes
        return size

    def is_deterministic(self) -> bool:
        """No: batches that are equal may differ in what lies behind their nulls."""
        return False

    def to_type_hint(self) -> type:
        batch: type = pa.RecordBatch
        return batch


registry.register_coder(pa.RecordBatch, RecordBatchCoder)


class RowBatchConverter(BatchConverter):  # type: ignore[misc]  # Beam's class is untyped
    """Between rows and the record batches that hold them."""

    def __init__(self, element_type: RowTypeConstraint) -> None:
        super().__init__(pa.RecordBatch, element_type)
        self._names = [name for name, _ in element_type._fields]
        self._types = [arrow_type(name, type_) for name, type_ in element_type._fields]

    def produce_batch(self, elements: Iterable[Any]) -> pa.RecordBatch:
        rows = list(elements)
        columns = [
            _column([getattr(row, name) for row in rows], type_)
            for name, type_ in zip(self._names, self._types, strict=True)
        ]
        return pa.RecordBatch.from_arrays(columns, names=self._names)

    def explode_batch(self, batch: pa.RecordBatch) -> Iterator[Any]:
        make = self._element_type.user_type
        columns = [_values(column) for column in batch.columns]
        return (make(*values) for values in zip(*columns, strict=True))

    def combine_batches(self, batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
        (batch,) = pa.Table.from_batches(batches).combine_chunks().to_batches()
        return batch

    def get_length(self, batch: pa.RecordBatch) -> int:
        length: int = batch.num_rows
        return length

    def estimate_byte_size(self, batch: pa.RecordBatch) -> int:
        size: int = batch.nbytes
        return size


@BatchConverter.register(name="pyarrow.RecordBatch")  # type: ignore[untyped-decorator]  # Beam's is
def _converter(element_type: Any, batch_type: Any) -> RowBatchConverter:
    if batch_type == typehints.Any:
        raise TypeError("Beam sees no type if the DoFn's module has `from __future__ import annotations`")
    if batch_type is not pa.RecordBatch:
        raise TypeError("the batch type is not pyarrow.RecordBatch")
    if element_type is pa.RecordBatch:
        raise TypeError("each element is a batch already; put BatchesToRows(schema) before a DoFn with process_batch")
    rows = (
        element_type if isinstance(element_type, RowTypeConstraint) else RowTypeConstraint.from_user_type(element_type)
    )
    if rows is None:
        raise TypeError(f"{element_type} is no type of rows with a schema")
    try:
        return RowBatchConverter(rows)
    except ConfigError as error:
        raise TypeError(error.message) from None


class BatchesToRows(beam.PTransform):  # type: ignore[misc]  # Beam's PTransform is untyped
    """Record batches to rows with a schema, for `beam.Select`, `beam.GroupBy` and all else that goes by field names.

        class Amounts(beam.DoFn):
            def process_batch(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]: ...

        batches = p | ReadFromBlob(pattern, JsonLines(schema=schema), batched=True)
        batches | BatchesToRows(schema) | beam.ParDo(Amounts())

    The rows stay in their batches as long as batched DoFns follow, and become single elements where one does not.

    Args:
        schema: The columns of the rows; others are left out. Or a NamedTuple class, of which the rows then are. A
            column that may be null is an `Optional` field; say `nullable=False` where there is none.

    Raises:
        ConfigError: A type has no counterpart in rows.
    """

    def __init__(self, schema: pa.Schema | type) -> None:
        super().__init__()
        if isinstance(schema, pa.Schema):
            fields = [(field.name, _row_type(field)) for field in schema]
            self._rows = RowTypeConstraint.from_fields(fields)
            self._columns = list(zip(schema.names, schema.types, strict=True))
        else:
            self._rows = RowTypeConstraint.from_user_type(schema)
            if self._rows is None:
                raise ConfigError(
                    f"{schema!r} is neither a schema nor a NamedTuple class",
                    Diagnosis(hint="give a pyarrow.Schema, or a class with typed fields: class Order(NamedTuple): ..."),
                )
            self._columns = [(name, arrow_type(name, type_)) for name, type_ in self._rows._fields]

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[Any]:
        return batches | "Rows" >> beam.ParDo(_HoldRows(self._columns, self._rows)).with_output_types(self._rows)


class _HoldRows(beam.DoFn):  # type: ignore[misc]  # Beam's DoFn is untyped
    """Batches as elements to batches of elements."""

    def __init__(self, columns: list[tuple[str, pa.DataType | None]], rows: RowTypeConstraint) -> None:
        self._columns = columns
        self._rows = rows

    @beam.DoFn.yields_batches  # type: ignore[untyped-decorator]  # Beam's is
    def process(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        if batch.num_rows:
            yield columns_of(batch, self._columns)

    def infer_output_type(self, input_type: Any) -> RowTypeConstraint:
        return self._rows

    def get_output_batch_type(self, input_element_type: Any) -> type:
        batch: type = pa.RecordBatch
        return batch


def columns_of(batch: pa.RecordBatch, columns: Sequence[tuple[str, pa.DataType | None]]) -> pa.RecordBatch:
    """Some columns of a batch, in this order and of these types, where values allow it.

    Raises:
        FormatError: One is not there, or is of another type.
    """
    arrays = []
    for name, type_ in columns:
        if batch.schema.get_field_index(name) < 0:
            raise FormatError(
                f"a record batch has no column {name}", Diagnosis(hint=f"it has {', '.join(batch.schema.names)}")
            )
        column = batch.column(name)
        if type_ is not None and column.type != type_:
            try:
                column = column.cast(type_)
            except pa.ArrowException as error:
                raise FormatError(
                    f"the column {name} of a record batch is {column.type}, not {type_}: {error}",
                    Diagnosis(hint="read with that schema: JsonLines(schema=...)"),
                ) from None
        arrays.append(column)
    return pa.RecordBatch.from_arrays(arrays, names=[name for name, _ in columns])


def _row_type(field: pa.Field) -> Any:
    """What a row holds of a column."""
    type_ = _python_type(field.name, field.type)
    return Optional[type_] if field.nullable else type_  # noqa: UP045 - built at run time


def _python_type(name: str, type_: pa.DataType) -> Any:
    if pa.types.is_timestamp(type_):
        return Timestamp
    if pa.types.is_decimal(type_):
        return Decimal
    if pa.types.is_list(type_):
        return Sequence[_row_type(type_.value_field)]  # type: ignore[misc]  # built at run time
    for arrow, python in _TYPES:
        if arrow == type_:
            return python
    raise _no_counterpart(name, type_)


def concrete(type_: Any) -> tuple[Any, bool]:
    """A field's type as Beam has it, and whether it may be None."""
    type_ = native_type_compatibility.convert_to_beam_type(type_)
    if typehints.is_nullable(type_):
        return typehints.get_concrete_type_from_nullable(type_), True
    return type_, False


def arrow_type(name: str, type_: Any) -> pa.DataType | None:
    """What a column is of a row's field; None: as its values say.

    Raises:
        ConfigError: There is no such column.
    """
    type_, _ = concrete(type_)
    if type_ is Decimal:
        return None
    if type_ is Timestamp:
        return _INSTANTS
    if isinstance(type_, (typehints.SequenceTypeConstraint, typehints.ListConstraint)):
        inner = arrow_type(name, type_.inner_type)
        return None if inner is None else pa.list_(inner)
    for arrow, python in _TYPES:
        if python is type_:
            return arrow
    raise _no_counterpart(name, type_)


def _no_counterpart(name: str, type_: Any) -> ConfigError:
    return ConfigError(
        f"the field {name} is of type {type_}, which is not both a column's and a row's",
        Diagnosis(hint="cast the column, leave it out, or work on the batches themselves"),
    )


def _column(values: list[Any], type_: pa.DataType | None) -> pa.Array:
    if type_ == _INSTANTS:
        values = [None if value is None else value.micros for value in values]
    return pa.array(values, type_)


def _values(column: pa.Array) -> list[Any]:
    if pa.types.is_timestamp(column.type):
        return [
            None if value is None else Timestamp(micros=value)
            for value in column.cast(_INSTANTS).cast(pa.int64()).to_pylist()
        ]
    values: list[Any] = column.to_pylist()
    return values
