"""Rows of words: the ids of transformers' is_split_into_words, windows between words, labels of first tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import shared
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tokenizer_families import SPECIALS, byte_level_bpe, unigram, word_piece
from transformers import BertTokenizer, PreTrainedTokenizerFast, RobertaTokenizer

from minipeft import MinipeftError, load_tokenizer
from minipeft.data.tokens.long_texts import LongTexts
from minipeft.data.tokens.words import cut_windows, encode_words
from minipeft.problems.problem import IGNORE_INDEX

ROWS = [
    ["Barack", "Obama", "visited", "Berlin", "."],
    ["a", "\u200b", "naïve", "COVID-19", "don't", "你好", "😀"],  # a word that some tokenizers have no token for
    ["x" * 60, "and", "[SEP]", " spaced "],
    ["one"],
    [],
]
NAMES = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIALS, strict=True))


def build(kind: str, folder: Path) -> Any:
    """Write a tokenizer of this kind and return transformers'."""
    (folder / "config.json").write_text("{}")
    if kind == "roberta":
        return RobertaTokenizer.from_pretrained(shared("tokenizers", "roberta-base"), add_prefix_space=True)
    if kind == "bert":
        word_piece(folder, True)
        return BertTokenizer.from_pretrained(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps(NAMES))
    if kind == "unigram":
        unigram(folder, False)
        return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **NAMES)
    byte_level_bpe(folder)
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **NAMES)


@pytest.mark.parametrize("kind", ["roberta", "bert", "unigram", "modernbert"])
def test_ids_and_first_tokens_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    theirs = build(kind, tmp_path)
    folder = shared("tokenizers", "roberta-base") if kind == "roberta" else tmp_path
    tokenizer = load_tokenizer(folder)
    for max_length in (512, 12):
        table, windows = encode_words(tokenizer, ROWS, max_length, None)
        for number, row in enumerate(ROWS):
            expected = theirs(row, is_split_into_words=True, truncation=True, max_length=max_length)
            assert table[number].tolist() == expected["input_ids"], row
            owners = expected.word_ids()
            firsts = [place for place, word in enumerate(owners) if word is not None and word not in owners[:place]]
            pieces = windows.pieces([number])
            assert windows.tokens[pieces].tolist() == firsts
            assert windows.words[pieces].tolist() == [owners[place] for place in firsts]
    assert tokenizer.truncated == sum(len(theirs(row, is_split_into_words=True)["input_ids"]) > 12 for row in ROWS)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 12), st.integers(0, 11))
def test_windows_have_each_word_once_and_overlap_by_at_most_the_stride(
    sizes: list[int], room: int, stride: int
) -> None:
    stride = min(stride, room - 1)
    bounds = np.concatenate([[0], np.cumsum(sizes)]).tolist()
    windows = cut_windows(bounds, room, stride)
    labelled = [first for _, end, start in windows for first in bounds[:-1] if start <= first < end]
    assert labelled == bounds[:-1]
    for (begin, end, start), (previous, stop, _) in zip(windows[1:], windows[:-1], strict=True):
        assert begin in bounds and previous < begin <= start and max(0, stop - begin) <= stride
        assert 0 < end - begin <= room and (end in bounds or end - begin == room)


def test_every_word_of_a_long_row_has_one_row_of_logits(tmp_path: Path) -> None:
    word_piece(tmp_path, True)
    tokenizer = load_tokenizer(tmp_path)
    rows = [[*ROWS[0]] * 9, ROWS[0]]
    labels = [tuple(range(45)), tuple(range(5))]
    table, windows = encode_words(tokenizer, rows, 16, LongTexts(4, "mean"))
    assert len(table) > 3 and len(windows) == 2 and tokenizer.truncated == 0
    every = list(range(len(table)))
    places, numbers = windows.outputs(every, table.lengths)
    assert sorted(numbers.tolist()) == list(range(50)) and windows.num_outputs == 50
    flat = [label for row in windows.token_labels(every, table.lengths, labels) for label in row]
    assert [flat[place] for place in places] == [[*labels[0], *labels[1]][number] for number in numbers]
    assert sum(label != IGNORE_INDEX for label in flat) == 50
    second = windows.subset(np.array([1]))
    last = np.arange(len(second.piece_counts))
    assert second.outputs(last, table.lengths[-len(last) :])[1].tolist() == [0, 1, 2, 3, 4] and len(second) == 1
    with pytest.raises(MinipeftError, match=r"--stride 14 is not below the 14 tokens of text in a sequence"):
        encode_words(tokenizer, rows, 16, LongTexts(14, "mean"))


def test_words_without_a_token_have_no_label_and_no_logit(tmp_path: Path) -> None:
    import torch

    word_piece(tmp_path, True)
    _, windows = encode_words(load_tokenizer(tmp_path), [ROWS[1], ROWS[0] * 9], 16, None)
    labels = windows.known_labels([tuple(range(7)), tuple(range(45))])
    assert labels[0][1] == IGNORE_INDEX and labels[0][0] == 0 and labels[1][-1] == IGNORE_INDEX
    logits = windows.pool(torch.zeros(windows.num_outputs, 3))
    known = [label != IGNORE_INDEX for row in labels for label in row]
    assert (~logits[:, 0].isneginf()).tolist() == known
