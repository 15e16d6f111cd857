"""What a folder says of its tokenizer holds: classes, settings and added tokens give the ids of transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import reference_model
from test_tokenizer_families import byte_level_bpe, corpus, odd_strings, word_piece
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers

from minipeft import MinipeftError, export, load_pretrained, load_tokenizer

TEXTS = [
    *odd_strings()[:60],
    *("I said <new> there [NEW] court", "x <mask> y<mask>", "A<ent>b UPPER Ünïcödé", "½ ﬁle … ™", " lead 你好"),
    *("<s>a</s> <pad><unk>", "[CLS]x[SEP] [MASK][PAD]", "don't ... U.S. 3.14", "the one two three four five six seven"),
]
Build = Callable[[Path], None]


def save(tokenizer: Any, folder: Path) -> None:
    """Keep tokenizer.json alone of what transformers saves."""
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer_config.json").unlink()


def bert_files(folder: Path) -> None:
    word_piece(folder, lowercase=True)


def bert_json(folder: Path) -> None:
    """tokenizer.json with other settings than BertTokenizer's."""
    from transformers import BertTokenizer

    word_piece(folder, lowercase=True)
    save(BertTokenizer(vocab=str(folder / "vocab.txt"), do_lower_case=False, tokenize_chinese_chars=False), folder)
    (folder / "vocab.txt").unlink()


def roberta_files(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.model.save(str(folder))


def roberta_json(folder: Path) -> None:
    """tokenizer.json that is lower-casing, adds a space and has a token more: the class decides on the first two."""
    from transformers import RobertaTokenizer

    roberta_files(folder)
    vocab, merges = folder / "vocab.json", folder / "merges.txt"
    save(RobertaTokenizer(vocab=str(vocab), merges=str(merges)), folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    tokenizer.enable_truncation(9, direction="left")
    tokenizer.save(str(folder / "tokenizer.json"))


def pieces(*special: str) -> list[tuple[str, float]]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.train_from_iterator(corpus(), trainers.UnigramTrainer(vocab_size=300, show_progress=False))
    found = json.loads(tokenizer.to_str())["model"]["vocab"]
    return [(token, 0.0) for token in special] + [(piece, score) for piece, score in found if piece not in special]


def xlm_roberta_json(folder: Path) -> None:
    from transformers import XLMRobertaTokenizer

    save(XLMRobertaTokenizer(vocab=[*pieces("<s>", "<pad>", "</s>", "<unk>"), ("<mask>", 0.0)]), folder)


def camembert_json(folder: Path) -> None:
    from transformers import CamembertTokenizer

    vocab = pieces("<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>", "<mask>")
    save(CamembertTokenizer(vocab=vocab), folder)


def deberta_json(folder: Path) -> None:
    from transformers import DebertaV2Tokenizer

    save(DebertaV2Tokenizer(vocab=pieces("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"), unk_id=3), folder)


def check(folder: Path) -> None:
    """Compare with AutoTokenizer, and what an export holds with both."""
    from transformers import AutoTokenizer

    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    saved = folder / "saved"
    saved.mkdir()
    shutil.copyfile(folder / "config.json", saved / "config.json")
    ours.save(saved)
    for max_length, pairs in ((512, None), (12, TEXTS[::-1])):
        expected = theirs(TEXTS, pairs, truncation=True, max_length=max_length)["input_ids"]
        assert list(map(list, ours.encode(TEXTS, pairs, max_length))) == expected
    assert list(map(list, load_tokenizer(saved).encode(TEXTS, pairs, max_length))) == expected
    again = AutoTokenizer.from_pretrained(saved)(TEXTS, pairs, truncation=True, max_length=max_length)
    assert again["input_ids"] == expected


FAMILIES: dict[str, tuple[Build, str, str | None]] = {
    "bert-files": (bert_files, "bert", None),
    "bert": (bert_json, "bert", "BertTokenizer"),
    "electra": (bert_json, "electra", "ElectraTokenizer"),
    "distilbert": (bert_json, "distilbert", None),
    "roberta-files": (roberta_files, "roberta", "RobertaTokenizer"),
    "roberta": (roberta_json, "roberta", "RobertaTokenizerFast"),
    "roberta-by-model-type": (roberta_json, "roberta", None),
    "roberta-as-it-is": (roberta_json, "roberta", "PreTrainedTokenizerFast"),
    "xlm-roberta": (xlm_roberta_json, "xlm-roberta", "XLMRobertaTokenizer"),
    "camembert": (camembert_json, "camembert", "CamembertTokenizer"),
    "deberta-v3": (deberta_json, "deberta-v2", "DebertaV2Tokenizer"),
    "modernbert": (byte_level_bpe, "modernbert", "NobodysTokenizer"),
}

SHORT_RUN = ("bert", "roberta", "roberta-files", "xlm-roberta", "deberta-v3")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tokenizer files of each family, without settings."""
    made = {}
    for name, (build, *_) in FAMILIES.items():
        made[name] = tmp_path_factory.mktemp(name)
        build(made[name])
    return made


def write(folder: Path, family: str, settings: dict[str, Any]) -> None:
    _, model_type, tokenizer_class = FAMILIES[family]
    named = {} if tokenizer_class is None else {"tokenizer_class": tokenizer_class}
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "tokenizer_config.json").write_text(json.dumps(named | settings))


@pytest.mark.parametrize(
    "family", [name if name in SHORT_RUN else pytest.param(name, marks=pytest.mark.full) for name in FAMILIES]
)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"do_lower_case": True, "add_prefix_space": True, "split_by_punct": True, "strip_accents": False},
        {"do_lower_case": False, "add_prefix_space": False, "strip_accents": True, "tokenize_chinese_chars": False},
        {"truncation_side": "left", "padding_side": "left", "model_max_length": 16},
        {"split_special_tokens": True},
        {"cls_token": "MASK", "bos_token": "MASK", "legacy": True, "do_basic_tokenize": False, "errors": "ignore"},
        {"sep_token": "MASK", "eos_token": "MASK"},
        {"additional_special_tokens": ["<ent>", "<new>"], "unk_token": "MASK"},
        {"extra_special_tokens": {"entity_token": "<ent>"}, "other_token": "<new>"},
    ],
    ids=lambda settings: ",".join(settings) or "none",
)
def test_settings_give_the_ids_of_transformers(
    family: str, settings: dict[str, Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders[family], tmp_path / "folder")
    mask = "[MASK]" if family.split("-")[0] in ("bert", "electra", "distilbert", "deberta", "modernbert") else "<mask>"
    write(folder, family, {name: mask if value == "MASK" else value for name, value in settings.items()})
    check(folder)


def in_the_config(folder: Path, family: str, number: int) -> None:
    new = {"content": "<new>", "lstrip": True, "rstrip": False, "single_word": False, "normalized": False}
    court = {**new, "content": "court", "lstrip": False, "normalized": True, "special": False}
    write(folder, family, {"added_tokens_decoder": {str(number + 1): court, str(number): {**new, "special": True}}})


def in_a_file(folder: Path, family: str, number: int) -> None:
    write(folder, family, {"additional_special_tokens": ["<ent>"]})
    (folder / "added_tokens.json").write_text(json.dumps({"court": number + 1, "<new>": number, "<ent>": number + 2}))
    role = {"content": "<new>", "lstrip": False, "rstrip": True, "normalized": False, "single_word": False}
    (folder / "special_tokens_map.json").write_text(json.dumps({"cls_token": "<ent>", "sep_token": role}))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("where", [in_the_config, in_a_file])
def test_added_tokens_outside_tokenizer_json_are_read(
    family: str, where: Callable[[Path, str, int], None], folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders[family], tmp_path / "folder")
    write(folder, family, {})
    size = load_tokenizer(folder).vocab_size
    where(folder, family, size)
    check(folder)
    assert load_tokenizer(folder).encode(["a<new> b"])[0].count(size) >= 1


@pytest.mark.parametrize("side", ["left", "right"])
def test_windows_are_those_of_transformers_from_either_side(
    side: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    from minipeft.data.tokens.long_texts import encode_windows

    folder = shutil.copytree(folders["bert"], tmp_path / "folder")
    write(folder, "bert", {"truncation_side": side})
    texts = [text for text in TEXTS if text.strip()]
    theirs = AutoTokenizer.from_pretrained(folder)(
        texts, truncation=True, max_length=10, stride=3, return_overflowing_tokens=True
    )
    windows = encode_windows(load_tokenizer(folder), texts, None, 10, 3)
    assert [window.ids for found in windows for window in found] == theirs["input_ids"]


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        (
            "bert",
            {"tokenizer_class": "BertJapaneseTokenizer"},
            "tokenizer_class 'BertJapaneseTokenizer' is unsupported",
        ),
        ("roberta", {"tokenizer_class": "BertTokenizer"}, "BertTokenizer needs a WordPiece model, .* has BPE"),
        ("roberta-files", {"tokenizer_class": "PreTrainedTokenizerFast"}, r"no tokenizer\.json; put"),
        ("roberta-files", {"tokenizer_class": "BertTokenizer"}, r"no tokenizer\.json or vocab\.txt; put"),
        ("bert", {"tokenizer_class": 7}, "tokenizer_class 7 is unsupported"),
        ("bert", {"fast_tokenizer_files": ["tokenizer.4.0.0.json"]}, "fast_tokenizer_files .* is unsupported"),
        ("bert", {"truncation_side": "middle"}, "truncation_side 'middle' is not left or right"),
        ("bert", {"do_lower_case": "no"}, "do_lower_case 'no' is not true or false"),
        ("bert", {"added_tokens_decoder": {"7": {"content": "<new>"}}}, "id of the added token '<new>' is 7 in added"),
        ("bert", {"added_tokens_decoder": {"7": {"contents": "<new>"}}}, "cannot be read"),
        ("bert", {"added_tokens_decoder": 7}, "cannot be read"),
    ],
)
def test_what_is_unsupported_is_named(
    family: str, settings: dict[str, Any], message: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders[family], tmp_path / "folder")
    write(folder, family, settings)
    with pytest.raises(MinipeftError, match=message) as caught:
        load_tokenizer(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_an_export_has_the_added_tokens_and_the_settings(folders: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = shutil.copytree(folders["roberta-files"], tmp_path / "folder")
    write(folder, "roberta-files", {})
    in_a_file(folder, "roberta-files", load_tokenizer(folder).vocab_size)
    reference_model("roberta", vocab_size=510).save_pretrained(folder)
    expected = AutoTokenizer.from_pretrained(folder)(TEXTS)["input_ids"]
    export(load_pretrained(folder), tmp_path / "export")
    assert AutoTokenizer.from_pretrained(tmp_path / "export")(TEXTS)["input_ids"] == expected
    assert list(map(list, load_tokenizer(tmp_path / "export").encode(TEXTS))) == expected


def test_its_repr_says_what_it_is(folders: dict[str, Path]) -> None:
    text = repr(load_tokenizer(folders["xlm-roberta"]))
    assert text.startswith("Tokenizer('") and "Unigram" in text and "entries" in text
