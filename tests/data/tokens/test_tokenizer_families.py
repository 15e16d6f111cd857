"""Tokenizers of the other families give the ids that transformers gives, for odd strings and pairs."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from minipeft import MinipeftError, load_tokenizer
from minipeft.data.tasks.synthetic import generate

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ODD = [
    "",
    " ",
    "Hello World",
    "  leading and trailing  ",
    "naïve café ÀÉ e\u0301",
    "你好 world",
    "emoji 😀 👩‍👩‍👧",
    "tab\tnew\nline\u200bzero\ufeffwidth\u00a0space",
    "[SEP] text [MASK] [CLS][UNK] <s>",
    "a" * 300,
    "ﬁ ½ 𝔘𝔫𝔦",
    "don't can't !!!???",
]


def odd_strings() -> list[str]:
    draw = random.Random(0)
    ranges = [(32, 126), (0xA0, 0x24F), (0x400, 0x4FF), (0x4E00, 0x4EFF), (0x1F300, 0x1F6FF), (97, 122), (97, 122)]
    return ODD + [
        "".join(chr(draw.randint(*draw.choice(ranges))) for _ in range(draw.randint(1, 40))) for _ in range(188)
    ]


def corpus() -> list[str]:
    return [str(text) for text in generate("rte", "train")["sentence1"][:300]]


def word_piece(folder: Path, lowercase: bool) -> None:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIALS, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    ids = tokenizer.get_vocab()
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in sorted(ids, key=ids.__getitem__)))


def unigram(folder: Path, byte_fallback: bool) -> None:
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(corpus(), trainers.UnigramTrainer(vocab_size=400, show_progress=False))
    pieces = json.loads(trained.to_str())["model"]["vocab"]
    vocab = [(token, 0.0) for token in SPECIALS]
    vocab += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)] if byte_fallback else []
    vocab += [(piece, score) for piece, score in pieces if piece not in SPECIALS]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=1, byte_fallback=byte_fallback))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def check(folder: Path, theirs: Any) -> None:
    ours, texts = load_tokenizer(folder), odd_strings()
    pairs = texts[::-1]
    assert list(map(list, ours.encode(texts))) == theirs(texts, truncation=True, max_length=512)["input_ids"]
    expected = theirs(texts, pairs, truncation=True, max_length=60, return_token_type_ids=True)
    found = ours.encode(texts, pairs, max_length=60)
    assert list(map(list, found)) == expected["input_ids"]
    assert [row.type_ids for row in found] == expected["token_type_ids"]


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("family", ["DistilBertTokenizer", "ElectraTokenizer", "BertTokenizer"])
def test_vocab_txt_gives_the_ids_of_transformers(family: str, lowercase: bool, tmp_path: Path) -> None:
    import transformers

    word_piece(tmp_path, lowercase)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"do_lower_case": lowercase, "tokenizer_class": family, "model_max_length": 512})
    )
    (tmp_path / "config.json").write_text("{}")
    theirs = getattr(transformers, family).from_pretrained(tmp_path)
    check(tmp_path, theirs)
    theirs.save_pretrained(tmp_path / "saved")  # and so does the tokenizer.json that transformers makes of it
    (tmp_path / "saved" / "config.json").write_text("{}")
    check(tmp_path / "saved", theirs)


@pytest.mark.parametrize("byte_fallback", [False, True])
def test_unigram_gives_the_ids_of_transformers(byte_fallback: bool, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    unigram(tmp_path, byte_fallback)
    special = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIALS, strict=True))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({**special, "tokenizer_class": "PreTrainedTokenizerFast"})
    )
    (tmp_path / "config.json").write_text("{}")
    check(tmp_path, AutoTokenizer.from_pretrained(tmp_path))
    # [MASK] is special in tokenizer_config.json alone
    assert load_tokenizer(tmp_path).encode(["[MASK]"])[0] == [2, 4, 3]


def byte_level_bpe(folder: Path) -> None:
    """ModernBERT's kind: bytes, NFC, and runs of spaces as tokens that are not special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=SPECIALS,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_tokens([AddedToken(" " * count, normalized=True) for count in range(24, 1, -1)])
    tokenizer.add_tokens([AddedToken("|||EMAIL_ADDRESS|||", normalized=False)])
    tokenizer.add_special_tokens([AddedToken("[MASK]", lstrip=True)])
    tokenizer.decoder = decoders.ByteLevel()
    save_with_template(tokenizer, folder)


def bpe_with_byte_fallback(folder: Path) -> None:
    """The kind of multilingual ModernBERTs: characters of words, and bytes where the vocabulary has no piece."""
    trained = Tokenizer(models.BPE(unk_token="[UNK]"))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.train_from_iterator(
        corpus(), trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIALS, show_progress=False)
    )
    model = json.loads(trained.to_str())["model"]
    vocab = model["vocab"] | {f"<0x{byte:02X}>": len(model["vocab"]) + byte for byte in range(256)}
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="[UNK]", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    save_with_template(tokenizer, folder)


def save_with_template(tokenizer: Tokenizer, folder: Path) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("kind", [byte_level_bpe, bpe_with_byte_fallback])
def test_bpe_gives_the_ids_of_transformers(kind: Callable[[Path], None], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    kind(tmp_path)
    special = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIALS, strict=True))
    settings = {**special, "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8192}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text("{}")
    check(tmp_path, AutoTokenizer.from_pretrained(tmp_path))
    ours = load_tokenizer(tmp_path)
    assert 1 not in ours.encode(["emoji 😀 你好"])[0]  # bytes, not [UNK]
    assert ours.decode(ours.encode(["emoji 😀 你好"])[0]) == "emoji 😀 你好"


@pytest.mark.parametrize("name", ["spiece.model", "sentencepiece.bpe.model"])
def test_another_sentencepiece_model_alone_is_refused_with_the_remedy(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(MinipeftError, match=rf"{name} is a SentencePiece model.*save_pretrained"):
        load_tokenizer(tmp_path)
