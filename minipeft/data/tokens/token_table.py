"""Token ids of a split in memory-mapped temporary files: a split of any size needs little memory."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterable, Sequence
from typing import IO, Any, overload

import numpy as np
from tokenizers import Encoding

from minipeft.data.tokens.tokenizer import TokenIds
from minipeft.errors import MinipeftError


class TokenTable(Sequence[TokenIds]):
    """Read-only sequences of token ids; sequence i is tokens offsets[i] to offsets[i + 1].

    Token ids (int32) and, optionally, BERT's token types (int8) are memory-mapped from unnamed temporary files, so
    that the operating system can drop pages when memory is short.

    Args:
        encodings: The encoded texts.
        with_types: Whether to store token types.

    Raises:
        MinipeftError: if the temporary files cannot be written.
    """

    def __init__(self, encodings: Iterable[Encoding], with_types: bool) -> None:
        self.offsets = array("q", [0])
        try:
            with tempfile.TemporaryFile() as ids, tempfile.TemporaryFile() as types:
                for encoding in encodings:
                    array("i", encoding.ids).tofile(ids)
                    if with_types:
                        array("b", encoding.type_ids).tofile(types)
                    self.offsets.append(self.offsets[-1] + len(encoding.ids))
                self.ids = _mapped(ids, np.int32)
                self.types = _mapped(types, np.int8)
        except OSError as error:
            raise MinipeftError(
                f"{tempfile.gettempdir()}: no room for the tokens ({error.strerror or error}); "
                "free space, or let TMPDIR name another folder"
            ) from None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Sequence[int]:
        """The number of tokens of each sequence."""
        return array("i", np.diff(np.frombuffer(self.offsets, np.int64)).astype(np.int32).tobytes())

    @overload
    def __getitem__(self, index: int) -> TokenIds: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenIds]: ...
    def __getitem__(self, index: int | slice) -> TokenIds | list[TokenIds]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]  # raises IndexError, and accepts negative indices
        start, end = self.offsets[i], self.offsets[i + 1]
        ids = self.ids[start:end].tolist()
        return TokenIds(ids, self.types[start:end].tolist() if len(self.types) else [0] * len(ids))


def _mapped(file: IO[bytes], dtype: type[np.generic]) -> np.ndarray[Any, Any]:
    file.flush()
    empty = file.seek(0, 2) == 0  # an empty file cannot be mapped
    return np.zeros(0, dtype) if empty else np.asarray(np.memmap(file, dtype, mode="r"))
