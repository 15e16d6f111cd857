"""The rows of a parquet file."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from minipeft.data.tables.remote_tables.remote import local_copy
from minipeft.data.tables.table import Table, name_class
from minipeft.errors import MinipeftError, first_line
from minipeft.files import parse_json

LARGEST_COLUMN = 1 << 30  # bytes of a column in one row group of a parquet file, uncompressed
BATCH_ROWS, BATCH_BYTES = 1024, 1 << 26  # limits of the rows that are in memory at once


def parquet_table(path: str) -> Table:
    """Return the table of a parquet file."""
    from pyarrow import parquet

    local = local_copy(path)
    try:
        schema = parquet.read_schema(local)
        classes = _declared_classes(schema)
    except Exception as error:  # the library raises exceptions of many kinds
        raise MinipeftError(f"{path}: not readable as parquet ({first_line(error)}); write the file again") from None

    def read(names: Sequence[str]) -> Iterator[tuple[str, Sequence[Any]]]:
        row = 1  # the next one
        try:
            # A text that the file stores once may occur in a million rows: a dictionary keeps it once in memory, too.
            flat = [name for name in names if not schema.field(name).type.num_fields]  # no lists
            file = parquet.ParquetFile(local, buffer_size=1 << 20, read_dictionary=flat)
            _check_sizes(path, file.metadata, names)
            for batch in file.iter_batches(BATCH_ROWS, columns=list(names), use_threads=False):
                for values in _rows(batch.select(list(names)), classes, f"{path}, from row {row} on"):
                    yield f"{path}, row {row}", values
                    row += 1
        except MinipeftError:
            raise
        except Exception as error:
            raise MinipeftError(
                f"{path}, from row {row} on: not readable as parquet ({first_line(error)}); write the file again"
            ) from None

    return Table(path, tuple(schema.names), read, classes)


def _declared_classes(schema: Any) -> dict[str, tuple[str, ...]]:
    """Return the class names of the columns that `datasets` has written as ClassLabel, or as lists of them."""
    classes = {}
    with suppress(ValueError, LookupError, TypeError, AttributeError):  # no metadata of `datasets`
        for name, feature in parse_json(schema.metadata[b"huggingface"])["info"]["features"].items():
            feature = feature.get("feature", feature)
            if feature.get("_type") == "ClassLabel" and all(isinstance(label, str) for label in feature["names"]):
                classes[name] = tuple(feature["names"])
    return {name: names for name, names in classes.items() if name in schema.names}


def _check_sizes(path: str, metadata: Any, names: Sequence[str]) -> None:
    """Raise MinipeftError for a column of `names` that does not fit into memory."""
    for group in range(metadata.num_row_groups):
        if metadata.row_group(group).total_byte_size <= LARGEST_COLUMN:
            continue  # pyarrow 26 ends the process where the metadata of a column is damaged
        for chunk in map(metadata.row_group(group).column, range(metadata.num_columns)):
            if chunk.path_in_schema.split(".")[0] in names and chunk.total_uncompressed_size > LARGEST_COLUMN:
                raise MinipeftError(
                    f"{path}: column {chunk.path_in_schema!r} has {chunk.total_uncompressed_size:,} bytes in "
                    f"row group {group}; write the file again with smaller row groups"
                )


def _rows(batch: Any, classes: Mapping[str, tuple[str, ...]], place: str) -> Iterator[Sequence[Any]]:
    """Yield the values of each row of an Arrow batch; the longest texts of a dictionary are decoded a few at once."""
    import pyarrow
    import pyarrow.compute as pc

    dictionaries = [column.dictionary for column in batch.columns if pyarrow.types.is_dictionary(column.type)]
    longest = max((pc.max(pc.binary_length(texts)).as_py() or 1 for texts in dictionaries), default=1)
    step = max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, longest)))
    for start in range(0, batch.num_rows, step):
        values = []
        for name, column in zip(batch.schema.names, batch.slice(start, step).columns, strict=True):
            plain = column.dictionary_decode() if pyarrow.types.is_dictionary(column.type) else column
            names = classes.get(name)
            found = plain.to_pylist()
            values.append([name_class(index, names, place) for index in found] if names else found)
        yield from zip(*values, strict=True)
