"""Token ids of many sequences, end to end in a temporary file: a split of any size costs little memory."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterable, Sequence
from typing import IO, Any, overload

import numpy as np
from tokenizers import Encoding

from minipeft.data.tokenizer import TokenIds
from minipeft.errors import MinipeftError


class TokenTable(Sequence[TokenIds]):
    """Sequences of token ids, read-only; sequence i is tokens offsets[i] to offsets[i + 1].

    The tokens (int32) and, where asked for, bert's token types (int8) lie in the folder for temporary files, under no
    name, and are mapped into memory: the system drops what it has no room for.
    Raises MinipeftError where the temporary files cannot be written.
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
        """Tokens of each sequence."""
        return array("i", np.diff(np.frombuffer(self.offsets, np.int64)).astype(np.int32).tobytes())

    @overload
    def __getitem__(self, index: int) -> TokenIds: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenIds]: ...
    def __getitem__(self, index: int | slice) -> TokenIds | list[TokenIds]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]  # raises IndexError, and counts from the end
        start, end = self.offsets[i], self.offsets[i + 1]
        ids = self.ids[start:end].tolist()
        return TokenIds(ids, self.types[start:end].tolist() if len(self.types) else [0] * len(ids))


def _mapped(file: IO[bytes], dtype: type[np.generic]) -> np.ndarray[Any, Any]:
    file.flush()
    empty = file.seek(0, 2) == 0  # which no system maps
    return np.zeros(0, dtype) if empty else np.asarray(np.memmap(file, dtype, mode="r"))
