"""DeBERTa's own Unigram tokenizer, as transformers saves it, gives the ids and token types of transformers."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from minipeft import load_tokenizer
from minipeft.data.tasks.synthetic import generate

SPECIALS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]


def vocabulary() -> list[tuple[str, float]]:
    """Pieces and scores of a small Unigram model, special tokens first."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=600, special_tokens=SPECIALS, unk_token="[UNK]", show_progress=False, shrinking_factor=0.5
    )
    tokenizer.train_from_iterator(generate("rte", "train")["sentence1"], trainer)
    return [(piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]


def odd_strings(count: int, seed: int) -> list[str]:
    """Strings of words, spaces of all kinds, accents, scripts, emoji, control characters and special tokens."""
    pool = [
        "the",
        " ",
        "  ",
        "\t",
        "\n",
        "\u00a0",
        "\u3000",
        "é",
        "e\u0301",
        "ﬁ",
        "漢字",
        "Ж",
        "😀",
        "👩\u200d👧",
        "\u200b",
    ]
    pool += ["\x00", "\x7f", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "▁", "<0x41>", "'s", "...", "U.S.", "3.14", "ß", "İ"]
    generator = random.Random(seed)
    drawn = ["".join(generator.choices(pool, k=generator.randrange(1, 30))) for _ in range(count - 4)]
    return ["", " ", "The court said on Monday that  it would hear the case. ", "a" * 300, *drawn]


def test_200_odd_strings_have_the_ids_and_types_of_transformers(tmp_path: Path) -> None:
    from transformers import DebertaV2Tokenizer

    DebertaV2Tokenizer(vocab=vocabulary(), unk_id=SPECIALS.index("[UNK]")).save_pretrained(tmp_path)
    theirs, ours = DebertaV2Tokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    texts, pairs = odd_strings(200, 0), odd_strings(200, 1)
    for max_length in (512, 16):
        for second in (None, pairs):
            expected = theirs(texts, second, truncation=True, max_length=max_length)
            found = ours.encode_full(texts, second, max_length)
            assert [encoding.ids for encoding in found] == expected["input_ids"]
            assert [encoding.type_ids for encoding in found] == expected["token_type_ids"]
    tokens = found[0].tokens
    assert (tokens[0], tokens[-1]) == ("[CLS]", "[SEP]") and tokens.count("[SEP]") == 2
    assert ours.mask_token_id == theirs.convert_tokens_to_ids("[MASK]")
    assert ours.encode(["😀"])[0][-2] == SPECIALS.index("[UNK]")
