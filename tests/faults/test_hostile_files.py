"""Files made to harm: each is refused in one line that names it, with bounded memory, and nothing in it is run."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import contents, run_command
from hub_server import COMMIT, HubServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import minipeft
from minipeft import MinipeftError, load_adapter, load_pretrained, load_tokenizer
from minipeft.cli import main
from minipeft.data.rows import open_table
from minipeft.data.tasks import get_task, read_chunks, read_examples

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def run(tiny_checkpoint: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "sst2"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        minipeft.train(
            task="sst2",
            model=str(tiny_checkpoint),
            data=str(small_data),
            epochs=1,
            train_limit=16,
            eval_limit=8,
            device="cpu",
            quiet=True,
            output=str(folder),
        )
    return folder


@pytest.fixture
def model(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint of one's own, to damage."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "model")


def refused(call: Callable[[], object], *words: str) -> str:
    """The message of the MinipeftError that a call ends with: one line that holds the words."""
    with pytest.raises(MinipeftError) as caught:
        call()
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and len(message) < 1000, message
    for word in words:
        assert word in message
    return message


def survived(call: Callable[[], object]) -> None:
    """A call gives a result or a MinipeftError of one line, nothing else."""
    try:
        call()
    except MinipeftError as error:
        assert len(str(error).splitlines()) == 1, str(error)


# -- safetensors --


def safetensors(header: Any, data: bytes = b"", claimed: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text + data


def tensor(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


EIGHT = b"\0" * 8
HEADERS = {
    "no byte": b"",
    "half a length": b"\1\2",
    "a header of no byte": safetensors(b""),
    "a header of a terabyte": safetensors(b"{}", claimed=1 << 40),
    "a header of 2^64 - 1 bytes": safetensors(b"{}", claimed=(1 << 64) - 1),
    "no JSON": safetensors(b"nope"),
    "lists in lists": safetensors(b"[" * 100_000),
    "objects in objects": safetensors(b'{"a":' * 50_000),
    "a list": safetensors([]),
    "no UTF-8": safetensors(b'{"\xff": 1}'),
    "offsets beyond the file": safetensors({"a": tensor(data_offsets=[0, 1 << 40])}, EIGHT),
    "negative offsets": safetensors({"a": tensor(data_offsets=[-8, 0])}, EIGHT),
    "offsets backwards": safetensors({"a": tensor(data_offsets=[8, 0])}, EIGHT),
    "two tensors in one place": safetensors({"a": tensor(), "b": tensor()}, EIGHT),
    "a gap": safetensors({"a": tensor(), "b": tensor(data_offsets=[16, 24])}, 3 * EIGHT),
    "a shape of 2^124 numbers": safetensors({"a": tensor(shape=[1 << 62, 1 << 62])}, EIGHT),
    "a shape of none and many": safetensors({"a": tensor(shape=[0, 1 << 60], data_offsets=[0, 0])}),
    "a negative shape": safetensors({"a": tensor(shape=[-2])}, EIGHT),
    "a dtype of objects": safetensors({"a": tensor(dtype="OBJECT")}, EIGHT),
    "a dtype that torch lacks": safetensors({"a": tensor(dtype="F6_E2M3", shape=[4], data_offsets=[0, 3])}, b"abc"),
    "half a byte": safetensors({"a": tensor(dtype="F4", shape=[1], data_offsets=[0, 1])}, b"a"),
    "complex numbers": safetensors({"a": tensor(dtype="C64", shape=[1])}, EIGHT),
    "numbers in the metadata": safetensors({"__metadata__": {"minipeft": 5}, "a": tensor()}, EIGHT),
    "more data than tensors": safetensors({"a": tensor()}, 9 * EIGHT),
}


@pytest.mark.parametrize("damage", HEADERS)
def test_hostile_weights_are_refused(damage: str, model: Path) -> None:
    (model / "model.safetensors").write_bytes(HEADERS[damage])
    refused(lambda: load_pretrained(model), str(model))


@pytest.mark.parametrize("damage", HEADERS)
def test_a_hostile_adapter_is_refused(damage: str, run: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    adapter = shutil.copytree(run / "adapter", tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").write_bytes(HEADERS[damage])
    refused(lambda: load_adapter(load_pretrained(tiny_checkpoint), adapter), str(adapter))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.uint8])
def test_weights_that_are_no_floating_point_numbers_are_refused(dtype: torch.dtype, model: Path) -> None:
    state = load_file(model / "model.safetensors")
    name = next(name for name in state if name.endswith("query.weight"))
    save_file(state | {name: torch.zeros(state[name].shape, dtype=dtype)}, model / "model.safetensors")
    refused(lambda: load_pretrained(model), str(model), name.removeprefix("roberta."), str(dtype))


@given(data=st.data())
@FUZZ
def test_no_change_of_bytes_in_weights_gives_anything_but_one_line(
    data: st.DataObject, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model", dirs_exist_ok=True)
    (folder / "model.safetensors").write_bytes(
        damaged(data, (tiny_checkpoint / "model.safetensors").read_bytes(), 9000)
    )
    survived(lambda: load_pretrained(folder))


def damaged(data: st.DataObject, whole: bytes, reach: int | None = None) -> bytes:
    """Bytes with some of the first `reach` changed, taken out, put in or cut off."""
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, max(0, min(reach or len(whole), len(whole)) - 1)))
        kind = data.draw(st.sampled_from(["change", "take", "put", "cut"]))
        new = data.draw(st.binary(min_size=1, max_size=9)) if kind in ("change", "put") else b""
        rest = {"change": place + len(new), "take": place + data.draw(st.integers(1, 40)), "put": place}
        whole = whole[:place] + new + (whole[rest[kind] :] if kind in rest else b"")
    return whole


# -- JSON: config.json, tokenizer.json, adapter_config.json, a run's config.json --

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
    from minipeft.data.batching import pack
    from minipeft.data.tasks import Split
    from minipeft.model.config import load_config
    from minipeft.training.metrics import encode_split

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
        assert examples.batch([0, 1, 2], config).lengths == tuple(examples.lengths)
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


# -- tables --


@given(data=st.data(), ending=st.sampled_from(["jsonl", "csv", "tsv", "parquet", "txt"]))
@settings(FUZZ, max_examples=150)
def test_no_change_of_bytes_in_a_table_gives_anything_but_one_line(
    data: st.DataObject, ending: str, tables: Path, tmp_path: Path
) -> None:
    path = tmp_path / f"in.{ending}"
    path.write_bytes(damaged(data, (tables / path.name).read_bytes()))

    def use() -> None:
        table = open_table(path)
        labelled = ending != "txt"
        for text, _, label in read_examples(get_task("sst2"), table, table.columns[:1], "mend it", labelled):
            assert isinstance(text, str) and label in ((0, 1) if labelled else (None,))

    survived(use)


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from datasets import Dataset

    folder = tmp_path_factory.mktemp("tables")
    rows = Dataset.from_dict({"sentence": ["good", 'a "bad" one', "naïve 😀", "a\tb"], "label": [1, 0, 1, 0]})
    rows.to_json(folder / "in.jsonl")
    rows.to_csv(folder / "in.csv", index=False)
    rows.to_csv(folder / "in.tsv", index=False, sep="\t")
    rows.to_parquet(folder / "in.parquet")
    (folder / "in.txt").write_text("\n".join(rows["sentence"]))
    return folder


LABELS = ["1e999", "-1", '"x"', "[0]", "{}", "null", "1" * 400, "NaN", '"' + "9" * 5000 + '"', "0.5"]


@pytest.mark.parametrize("task", ["sst2", "stsb"])
@pytest.mark.parametrize("label", LABELS, ids=lambda label: label[:9])
def test_a_hostile_label_is_refused_with_its_row(task: str, label: str, tmp_path: Path) -> None:
    if task == "stsb" and label in ("0.5", "-1"):
        pytest.skip("a score like any other")
    (tmp_path / task).mkdir()
    texts = "".join(f'"{name}": "a", ' for name in get_task(task).columns)
    (tmp_path / task / "train.jsonl").write_text(f'{{{texts}"label": 1}}\n{{{texts}"label": {label}}}\n')
    refused(lambda: list(read_chunks(get_task(task), "train", str(tmp_path))), "train.jsonl, row 1")


# -- memory: what claims, or becomes, more than a machine has --

LIMIT = 1 << 30  # bytes that reading a bomb may add to what the process has


def make_bombs(folder: Path) -> None:
    """Files of little room on the disk that are, or become, gigabytes."""
    import pyarrow
    from pyarrow import parquet

    for name in ("line.jsonl", "line.csv", "line.tsv", "line.txt"):
        with open(folder / name, "wb") as file:
            file.write(b'text,label\n"' if name.endswith("csv") else b"text\n" if name.endswith("tsv") else b"")
            file.truncate(8 << 30)  # a hole: no room on the disk
    with open(folder / "quote.csv", "w") as file:
        file.write('text,label\n"never closed\n' + ("x" * 1023 + "\n") * (40 << 10))
    (folder / "deep.jsonl").write_bytes(b"[" * (15 << 20) + b"\n")
    (folder / "long.txt").write_bytes(b"a b " * (1 << 20) + b"\n")
    text = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0] * 4000, pyarrow.int32()), pyarrow.array(["x" * 50_000_000])
    )
    parquet.write_table(
        pyarrow.table({"text": text}),
        folder / "once.parquet",  # 2 KB that stand for 200 GB
        store_schema=False,
        dictionary_pagesize_limit=1 << 30,
        compression="zstd",
        write_statistics=False,
    )
    (folder / "bomb").mkdir()
    with zipfile.ZipFile(folder / "bomb" / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/data.pkl", b"")
        with archive.open("archive/data/0", "w", force_zip64=True) as file:
            for _ in range(1200):
                file.write(bytes(1 << 20))
    (folder / "expanded").mkdir()
    name = "roberta.embeddings.word_embeddings.weight"
    torch.save({name: torch.zeros(1).expand(1 << 24, 1 << 20)}, folder / "expanded" / "pytorch_model.bin")
    for name in ("bomb", "expanded"):
        config = {"model_type": "roberta", "vocab_size": 1 << 24, "hidden_size": 1 << 20, "num_hidden_layers": 1}
        (folder / name / "config.json").write_text(json.dumps(config | {"num_attention_heads": 1}))


def read_bombs(folder: Path) -> None:
    """Read each with the memory limited, and print what is said; run in a process of its own."""
    import resource

    torch.zeros(4) @ torch.zeros(4)
    import pyarrow.parquet  # noqa: F401

    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + LIMIT, size + LIMIT))
    for path in sorted(folder.iterdir()):
        try:
            if path.is_dir():
                load_pretrained(path)
            else:
                list(read_examples(get_task("sst2"), open_table(path), ["text"], "mend it", labelled=False))
            print(json.dumps([path.name, "read"]))
        except MinipeftError as error:
            print(json.dumps([path.name, str(error)]))


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_no_file_takes_more_memory_than_there_is_for_it(tmp_path: Path) -> None:
    make_bombs(tmp_path)
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    script = (
        f"import sys; sys.path[:0] = {paths}; import test_hostile_files as t; t.read_bombs(t.Path({str(tmp_path)!r}))"
    )
    done = run_command("-c", script, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    said = dict(json.loads(line) for line in done.stdout.splitlines())
    assert set(said) == {path.name for path in tmp_path.iterdir()}
    for name, words in {
        "line.jsonl": "longer than 16 MiB",
        "line.csv": "longer than 16 MiB",
        "line.tsv": "longer than 16 MiB",
        "line.txt": "longer than 16 MiB",
        "quote.csv": "field larger than field limit",
        "deep.jsonl": "nested too deeply",
        "long.txt": "row 0: text has 4,194,304 characters",
        "once.parquet": "row 0: text has 50,000,000 characters",
        "bomb": "it is compressed",
        "expanded": "claims more numbers than the file holds",
    }.items():
        assert words in said[name] and str(tmp_path / name) in said[name], said[name]


# -- pickles and paths --


class Malicious:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["zip", "old format", "bare pickle"])
@pytest.mark.parametrize("place", ["pytorch_model.bin", "checkpoint/state.pt"])
def test_a_pickle_runs_nothing(
    place: str, kind: str, model: Path, tiny_checkpoint: Path, small_data: Path, run: Path, tmp_path: Path
) -> None:
    whole = shutil.copytree(run, tmp_path / "run")
    path = model / place if place == "pytorch_model.bin" else whole / place
    content = {"trained": {}, "optimizer": {}, "progress": {}, "harmless": Malicious(tmp_path / "owned")}
    if kind == "bare pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    if place == "pytorch_model.bin":
        (model / "model.safetensors").unlink()
        refused(lambda: load_pretrained(model), str(path))
    else:
        settings_of_run = json.loads((whole / "config.json").read_text())
        names = ("task", "train_limit", "eval_limit", "epochs")
        again = {name: settings_of_run[name] for name in names}
        before = contents(whole)
        refused(
            lambda: minipeft.train(
                **again,
                model=str(tiny_checkpoint),
                data=str(small_data),
                device="cpu",
                quiet=True,
                output=str(whole),
                resume=True,
            ),
            str(path),
        )
        assert {name: data for name, data in contents(whole).items() if name != "config.json"} == {
            name: data for name, data in before.items() if name != "config.json"
        }
    assert not (tmp_path / "owned").exists()
    if kind == "bare pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert (tmp_path / "owned").exists()  # the pickle was a working one


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", 5, None])
def test_a_shard_outside_the_folder_is_not_read(shard: Any, model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").rename(tmp_path / "outside.safetensors")
    index = {"weight_map": {"roberta.embeddings.word_embeddings.weight": shard}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(lambda: load_pretrained(model), str(model))


def test_export_writes_into_its_folder_alone(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Labels, of which names in files could be made, may hold anything."""
    whole = shutil.copytree(run, tmp_path / "run")
    path = whole / "adapter" / "adapter_model.safetensors"
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        details = json.loads(file.metadata()["minipeft"])
    details["labels"] = ["../../evil", "/etc/evil\n\ud800"]
    save_file(load_file(path), path, metadata={"format": "pt", "minipeft": json.dumps(details)})
    before = contents(tmp_path)
    assert main(["export", str(whole), str(tmp_path / "out")]) == 0
    after = contents(tmp_path)
    assert {name for name in after if name not in before} == {
        f"out/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    }
    assert main(["predict", str(whole), "--text", "a"]) == 0
    assert "evil" in capsys.readouterr().out


# -- a hub that lies --


class Hub(HubServer):
    """A hub whose listing is what a test makes of it."""

    change: dict[str, Any]

    def listing(self, repo: str) -> dict[str, Any]:
        return super().listing(repo) | self.change


LISTINGS: dict[str, dict[str, Any]] = {
    "a commit that is a path": {"sha": "../../../other/model"},
    "a commit of two lines": {"sha": COMMIT[:-2] + "\nx"},
    "an answer of 70 MiB": {"padding": " " * (70 << 20)},
    "files that are text": {"siblings": "config.json"},
    "a file that is a list": {"siblings": [["config.json"]]},
    "a size below nothing": {"siblings": [{"rfilename": "config.json", "size": -5, "blobId": "a" * 40}]},
    "a size of 400 digits": {"siblings": [{"rfilename": "config.json", "size": 10**400, "blobId": "a" * 40}]},
    "an absolute name": {"siblings": [{"rfilename": "/etc/passwd", "size": 1, "blobId": "a" * 40}]},
    "a name above the folder": {"siblings": [{"rfilename": "../config.json", "size": 1, "blobId": "a" * 40}]},
    "a hash that is a path": {"siblings": [{"rfilename": "config.json", "size": 1, "blobId": "../../../../a"}]},
}


@pytest.mark.parametrize("change", LISTINGS)
def test_a_listing_that_lies_writes_nothing(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from minipeft import hub

    server = Hub({"owner/model": {"config.json": b"{}"}})
    server.change = LISTINGS[change]
    server.start()
    try:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.delenv("HF_HUB_OFFLINE")
        refused(lambda: hub.fetch("owner/model", tmp_path / "weights", progress=False), "owner/model")
    finally:
        server.stop()
    assert set(contents(tmp_path)) <= {"weights/.model.lock"}


def test_a_header_of_weights_that_is_nested_deeply_is_no_whole_checkpoint(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a folder under weights/ is looked at before it is used."""
    from minipeft import hub

    for text in (b"[" * 100_000, b'{"a":' * 50_000):
        (model / "model.safetensors").write_bytes(safetensors(text))
        refused(lambda: hub.fetch(model.name, model.parent), str(model))
        (model / "config.json").write_bytes(text)
        refused(lambda: hub.fetch(model.name, model.parent), str(model))
