"""Token ids of many sequences as one NumPy table, in memory or memory-mapped."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import IO, Any, Protocol

import numpy as np
from tokenizers import Encoding

from minipeft.errors import MinipeftError, short_repr

Array = np.ndarray[Any, Any]


# A protocol and not EncoderConfig, because data/ stands below model/ and does not import it.
class PackingConfig(Protocol):
    """The fields of a model config that token ids are checked with, packed and padded; EncoderConfig has them."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def pad_token_id(self) -> int: ...
    @property
    def type_vocab_size(self) -> int: ...
    @property
    def position_offset(self) -> int: ...
    @property
    def max_length(self) -> int: ...
    @property
    def num_labels(self) -> int: ...
    @property
    def problem_type(self) -> str | None: ...


@dataclass(frozen=True, eq=False)
class TokenTable:
    """Sequences of token ids; sequence i is the tokens starts[i] to starts[i] + lengths[i].

    Attributes:
        ids: (num_tokens,), int64, or int32 if they are memory-mapped.
        types: (num_tokens,), BERT's token types; None if all are 0.
        starts: (num_sequences,), int64.
        lengths: (num_sequences,), int64, tokens of each sequence.
    """

    ids: Array
    types: Array | None
    starts: Array
    lengths: Array

    @classmethod
    def from_sequences(cls, sequences: Iterable[Sequence[int] | Encoding]) -> TokenTable:
        """Return a table in memory; a sequence without `type_ids` has token type 0.

        Raises:
            MinipeftError: for a sequence that is not a list of token ids.
        """
        rows = [(getattr(one, "ids", one), getattr(one, "type_ids", None)) for one in sequences]
        ids = [_integers(row, number) for number, (row, _) in enumerate(rows)]
        lengths = np.array([len(row) for row in ids], dtype=np.int64)
        types = None
        if any(row_types is not None and any(row_types) for _, row_types in rows):
            types = _concatenate([np.asarray(t or [0] * len(row)) for (_, t), row in zip(rows, ids, strict=True)])
        return cls(_concatenate(ids), types, starts_of(lengths), lengths)

    @classmethod
    def from_chunks(cls, chunks: Iterable[TokenTable], with_types: bool) -> TokenTable:
        """Return the sequences of all chunks as one table, memory-mapped from unnamed temporary files.

        The operating system can drop the pages of the files when memory is short: 16 bytes per sequence stay.
        """
        lengths = [np.zeros(0, np.int64)]
        try:
            with tempfile.TemporaryFile() as ids, tempfile.TemporaryFile() as types:
                for chunk in chunks:
                    chunk.ids.astype(np.int32).tofile(ids)
                    if with_types:
                        zeros = np.zeros(len(chunk.ids), np.int8)
                        (zeros if chunk.types is None else chunk.types.astype(np.int8)).tofile(types)
                    lengths.append(chunk.lengths)
                all_lengths = np.concatenate(lengths)
                mapped_types = _memory_map(types, np.int8) if with_types else None
                return cls(_memory_map(ids, np.int32), mapped_types, starts_of(all_lengths), all_lengths)
        except OSError as error:
            raise MinipeftError(
                f"{tempfile.gettempdir()}: no room for the tokens ({error.strerror or error}). "
                "Free space, or let TMPDIR name another folder."
            ) from None

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Array:
        """Return the token ids of a sequence."""
        start = self.starts[index]
        return self.ids[start : start + self.lengths[index]]

    def take(self, indices: Any) -> TokenTable:
        """Return the sequences at `indices`; their tokens are not copied."""
        return TokenTable(self.ids, self.types, self.starts[indices], self.lengths[indices])

    def concatenate(self) -> tuple[Array, Array | None]:
        """Return the sequences end to end: their token ids and token types, (total_tokens,), int64."""
        tokens = ranges(self.starts, self.lengths)
        types = None if self.types is None else self.types[tokens].astype(np.int64)
        return self.ids[tokens].astype(np.int64), types


def starts_of(lengths: Array) -> Array:
    """Return where each of several sequences starts that lie end to end."""
    return np.cumsum(lengths) - lengths


def ranges(starts: Array, lengths: Array) -> Array:
    """Return the numbers starts[i] to starts[i] + lengths[i] - 1 for each i, end to end."""
    return np.arange(lengths.sum()) + np.repeat(starts - starts_of(lengths), lengths)


def _integers(ids: Any, number: int) -> Array:
    """Return the ids of sequence `number` as an array."""
    try:
        array = np.asarray(ids)
    except (TypeError, ValueError, RuntimeError):  # lists in it; a tensor on another device
        array = np.zeros((), dtype=object)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and len(array)):
        raise MinipeftError(f"sequence {number} is {short_repr(ids)}, not a list of token ids; encode the text first")
    return array


def _concatenate(rows: list[Array]) -> Array:
    return np.concatenate([np.zeros(0, np.int64), *rows], dtype=np.int64, casting="unsafe")


def _memory_map(file: IO[bytes], dtype: type[np.generic]) -> Array:
    file.flush()
    empty = file.seek(0, 2) == 0  # an empty file cannot be mapped
    return np.zeros(0, dtype) if empty else np.asarray(np.memmap(file, dtype, mode="r"))
