"""The rows of a parquet file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from minipeft.data.tables.remote import local_copy
from minipeft.data.tables.table import Table
from minipeft.errors import MinipeftError, first_line

LARGEST_COLUMN = 1 << 30  # bytes of a column in one row group of a parquet file, uncompressed


def parquet_table(path: str) -> Table:
    """The rows of a parquet file, a batch in memory at once."""
    from pyarrow import parquet

    local = local_copy(path)
    try:
        schema = parquet.read_schema(local)
        columns = tuple(schema.names)
    except Exception as error:  # the library raises exceptions of many kinds
        raise MinipeftError(f"{path}: not readable as parquet ({first_line(error)}); write the file again") from None

    def read(names: Sequence[str]) -> Iterator[tuple[str, Sequence[Any]]]:
        row = 1  # the next one
        try:
            # A text that the file stores once may occur in a million rows: a dictionary keeps it once in memory, too.
            plain = [name for name in names if not schema.field(name).type.num_fields]  # not lists
            file = parquet.ParquetFile(local, buffer_size=1 << 20, read_dictionary=plain)
            for group in range(file.metadata.num_row_groups):
                for chunk in map(file.metadata.row_group(group).column, range(file.metadata.num_columns)):
                    if chunk.path_in_schema.split(".")[0] in names and chunk.total_uncompressed_size > LARGEST_COLUMN:
                        raise MinipeftError(
                            f"{path}: column {chunk.path_in_schema!r} has {chunk.total_uncompressed_size:,} bytes in "
                            f"row group {group}; write the file again with smaller row groups"
                        )
            for batch in file.iter_batches(1024, columns=list(names), use_threads=False):
                for values in zip(*(_values(batch[name]) for name in names), strict=True):
                    yield f"{path}, row {row}", values
                    row += 1
        except MinipeftError:
            raise
        except Exception as error:
            raise MinipeftError(
                f"{path}, from row {row} on: not readable as parquet ({first_line(error)}); write the file again"
            ) from None

    return Table(path, columns, read)


def _values(column: Any) -> list[Any]:
    """Convert a pyarrow array to a list, in which equal values of a dictionary are one object."""
    if not hasattr(column, "dictionary"):
        return column.to_pylist()
    indices = column.indices.to_pylist()
    by_index = {index: column.dictionary[index].as_py() for index in set(indices) - {None}}
    return [by_index.get(index) for index in indices]
