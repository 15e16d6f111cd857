"""spm.model alone gives the ids of the sentencepiece library, which DeBERTa-v3 was pretrained with."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from conftest import reference_model
from test_unigram import odd_strings

from minipeft import MinipeftError, export, load_pretrained, load_tokenizer
from minipeft.data.tasks.synthetic import generate


def train(folder: Path, **options: object) -> bytes:
    """Write an spm.model with DeBERTa-v3's special pieces, and a config.json."""
    content = io.BytesIO()
    pieces = {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"}
    numbers = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "vocab_size": 400, "hard_vocab_limit": False}
    texts = [str(text) for text in generate("rte", "train")["sentence1"][:500]]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=content,
        minloglevel=2,
        num_threads=1,
        **pieces | numbers | options,
    )
    (folder / "spm.model").write_bytes(content.getvalue())
    (folder / "config.json").write_text("{}")
    return content.getvalue()


@pytest.mark.parametrize("options", [{}, {"byte_fallback": True, "vocab_size": 700}], ids=["unigram", "bytes"])
def test_200_odd_strings_have_the_ids_of_sentencepiece(options: dict[str, object], tmp_path: Path) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_proto=train(tmp_path, **options))
    ours = load_tokenizer(tmp_path)
    special = ("[CLS]", "[SEP]", "[UNK]", "[MASK]", "[PAD]", "<0x41>")  # text that names a piece reads as that piece
    texts, pairs = ([s for s in odd_strings(2000, seed) if not any(t in s for t in special)][:200] for seed in (0, 1))
    assert len(texts) == len(pairs) == 200
    assert list(map(list, ours.encode(texts))) == [[1, *reference.encode(text), 2] for text in texts]
    for found, text, pair in zip(ours.encode(texts, pairs), texts, pairs, strict=True):
        first, second = reference.encode(text), reference.encode(pair)
        if len(first) + len(second) < 500:
            assert list(found) == [1, *first, 2, *second, 2]
            assert found.type_ids == [0] * (len(first) + 2) + [1] * (len(second) + 1)
    assert ours.mask_token_id == reference.get_piece_size()
    assert ours.encode(["a [MASK]"])[0][-2] == ours.mask_token_id
    # The tokenizer.json that a run keeps gives the same.
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "config.json").write_text("{}")
    ours.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").encode(texts) == ours.encode(texts)


def test_pieces_that_a_user_defined_stay_whole(tmp_path: Path) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_proto=train(tmp_path, user_defined_symbols=["<url>"]))
    ids = load_tokenizer(tmp_path).encode(["the<url> court"])[0]
    assert list(ids) == [1, *reference.encode("the<url> court"), 2] and reference.piece_to_id("<url>") in ids


def test_an_export_has_the_tokenizer_as_tokenizer_json(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    reference_model("deberta-v2", vocab_size=500).save_pretrained(checkpoint)
    config = (checkpoint / "config.json").read_bytes()
    train(checkpoint)
    (checkpoint / "config.json").write_bytes(config)
    export(load_pretrained(checkpoint), tmp_path / "export")
    assert (tmp_path / "export" / "tokenizer.json").is_file()
    texts = ["The court said", "½ a ﬁle"]
    assert load_tokenizer(tmp_path / "export").encode(texts) == load_tokenizer(checkpoint).encode(texts)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: b"", "it has no piece"),
        (lambda content: content[: len(content) // 2], "it ends early"),
        (lambda content: content[:-1] + b"\xff", "cannot be read"),
        (lambda content: b"\x0f" * 100, "cannot be read"),
        (lambda content: content.replace(b"[CLS]", b"[CLT]"), r"it has no piece \[CLS\]"),
    ],
    ids=["empty", "half", "end", "noise", "other"],
)
def test_a_damaged_file_raises_in_one_line(damage: Any, reason: str, tmp_path: Path) -> None:
    content = train(tmp_path)
    (tmp_path / "spm.model").write_bytes(damage(content))
    with pytest.raises(MinipeftError, match=reason) as caught:
        load_tokenizer(tmp_path)
    assert "fetch the checkpoint again" in str(caught.value) and "\n" not in str(caught.value)


def test_another_kind_of_model_raises(tmp_path: Path) -> None:
    train(tmp_path, model_type="bpe")
    with pytest.raises(MinipeftError, match="it is not a Unigram model"):
        load_tokenizer(tmp_path)


def test_settings_of_the_published_checkpoint_change_nothing(tmp_path: Path) -> None:
    train(tmp_path)
    ids = load_tokenizer(tmp_path).encode(["The court said"])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "vocab_type": "spm"}))
    assert load_tokenizer(tmp_path).encode(["The court said"]) == ids
