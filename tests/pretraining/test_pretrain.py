"""Masked-language-model pretraining: masks, blocks, a kill in the middle, going on from a checkpoint."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, contents, environment
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from small_runs import same_tensors, state

from minipeft import MinipeftError, load_pretrained, load_tokenizer, pack
from minipeft.data.tasks.synthetic import generate
from minipeft.lease import Lease
from minipeft.model.config import EncoderConfig
from minipeft.model.language_model import load_language_model
from minipeft.pretraining.pretrain import TokenizedText, mask, pretrain
from minipeft.pretraining.pretrain_settings import PretrainSettings
from minipeft.training.run_folder.checkpoint_files import has_checkpoint


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(generate("rte", "train")["sentence1"][:1200]) + "\n", encoding="utf-8")
    return path


def settings(text: Path, output: Path, **changes: Any) -> PretrainSettings:
    return replace(
        PretrainSettings(
            text=(str(text),),
            output=str(output),
            vocab_size=400,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            steps=60,
            batch_tokens=256,
            block_length=32,
            long_block_length=64,
            lr=3e-3,
            warmup_steps=5,
            evaluate_every=20,
            dropout=0.1,
            quiet=True,
        ),
        **changes,
    )


def flags(wanted: PretrainSettings) -> list[str]:
    """The same settings on the command line."""
    given: list[str] = []
    for name, value in vars(wanted).items():
        if value is True:
            given.append(f"--{name}")
        elif value not in (False, None):
            given += [f"--{name.replace('_', '-')}", *(value if name == "text" else [str(value)])]
    return given


# -- masking --


def test_masks_hide_15_percent_of_the_tokens_in_the_ratio_80_10_10(tiny_checkpoint: Path) -> None:
    """Each count within five standard deviations of its binomial's mean."""
    tokenizer = load_tokenizer(tiny_checkpoint)
    config = EncoderConfig(vocab_size=500, hidden_size=8, num_attention_heads=2)
    generator = torch.Generator().manual_seed(1)
    rows = [[0, *torch.randint(5, 500, (398,), generator=generator).tolist(), 2] for _ in range(500)]
    batch = pack(rows, config=config)
    torch.manual_seed(0)
    changed, masked, targets = mask(batch, tokenizer)

    def near(count: int, total: int, chance: float) -> bool:
        return abs(count - total * chance) < 5 * math.sqrt(total * chance * (1 - chance))

    assert torch.equal(targets, batch.input_ids[masked])
    assert len(set(masked.tolist())) == len(masked)
    assert not set(targets.tolist()) & tokenizer.special_token_ids
    untouched = torch.ones(batch.total_tokens, dtype=torch.bool)
    untouched[masked] = False
    assert torch.equal(changed.input_ids[untouched], batch.input_ids[untouched])
    assert near(len(masked), 500 * 398, 0.15)
    now = changed.input_ids[masked]
    assert near(int((now == tokenizer.mask_token_id).sum()), len(masked), 0.8 + 0.1 / 500)
    assert near(int((now == targets).sum()), len(masked), 0.1 + 0.1 / 500)
    at_random = now[(now != targets) & (now != tokenizer.mask_token_id)]
    assert near(len(at_random), len(masked), 0.1 * 498 / 500)
    assert near(int((at_random < 250).sum()), len(at_random), 249 / 499)
    assert torch.equal(changed.cu_seqlens, batch.cu_seqlens) and torch.equal(changed.position_ids, batch.position_ids)


def test_masks_are_new_each_time_and_never_none(tiny_checkpoint: Path) -> None:
    tokenizer = load_tokenizer(tiny_checkpoint)
    config = EncoderConfig(vocab_size=500, hidden_size=8, num_attention_heads=2)
    batch = pack([[0, *range(5, 105), 2]], config=config)
    torch.manual_seed(0)
    assert mask(batch, tokenizer)[1].tolist() != mask(batch, tokenizer)[1].tolist()
    tiny = pack([[0, 7, 2]], config=config)
    for _ in range(20):
        _, masked, targets = mask(tiny, tokenizer)
        assert masked.tolist() == [1] and targets.tolist() == [7]


# -- blocks --


@given(st.lists(st.integers(0, 60), max_size=60), st.integers(3, 40))
def test_blocks_hold_every_token_once_in_order(lengths: list[int], length: int) -> None:
    tokens = np.arange(sum(lengths), dtype=np.int32) + 10
    text = TokenizedText(tokens, np.cumsum([0, *lengths]), 0, 2)
    blocks = [text.block(*block) for block in text.blocks(length)]
    assert [token for block in blocks for token in block[1:-1]] == tokens.tolist()
    for block in blocks:
        assert 3 <= len(block) <= length and block[0] == 0 and block[-1] == 2


@given(st.lists(st.integers(0, 60), max_size=60), st.integers(3, 40))
def test_a_block_ends_early_only_where_a_line_ends_and_three_quarters_are_full(lengths: list[int], length: int) -> None:
    offsets = np.cumsum([0, *lengths])
    text = TokenizedText(np.zeros(sum(lengths), dtype=np.int32), offsets, 0, 2)
    for start, end in text.blocks(length)[:-1]:
        full = end - start == length - 2
        assert full or (end in offsets and end - start >= 0.75 * (length - 2))


# -- a run --


@pytest.fixture(scope="module")
def unbroken(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained") / "model"
    pretrain(settings(text, folder))
    return folder


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_loss_falls_and_the_result_says_so(unbroken: Path) -> None:
    history, result = metrics(unbroken), json.loads((unbroken / "result.json").read_text())
    assert [row["step"] for row in history] == [20, 40, 60]
    assert all(row["eval_loss"] < math.log(400) - 1 for row in history)  # that of a new model is about log(400)
    assert result["perplexity"] == pytest.approx(math.exp(result["eval_loss"]))
    assert result["eval_loss"] == history[-1]["eval_loss"]


def test_the_result_is_a_checkpoint_for_us_and_for_transformers(unbroken: Path) -> None:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    sentence = "The OLD dog slept, and nobody saw it."
    ours, tokenizer = load_language_model(unbroken).eval(), load_tokenizer(unbroken)
    theirs = AutoModelForMaskedLM.from_pretrained(unbroken, dtype=torch.float32).eval()
    (ids,) = tokenizer.encode([sentence])
    assert AutoTokenizer.from_pretrained(unbroken)(sentence)["input_ids"] == ids
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0]
        torch.testing.assert_close(ours(pack([ids], config=ours.config)), expected, atol=1e-5, rtol=0)
    classifier = load_pretrained(unbroken, num_labels=3).eval()
    assert classifier(pack([ids], config=classifier.config)).shape == (1, 3)
    assert (
        json.loads((unbroken / "config.json").read_text())["hidden_dropout_prob"] == 0.1
    )  # what it was pretrained with


@pytest.mark.parametrize(
    ("sent", "status"), [pytest.param(signal.SIGKILL, -signal.SIGKILL, marks=pytest.mark.full), (signal.SIGINT, 130)]
)
def test_a_run_ended_in_the_middle_goes_on_to_the_same_bits(
    text: Path, unbroken: Path, tmp_path: Path, sent: signal.Signals, status: int
) -> None:
    """While each step saves; with dropout, and with rows already written after the last checkpoint."""
    wanted = settings(text, tmp_path / "model")
    process = subprocess.Popen(
        [sys.executable, "-m", "minipeft", "pretrain", *flags(replace(wanted, checkpoint_minutes=1e-9))],
        cwd=REPOSITORY,
        env=environment(),
        stderr=subprocess.PIPE,
    )
    while not has_checkpoint(tmp_path / "model"):
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.002)
    process.send_signal(sent)
    process.communicate()
    assert process.returncode == status
    step = state(tmp_path / "model")["step"]
    assert 0 < step < wanted.steps
    before = contents(tmp_path)
    with pytest.raises(MinipeftError, match="already holds a pretraining run"):
        pretrain(wanted)
    with pytest.raises(MinipeftError, match=r"the run has lr 0\.003, not 0\.004"):
        pretrain(replace(wanted, lr=0.004, resume=True))
    assert contents(tmp_path) == before
    late = {"step": step + 1, "eval_loss": 9.9}  # as if it had been evaluated after the last checkpoint
    with open(tmp_path / "model" / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(late) + "\n" + '{"step": ')  # and a line that a full disk has truncated
    pretrain(replace(wanted, resume=True))
    assert metrics(tmp_path / "model") == metrics(unbroken)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "model", unbroken))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert same_tensors(*(state(folder)["weights"] for folder in (tmp_path / "model", unbroken)))


def test_a_folder_that_another_process_holds_is_refused(text: Path, tmp_path: Path) -> None:
    with Lease(tmp_path / "model"), pytest.raises(MinipeftError, match=f"is in use by process {os.getpid()} on"):
        pretrain(settings(text, tmp_path / "model"))
    assert not (tmp_path / "model").exists()


def test_a_damaged_state_is_refused(text: Path, unbroken: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(unbroken, tmp_path / "model")
    record = json.loads((folder / "pretrain.json").read_text()) | {"output": str(folder)}
    (folder / "pretrain.json").write_text(json.dumps(record))
    (weights,) = folder.glob("checkpoint/*.weights.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(MinipeftError, match=r"weights\.safetensors does not have its SHA-256\). Remove"):
        pretrain(settings(text, folder, resume=True))


@pytest.mark.parametrize("name", ["train.safetensors", "validation.safetensors"])
def test_damaged_token_ids_are_an_error_of_one_line(name: str, text: Path, unbroken: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(unbroken, tmp_path / "model")
    record = json.loads((folder / "pretrain.json").read_text()) | {"output": str(folder)}
    (folder / "pretrain.json").write_text(json.dumps(record))
    tokens = folder / "checkpoint" / name
    tokens.write_bytes(tokens.read_bytes()[:-100])
    with pytest.raises(MinipeftError, match=rf"{name}: cannot be read .*Remove it"):
        pretrain(settings(text, folder, resume=True))


def test_pretraining_goes_on_from_a_checkpoint_with_text_in_jsonl(
    tiny_checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    jsonl = tmp_path / "text.jsonl"
    lines = text.read_text(encoding="utf-8").splitlines()
    jsonl.write_text("".join(json.dumps({"text": line, "id": number}) + "\n" for number, line in enumerate(lines)))
    before = contents(tiny_checkpoint)
    result = pretrain(settings(jsonl, tmp_path / "model", model=str(tiny_checkpoint), steps=40))
    assert contents(tiny_checkpoint) == before
    history = metrics(tmp_path / "model")
    assert result["eval_loss"] == history[-1]["eval_loss"] < history[0]["eval_loss"]
    assert (tmp_path / "model" / "tokenizer.json").read_bytes() == before["tokenizer.json"]
    start, end = (load_language_model(folder).state_dict() for folder in (tiny_checkpoint, tmp_path / "model"))
    assert start.keys() == end.keys() and not any(torch.equal(start[n], end[n]) for n in start if n.endswith("weight"))
    same = pretrain(settings(text, tmp_path / "from-text", model=str(tiny_checkpoint), steps=40))
    assert same == result  # the same lines as a text file


def test_a_learning_rate_that_blows_up_keeps_the_last_state(text: Path, tmp_path: Path) -> None:
    wanted = settings(text, tmp_path / "model", lr=1e36, warmup_steps=1, checkpoint_minutes=0.0)
    with pytest.raises(MinipeftError, match=r"step \d+: the loss is (nan|inf).*lower --lr"):
        pretrain(wanted)
    assert all(torch.isfinite(tensor).all() for tensor in state(tmp_path / "model")["weights"].values())


def test_bf16_pretraining_keeps_float32_weights(text: Path, tmp_path: Path) -> None:
    result = pretrain(settings(text, tmp_path / "model", precision="bf16", steps=20))
    assert {tensor.dtype for tensor in state(tmp_path / "model")["weights"].values()} == {torch.float32}
    exact = pretrain(settings(text, tmp_path / "exact", steps=20))
    assert result["eval_loss"] == pytest.approx(exact["eval_loss"], abs=0.05)
