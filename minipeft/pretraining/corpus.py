"""Text for pretraining → blocks of tokens, masked again each time they are used."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from tokenizers import ByteLevelBPETokenizer, processors
from torch import Tensor

from minipeft.data.batches.packing import PackedBatch
from minipeft.data.tables.lines import ending_of
from minipeft.data.tables.open_table import ENDINGS, open_table
from minipeft.data.tokens.special_tokens import ROBERTA_TOKENS
from minipeft.data.tokens.tokenizer import Tokenizer
from minipeft.errors import MinipeftError, short_repr

# Liu et al. 2019, section 2.2: fraction of all tokens, then fractions of the masked ones
MASKED, REPLACED_BY_MASK, REPLACED_AT_RANDOM = 0.15, 0.8, 0.1
CHUNK_LINES = 10_000  # that are tokenized at once
ROBERTA_SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def read_texts(paths: Sequence[str]) -> Iterator[str]:
    """Yield the lines of text files, or the column "text" of jsonl and other tables, without empty ones."""
    for path in paths:
        table = open_table(path, None if ending_of(path) in ENDINGS else "txt")
        for place, (text,) in table.read(["text"]):
            if not isinstance(text, str):
                raise MinipeftError(f"{place}: text is {short_repr(text)}, not a text. Fix or remove the line.")
            if text.strip():
                yield text.strip()


def train_tokenizer(lines: Iterable[str], vocab_size: int, folder: Path) -> Tokenizer:
    """Train a byte-level BPE tokenizer and save it in `folder`.

    Text is lower-cased, so that a small vocabulary needs one entry per word instead of two.

    Reference: Sennrich et al. 2016; on bytes, Radford et al. 2019.
    """
    bpe = ByteLevelBPETokenizer(add_prefix_space=True, lowercase=True, unicode_normalizer="nfc")
    bpe.train_from_iterator(
        iter(lines), vocab_size, min_frequency=0, show_progress=False, special_tokens=[*ROBERTA_SPECIALS]
    )
    tokenizer = tokenizers.Tokenizer.from_str(bpe.to_str())
    first, last = (ROBERTA_SPECIALS.index(token) for token in ("<s>", "</s>"))
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", last), ("<s>", first), add_prefix_space=False)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"model_max_length": 512, "model_input_names": ["input_ids", "attention_mask"], **ROBERTA_TOKENS}
    trained = Tokenizer(tokenizer, folder, settings)
    trained.save(folder)
    return trained


def tokenize_lines(lines: Iterator[str], tokenizer: Tokenizer) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the token ids of all lines, int32, and offsets: line i is tokens offsets[i] to offsets[i + 1]."""
    tokenizer.tokenizer.no_truncation()
    token_ids, lengths = [np.zeros(0, np.int32)], [0]
    while chunk := list(islice(lines, CHUNK_LINES)):
        for encoding in tokenizer.tokenizer.encode_batch_fast(chunk, add_special_tokens=False):
            token_ids.append(np.array(encoding.ids, dtype=np.int32))
            lengths.append(len(encoding.ids))
    return np.concatenate(token_ids), np.cumsum(lengths, dtype=np.int64)


@dataclass(frozen=True)
class TokenizedText:
    """Lines of text as one array of token ids; line i is tokens offsets[i] to offsets[i + 1]; no special tokens."""

    tokens: np.ndarray[Any, Any]
    offsets: np.ndarray[Any, Any]
    start_id: int
    end_id: int

    def blocks(self, length: int) -> list[tuple[int, int]]:
        """Divide the lines into blocks of `length` tokens, including <s> and </s>.

        A line that does not fit starts the next block, unless the present block is less than 75 % full: then the
        line is cut.

        Returns:
            (first token, last token + 1) of each block.
        """
        room = length - 2
        blocks: list[tuple[int, int]] = []
        start = end = 0
        for line_end in self.offsets[1:].tolist():
            while line_end - start > room:
                if end - start < 0.75 * room:
                    end = start + room
                blocks.append((start, end))
                start = end
            end = line_end
        if end > start:
            blocks.append((start, end))
        return blocks

    def block(self, start: int, end: int) -> list[int]:
        """Return the token ids of a block, with <s> and </s>."""
        return [self.start_id, *self.tokens[start:end].tolist(), self.end_id]


def mask(batch: PackedBatch, tokenizer: Tokenizer) -> tuple[PackedBatch, Tensor, Tensor]:
    """Mask random tokens of a batch for masked-language modeling, with torch's default generator.

    Returns:
        (the masked batch, indices of the masked tokens, their original ids).

    Reference: Devlin et al. 2019, section 3.1; Liu et al. 2019, section 4.1.
    """
    special = torch.tensor(sorted(tokenizer.special_token_ids))
    chance = torch.rand(batch.total_tokens)
    masked = ((chance < MASKED) & ~torch.isin(batch.input_ids, special)).nonzero().flatten()
    if not len(masked):  # in a short batch possibly none; a loss needs one target
        masked = (~torch.isin(batch.input_ids, special)).nonzero().flatten()[:1]
    targets = batch.input_ids[masked]
    chance = torch.rand(len(masked))
    replacement = torch.where(chance < REPLACED_BY_MASK, tokenizer.mask_token_id, targets)
    at_random = (chance >= REPLACED_BY_MASK) & (chance < REPLACED_BY_MASK + REPLACED_AT_RANDOM)
    replacement = torch.where(at_random, torch.randint(tokenizer.vocab_size, targets.shape), replacement)
    input_ids = batch.input_ids.index_copy(0, masked, replacement)
    return replace(batch, input_ids=input_ids), masked, targets
