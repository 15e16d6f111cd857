"""JSON made to harm: configs of models, tokenizers, adapters and runs are refused in one line, or do no harm."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hostile import FUZZ, refused, survived
from hypothesis import given
from hypothesis import strategies as st

import minipeft
from minipeft import load_adapter, load_pretrained, load_tokenizer
from minipeft.data.tasks.task import Split, get_task


@pytest.fixture
def run(small_runs: dict[str, Path]) -> Path:
    return small_runs["sst2"]


CONFIGS: dict[str, dict[str, Any]] = {
    "hidden_size": {"hidden_size": 10**12},
    "hidden_size of 400 digits": {"hidden_size": 10**400},
    "hidden_size 2^24": {"hidden_size": 1 << 24},
    "num_hidden_layers": {"num_hidden_layers": 10**9},
    "num_hidden_layers 1024": {"num_hidden_layers": 1024},
    "vocab_size": {"vocab_size": 10**12},
    "num_attention_heads": {"num_attention_heads": 10**15},
    "intermediate_size": {"intermediate_size": 1 << 62},
    "max_position_embeddings": {"max_position_embeddings": 10**15},
    "type_vocab_size": {"type_vocab_size": 1 << 62},
    "pad_token_id": {"pad_token_id": 10**30},
    "layer_norm_eps": {"layer_norm_eps": float("nan")},
    "model_type": {"model_type": ["roberta"]},
    "hidden_act": {"hidden_act": {"a": 1}},
    "position_embedding_type": {"position_embedding_type": "x" * 10**6},
    "id2label": {"id2label": {"x": 1}},
    "hidden_size True": {"hidden_size": True},
    "hidden_dropout_prob": {"hidden_dropout_prob": []},
}
TEXTS = {
    "no byte": b"",
    "lists in lists": b"[" * 1_000_000,
    "objects in objects": b'{"a":' * 100_000,
    "no UTF-8": b"\xff\xfe\xfd",
    "a list": b"[]",
    "NULs": bytes(100),
    "a number of 100,000 digits": b'{"hidden_size": ' + b"9" * 100_000 + b"}",
    "70 MiB": b" " * (70 << 20),
}
IRREGULAR: dict[str, Callable[[Path], None]] = {
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a pipe": lambda path: os.mkfifo(path),
    "a folder": lambda path: path.mkdir(),
    "a link to itself": lambda path: path.symlink_to(path.name),
}


@pytest.mark.parametrize("change", CONFIGS)
def test_a_hostile_config_is_refused(change: str, model: Path) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | CONFIGS[change]))
    refused(lambda: load_pretrained(model), str(model))


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "adapter_config.json", "run's config.json"])
def test_a_file_that_is_no_json_object_is_refused(
    name: str, text: str, model: Path, run: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    call, folder = reader(name, model, run, tiny_checkpoint, tmp_path)
    (folder / name.split()[-1]).write_bytes(TEXTS[text])
    refused(call, str(folder))


@pytest.mark.parametrize("kind", IRREGULAR)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "run's config.json"])
def test_what_is_no_file_is_refused_and_not_read(
    name: str, kind: str, model: Path, run: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    call, folder = reader(name, model, run, tiny_checkpoint, tmp_path)
    (folder / name.split()[-1]).unlink()
    IRREGULAR[kind](folder / name.split()[-1])
    refused(call, str(folder))


def reader(
    name: str, model: Path, run: Path, tiny_checkpoint: Path, tmp_path: Path
) -> tuple[Callable[[], object], Path]:
    """What reads a file of that name, and a folder of one's own that holds it."""
    if name in ("config.json", "model.safetensors"):
        return lambda: load_pretrained(model), model
    if name == "tokenizer.json":
        return lambda: load_tokenizer(model), model
    whole = shutil.copytree(run, tmp_path / "run")
    if name == "adapter_config.json":
        return lambda: load_adapter(load_pretrained(tiny_checkpoint), whole / "adapter"), whole / "adapter"
    return lambda: minipeft.load_run(whole), whole


RUN_SETTINGS: list[dict[str, Any]] = [
    {"task": []},
    {"task": "../rte"},
    {"model": 5},
    {"model": "../../../etc"},
    {"model": "a\0b"},
    {"precision": None},
    {"max_length": "512"},
    {"max_length": 10**12},
    {"max_length": 10**30},
    {"max_length": -1},
    {"max_tokens": 0},
    {"max_tokens": [1]},
    {"source": 7},
]


@pytest.mark.parametrize("change", RUN_SETTINGS, ids=str)
def test_hostile_settings_of_a_run_are_refused(change: dict[str, Any], run: Path, tmp_path: Path) -> None:
    whole = shutil.copytree(run, tmp_path / "run")
    path = whole / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(lambda: minipeft.load_run(whole).predict(["a"]))


ADAPTER_CONFIGS: list[dict[str, Any]] = [
    {"r": -1},
    {"r": "8"},
    {"r": None},
    {"lora_alpha": []},
    {"lora_alpha": float("inf")},
    {"lora_dropout": 5},
    {"target_modules": 5},
    {"target_modules": None},
    {"target_modules": "("},
    {"target_modules": "(.*a){30}$"},
    {"target_modules": [1, None]},
    {"peft_type": {}},
    {"bias": []},
    {"init_lora_weights": [1]},
]


@pytest.mark.parametrize("change", ADAPTER_CONFIGS, ids=str)
def test_hostile_settings_of_an_adapter_are_refused(
    change: dict[str, Any], run: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    adapter = shutil.copytree(run / "adapter", tmp_path / "adapter")
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(lambda: load_adapter(load_pretrained(tiny_checkpoint), adapter), str(adapter))


def added(number: int, content: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, "special": True, **flags}


def template(single: list[Any], pair: list[Any]) -> dict[str, Any]:
    specials = {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": specials}


A, B = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}
SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
# where → what stands there; whether it is refused or used is the library's decision
TOKENIZERS: dict[str, tuple[tuple[str, ...], Any]] = {
    "an id of 2^32 - 1": (("model", "vocab", "zz"), (1 << 32) - 1),
    "an id of 2^40": (("model", "vocab", "zz"), 1 << 40),
    "a negative id": (("model", "vocab", "zz"), -1),
    "an id twice": (("model", "vocab", "zz"), 5),
    "no vocabulary": (("model", "vocab"), {}),
    "merges of nothing": (("model", "merges"), [["a", "nothing"]]),
    "an unknown model": (("model", "type"), "Evil"),
    "words without <unk>": (("model",), {"type": "WordLevel", "vocab": {}, "unk_token": "x"}),
    "unigrams without <unk>": (("model",), {"type": "Unigram", "vocab": [["a", -1.0]], "unk_id": 10**9}),
    "a prefix that is never there": (("model", "continuing_subword_prefix"), "##"),
    "an added token of id 2^32 - 1": (("added_tokens",), [added((1 << 32) - 1, "the")]),
    "an empty added token": (("added_tokens",), [added(700, "")]),
    "specials beyond the vocabulary": (
        ("post_processor",),
        {
            "type": "RobertaProcessing",
            "sep": ["</s>", (1 << 32) - 1],
            "cls": ["<s>", 1 << 31],
            "trim_offsets": True,
            "add_prefix_space": False,
        },
    ),
    "no special token": (("post_processor",), None),
    "100,000 special tokens": (
        ("post_processor",),
        template([A, *[{"SpecialToken": {"id": "<s>", "type_id": 0}}] * 10**5], [A, B]),
    ),
    "a token type of 4 thousand million": (
        ("post_processor",),
        template([{"Sequence": {"id": "A", "type_id": 4_000_000_000}}], [A, B]),
    ),
    "padding to 10^9": (
        ("padding",),
        {
            "strategy": {"Fixed": 10**9},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 1,
            "pad_type_id": 0,
            "pad_token": "<pad>",
        },
    ),
    "a pattern that takes for ever": (("pre_tokenizer",), {**SPLIT, "pattern": {"Regex": "(x+x+)+y"}}),
    "a pattern that is none": (("pre_tokenizer",), {**SPLIT, "pattern": {"Regex": "("}}),
    "a pattern of nothing": (("normalizer",), {"type": "Replace", "pattern": {"Regex": ""}, "content": "yyy"}),
    "a damaged normalizer": (("normalizer",), {"type": "Precompiled", "precompiled_charsmap": "//////////8AAAAA"}),
    "dropout of 7": (("model", "dropout"), 7),
}


@pytest.mark.parametrize("change", TOKENIZERS)
@pytest.mark.parametrize("model_type", ["roberta", "bert"])
def test_a_hostile_tokenizer_gives_predictions_or_one_line(change: str, model_type: str, model: Path) -> None:
    """Also for a model of bert's family, which takes token types from it."""
    from minipeft.data.batches.packing import pack
    from minipeft.data.batches.sampling import pack_examples
    from minipeft.data.tokens.examples import encode_split
    from minipeft.model.families import load_config

    path = model / "tokenizer.json"
    content = json.loads(path.read_text())
    (*way, last), value = TOKENIZERS[change]
    place = content
    for name in way:
        place = place[name]
    place[last] = value
    path.write_text(json.dumps(content))
    config = load_config(model)
    texts = ["the dog zz", "", "x" * 5000]
    if model_type == "bert":
        from dataclasses import replace

        config = replace(config, model_type="bert", type_vocab_size=2)

    def use() -> None:
        tokenizer = load_tokenizer(model)
        examples = encode_split(
            get_task("sst2"), [Split(get_task("sst2"), texts, None, [0, 1, 1])], tokenizer, 128, config
        )
        assert pack_examples(examples, [0, 1, 2], config).lengths == tuple(examples.lengths)
        pack(tokenizer.encode(texts), config=config)

    survived(use)


@given(data=st.data())
@FUZZ
def test_no_change_of_a_json_file_gives_anything_but_one_line(
    data: st.DataObject, run: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    name = data.draw(st.sampled_from(["config.json", "tokenizer.json"]))
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model", dirs_exist_ok=True)
    content = json.loads((folder / name).read_text())
    values: st.SearchStrategy[Any] = st.sampled_from(
        [None, True, -1, 0, 3, 10**12, 10**400, 0.5, float("nan"), "", "x", "<s>", [], {}, [[]], {"a": 1}, ["a", "b"]]
    )
    for _ in range(data.draw(st.integers(1, 3))):
        place: Any = content
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys[:60]))
            if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.booleans()):
                place[key] = copy.deepcopy(data.draw(values))  # a list that stands in two places can hold itself
                break
            place = place[key]
    (folder / name).write_text(json.dumps(content))
    survived(lambda: load_pretrained(folder))
    survived(lambda: load_tokenizer(folder).encode(["a b", "", "x <mask>"]))
