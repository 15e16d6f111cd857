"""Bad input on the command line: one clear line, status 2, and nothing written or overwritten."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPOSITORY, refused, run_command
from safetensors.torch import load_file, save_file

from minipeft.cli.cli import main

SMALL = ["--epochs", "1", "--train-limit", "32", "--eval-limit", "16", "--batch-size", "8", "--grad-accum", "1"]


class Place:
    """A checkpoint and a data folder of one's own, to damage."""

    def __init__(self, folder: Path, checkpoint: Path, data: Path) -> None:
        self.folder = folder
        self.model = shutil.copytree(checkpoint, folder / "model")
        self.data = shutil.copytree(data, folder / "data")
        self.output = folder / "output"

    def train(self, *more: str, task: str = "rte") -> list[str]:
        own = {"--task": task, "--model": self.model, "--data": self.data, "--output": self.output}
        return ["train", *(str(word) for flag in own.items() for word in flag), *SMALL, "--device", "cpu", *more]

    def rows(self, edit: Callable[[list[dict[str, Any]]], Any], split: str = "train") -> None:
        path = self.data / "rte" / f"{split}.jsonl"
        content = [json.loads(line) for line in path.read_text().splitlines()]
        edit(content)
        path.write_text("".join(json.dumps(row) + "\n" for row in content))

    def config(self, **changes: Any) -> None:
        path = self.model / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    def weights(self, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
        state = load_file(self.model / "model.safetensors")
        edit(state)
        save_file(state, self.model / "model.safetensors", metadata={"format": "pt"})

    def damage(self, name: str, change: Callable[[bytes], bytes]) -> None:
        (self.model / name).write_bytes(change((self.model / name).read_bytes()))


@pytest.fixture
def place(tmp_path: Path, tiny_checkpoint: Path, small_data: Path) -> Place:
    return Place(tmp_path, tiny_checkpoint, small_data)


def test_bad_data_ends_a_real_process_with_status_2_and_one_line(place: Place) -> None:
    """The new head, which the checkpoint lacks, is not spoken of before the data are known to be good."""
    place.rows(lambda rows: rows[7].update(label="maybe"))
    done = run_command(REPOSITORY / "train.py", *place.train()[1:])
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1, done.stderr
    assert "line 8: label 'maybe'" in done.stderr and not place.output.exists()


def test_a_learning_rate_that_blows_up_is_one_line_too(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(place.train("--lr", "1e36", "--warmup-steps", "0", "--quiet")) == 2
    out, error = capsys.readouterr()
    assert out == "" and len(error.splitlines()) == 1
    assert re.match(r"minipeft: step \d+: .*(nan|inf).*[Ll]ower --lr", error)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--task", "rtf"], "unknown task 'rtf'; one of rte, sst2, cola, mrpc, stsb, qnli, qqp, mnli, wnli"),
        (["--method", "lroa"], "unknown method 'lroa'; one of lora, dora, adalora, vera, bitfit"),
        (["--targets", "query", "values"], "unknown target 'values'; one of query, key, value, output, intermediate"),
        (["--rank", "0"], "rank 0"),
        (["--rank", "-1"], "rank -1"),
        (["--alpha", "nan"], "alpha nan"),
        (["--dropout", "1"], "dropout 1.0"),
        (["--dropout", "-0.1"], "dropout -0.1"),
        (["--method", "bitfit", "--rank", "2"], "--rank 2 has no meaning for bitfit"),
        (["--method-options", "rslora"], "'rslora' is not NAME=VALUE"),
        (["--method-options", "scale=2"], "lora has no 'scale'. Its options are: rslora, init, lr_ratio"),
        (["--method-options", "rank=2"], "lora has no 'rank'. Its options are"),
        (["--method-options", "init=olora"], "unknown init 'olora'; one of kaiming, gaussian, pissa"),
        (["--method-options", 'rank_pattern={"9.query": 2}'], "'9.query' fits no target. The targets are query, value"),
        (["--method", "prompt_tuning", "--method-options", "num-virtual-tokens=0"], "num_virtual_tokens 0"),
        (["--method", "full", "--targets", "key"], "--targets ['key'] has no meaning for full"),
        (["--method", "head", "--dropout", "0"], "--dropout 0.0 has no meaning for head"),
        (["--epochs", "0"], "--epochs 0"),
        (["--lr", "-0.001"], "--lr -0.001"),
        (["--lr", "nan"], "--lr nan"),
        (["--lr", "inf"], "--lr inf"),
        (["--weight-decay", "-1"], "--weight-decay -1.0"),
        (["--warmup-steps", "-1"], "--warmup-steps -1"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--grad-accum", "-4"], "--grad-accum -4"),
        (["--max-tokens", "0"], "--max-tokens 0"),
        (["--train-limit", "0"], "--train-limit 0"),
        (["--eval-limit", "0"], "--eval-limit 0"),
        (["--max-length", "129"], "--max-length 129 is beyond the model's position table. Choose at most 128"),
        (["--max-length", "0"], "--max-length 0"),
        (["--max-length", "4"], "max_length 4 leaves no room"),
        (["--seed", "99999999999999999999"], "--seed 99999999999999999999"),
        (["--device", "tpu"], "unknown device 'tpu'; one of auto, cpu, cuda, mps"),
        (["--precision", "fp16"], "unknown --precision 'fp16'; one of auto, fp32, bf16"),
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--model", "example/no-such-encoder"], "example/no-such-encoder"),
        (["--data", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--task", "cola"], "no folder cola"),
    ],
)
def test_a_bad_flag_is_refused(
    flags: list[str], expected: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refused(place.train(*flags), place.folder, capsys)


def test_cuda_is_refused_where_it_is_absent(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device, so nothing is refused")
    assert "device cuda: this machine or this torch has none" in refused(
        place.train("--device", "cuda"), place.folder, capsys
    )


def drop(name: str) -> Callable[[Place], None]:
    return lambda place: (place.model / name).unlink()


def change_row(row: int, **changes: Any) -> Callable[[Place], None]:
    return lambda place: place.rows(lambda rows: rows[row].update(changes))


def without_column(name: str) -> Callable[[Place], None]:
    return lambda place: place.rows(lambda rows: [row.pop(name) for row in rows])


LAYER = "roberta.encoder.layer.0.output.dense.weight"
DAMAGES: dict[str, tuple[Callable[[Place], Any], str]] = {
    "no weights": (drop("model.safetensors"), "no weights"),
    "no config": (drop("config.json"), "no config.json"),
    "no tokenizer": (drop("tokenizer.json"), "no tokenizer.json"),
    "weights cut short": (lambda p: p.damage("model.safetensors", lambda b: b[:-9]), "not a whole safetensors"),
    "weights cut in the header": (lambda p: p.damage("model.safetensors", lambda b: b[:40]), "not a whole safetensors"),
    "empty weights": (lambda p: p.damage("model.safetensors", lambda b: b""), "not a whole safetensors"),
    "weights that are text": (
        lambda p: p.damage("model.safetensors", lambda b: b"<html>404</html>" * 99),
        "not a whole safetensors",
    ),
    "a config that is no JSON": (lambda p: p.damage("config.json", lambda b: b[:-20]), "not readable as JSON"),
    "a config that is a list": (lambda p: p.damage("config.json", lambda b: b"[]"), "no JSON object"),
    "a tokenizer cut short": (lambda p: p.damage("tokenizer.json", lambda b: b[:300]), "tokenizer files cannot be"),
    "another architecture's config": (lambda p: p.config(model_type="gpt2"), "model_type 'gpt2' is not supported"),
    "another activation": (lambda p: p.config(hidden_act="mish"), "unknown hidden_act 'mish'; one of gelu"),
    "bert's config with roberta's weights": (
        lambda p: p.config(model_type="bert", pad_token_id=0),
        "tensor bert.embeddings.word_embeddings.weight is missing",
    ),
    "more layers than the weights have": (lambda p: p.config(num_hidden_layers=3), "encoder.layer.2"),
    "another vocabulary size": (lambda p: p.config(vocab_size=501), "word_embeddings.weight has shape (500, 32)"),
    "another width": (
        lambda p: p.weights(lambda s: s.update({LAYER: torch.zeros(32, 60)})),
        f"{LAYER} has shape (32, 60)",
    ),
    "a tensor too few": (lambda p: p.weights(lambda s: s.pop(LAYER)), "encoder.layer.0.output.dense.weight"),
    "a tensor of integers": (lambda p: p.weights(lambda s: s.update({LAYER: s[LAYER].long()})), "torch.int64"),
    "a label outside the task's": (
        change_row(7, label=2),
        "line 8: label 2 is not one of rte's: 0 entailment",
    ),
    "a label that is hidden": (change_row(3, label=-1), "line 4: label -1"),
    "no label column": (without_column("label"), "no column 'label'"),
    "no text column": (without_column("sentence2"), "no column 'sentence2' (there are sentence1, label, idx)"),
    "a null sentence": (change_row(5, sentence2=None), "train.jsonl, line 6: sentence2 is null"),
    "an empty split": (lambda p: p.rows(lambda rows: rows.clear()), "train.jsonl"),
    "no validation split": (lambda p: (p.data / "rte" / "validation.jsonl").unlink(), "no validation.parquet"),
    "a split that is no JSON": (
        lambda p: (p.data / "rte" / "train.jsonl").write_text("sentence1\tsentence2\n"),
        "train.jsonl: not readable",
    ),
    "an empty sst2 split": (lambda p: _empty_parquet(p.data / "rte"), "train.parquet: the split is empty"),
    "a parquet file cut short": (
        lambda p: (p.data / "rte" / "train.parquet").write_bytes(b"PAR1 and no more"),
        "train.parquet: not readable",
    ),
}


def _empty_parquet(folder: Path) -> None:
    from datasets import Dataset

    Dataset.from_dict({"sentence1": [], "sentence2": [], "label": []}).to_parquet(folder / "train.parquet")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_input_is_refused(damage: str, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    change, expected = DAMAGES[damage]
    change(place)
    assert expected in refused(place.train(), place.folder, capsys)


def test_a_tokenizer_larger_than_the_model_is_refused_with_the_row(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    def shrink(state: dict[str, torch.Tensor]) -> None:
        for name in ("roberta.embeddings.word_embeddings.weight", "lm_head.bias"):
            state[name] = state[name][:280].clone()

    place.weights(shrink)
    place.config(vocab_size=280)
    assert "outside the model's vocabulary of 280" in refused(place.train(), place.folder, capsys)


def test_an_output_that_cannot_be_a_folder_is_refused(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    (place.folder / "file").write_text("not a folder")
    for output in ("file", "file/run"):
        arguments = place.train("--output", str(place.folder / output))
        assert str(place.folder / "file") in refused(arguments, place.folder, capsys)


def test_an_output_that_holds_a_run_is_refused(
    small_runs: dict[str, Path], place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(small_runs["rte"], place.folder / "run")
    line = refused(place.train("--output", str(run)), place.folder, capsys)
    assert "already holds a run. Pass --resume" in line


@pytest.mark.parametrize("command", [["evaluate"], ["predict", "--text", "a"]])
def test_a_folder_that_is_no_run_is_refused(
    command: list[str], place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (place.folder / "absent", place.model, place.data):
        assert str(folder) in refused([command[0], str(folder), *command[1:]], place.folder, capsys)


@pytest.mark.parametrize(
    ("task", "more", "expected"),
    [
        ("rte", ["--text", "a"], "give each text a pair"),
        ("rte", ["--text", "a", "--text", "b", "--pair", "c"], "2 texts but 1 pairs"),
        ("sst2", ["--text", "a", "--pair", "b"], "give no pair"),
    ],
)
def test_predict_with_the_wrong_number_of_sentences_is_refused(
    task: str, more: list[str], expected: str, small_runs: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refused(["predict", str(small_runs[task]), *more], small_runs[task], capsys)


def test_a_damaged_run_is_refused(
    small_runs: dict[str, Path], place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(small_runs["rte"], place.folder / "run")
    weights, config = run / "adapter" / "adapter_model.safetensors", run / "adapter" / "adapter_config.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-8])
    assert str(weights) in refused(["evaluate", str(run)], place.folder, capsys)
    weights.unlink()
    assert str(weights) in refused(["evaluate", str(run)], place.folder, capsys)
    weights.write_bytes(whole)
    content = json.loads(config.read_text())
    config.write_text(json.dumps(content | {"peft_type": "LOHA"}))
    assert "LOHA" in refused(["predict", str(run), "--text", "a", "--pair", "b"], place.folder, capsys)


def test_evaluating_an_unknown_or_unlabelled_split_is_refused(
    small_runs: dict[str, Path], place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", str(small_runs["rte"]), "--data", str(place.data), "--split"]
    assert "no test.parquet" in refused([*arguments, "test"], place.folder, capsys)
    place.rows(lambda rows: [row.update(label=-1) for row in rows], "validation")
    assert "GLUE hides the labels" in refused([*arguments, "validation"], place.folder, capsys)


def test_exporting_over_something_is_refused(
    small_runs: dict[str, Path], place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "is not empty" in refused(["export", str(small_runs["rte"]), str(place.model)], place.folder, capsys)
    (place.folder / "file").write_text("not a folder")
    refused(["export", str(small_runs["rte"]), str(place.folder / "file")], place.folder, capsys)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--text", "/nowhere/at/all.txt"], "/nowhere/at/all.txt"),
        (["--model", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--steps", "0"], "--steps 0"),
        (["--batch-tokens", "8"], "--batch-tokens 8"),
        (["--block-length", "2"], "--block-length 2"),
        (["--block-length", "600"], "--block-length 600"),
        (["--long-block-length", "600"], "--long-block-length 600"),
        (["--lr", "-1"], "--lr -1.0"),
        (["--lr", "nan"], "--lr nan"),
        (["--evaluate-every", "0"], "--evaluate-every 0"),
        (["--num-attention-heads", "5"], "num_attention_heads 5"),
        (["--dropout", "1.5"], "--dropout 1.5"),
        (["--vocab-size", "100"], "--vocab-size 100"),
        (["--device", "tpu"], "unknown device 'tpu'"),
    ],
)
def test_a_bad_pretraining_flag_is_refused(
    flags: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Line {number} of some text about dogs and cats.\n" for number in range(400)))
    model = ["--vocab-size", 300, "--hidden-size", 16, "--num-hidden-layers", 1, "--num-attention-heads", 2]
    blocks = ["--block-length", 32, "--long-block-length", 64, "--batch-tokens", 128]
    arguments = ["pretrain", "--text", text, "--output", tmp_path / "output", *model, *blocks, "--steps", 2]
    arguments += ["--device", "cpu", "--quiet"]
    assert expected in refused([*arguments, *flags], tmp_path, capsys)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("short.txt", b"one line\n", "1 lines of text"),
        ("empty.txt", b"", "empty.txt: the file is empty"),
        ("latin.txt", "caf\xe9\n".encode("latin-1") * 300, "latin.txt"),
        ("broken.jsonl", b'{"text": "a"}\n{"texts": "b"}\n', "broken.jsonl, line 2"),
    ],
)
def test_bad_pretraining_text_is_refused(
    name: str, content: bytes, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    arguments = ["pretrain", "--text", tmp_path / name, "--output", tmp_path / "output"]
    line = refused([*arguments, "--device", "cpu", "--vocab-size", 300, "--quiet"], tmp_path, capsys)
    assert expected in line
