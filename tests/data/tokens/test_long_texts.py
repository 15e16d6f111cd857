"""Long texts in windows: the windows are those of transformers; runs are those of a plain reference."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import padded, reference_model, run_command
from small_runs import rows, small_run, without_times
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from minipeft import Full, MinipeftError, apply, load_pretrained, load_run, load_tokenizer
from minipeft.cli.cli import main, main_train
from minipeft.data.batches.sampling import epoch_order
from minipeft.data.tasks.task import get_task
from minipeft.data.tokens.examples import encode_texts
from minipeft.data.tokens.long_texts import LongTexts, Windows, encode_windows
from minipeft.training.loop import RunFolder, train_loop
from minipeft.training.optimization.schedule import Schedule

LENGTH, STRIDE = 16, 4
WORDS = [
    "the",
    "film",
    "was",
    "good",
    "and",
    "we",
    "saw",
    "a",
    "long",
    "story",
    "of",
    "people",
    "in",
    "town",
    "with",
    "music",
]


def texts_of(count: int, seed: int = 0) -> list[str]:
    """Texts of 1 to 60 words."""
    chooser = random.Random(seed)
    return [" ".join(chooser.choices(WORDS, k=1 + (17 * number) % 60)) for number in range(count)]


def their_windows(
    folder: Path, texts: list[str], pairs: list[str] | None = None, longer: Any = True
) -> list[list[Any]]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = tokenizer(texts, pairs, max_length=LENGTH, stride=STRIDE, truncation=longer, return_overflowing_tokens=True)
    windows: list[list[Any]] = [[] for _ in texts]
    for ids, owner in zip(found["input_ids"], found["overflow_to_sample_mapping"], strict=True):
        windows[owner].append(ids)
    return windows


def test_the_windows_are_those_of_transformers(tiny_checkpoint: Path) -> None:
    tokenizer, texts = load_tokenizer(tiny_checkpoint), texts_of(30)
    ours = encode_windows(tokenizer, texts, None, LENGTH, STRIDE)
    assert [[one.ids for one in found] for found in ours] == their_windows(tiny_checkpoint, texts)
    assert max(map(len, ours)) > 3 and min(map(len, ours)) == 1 and tokenizer.truncated == 0


@pytest.mark.parametrize("second", [False, True])
def test_of_a_pair_the_longer_text_is_split(second: bool, tiny_checkpoint: Path) -> None:
    tokenizer, long, short = load_tokenizer(tiny_checkpoint), texts_of(20), ["we saw a film"] * 20
    long = [text for text in long if len(text.split()) > 6]
    sides = (short[: len(long)], long) if second else (long, short[: len(long)])
    ours = encode_windows(tokenizer, *sides, LENGTH, STRIDE)
    expected = their_windows(tiny_checkpoint, *sides, longer="only_second" if second else "only_first")
    assert [[one.ids for one in found] for found in ours] == expected and tokenizer.truncated == 0


def test_a_pair_of_two_long_texts_is_truncated_and_counted(tiny_checkpoint: Path) -> None:
    tokenizer, text = load_tokenizer(tiny_checkpoint), " ".join(WORDS * 2)
    (found,) = encode_windows(tokenizer, [text], [text], LENGTH, STRIDE)
    assert [one.ids for one in found] == [list(tokenizer.encode([text], [text], LENGTH)[0])]
    assert tokenizer.truncated == 2  # once here, once by encode


def test_a_stride_that_leaves_no_room_is_refused(tiny_checkpoint: Path) -> None:
    tokenizer = load_tokenizer(tiny_checkpoint)
    with pytest.raises(MinipeftError, match=r"--stride 14 is not below the 14 tokens of text in a sequence\. Lower"):
        encode_windows(tokenizer, ["a text"], None, LENGTH, 14)
    with pytest.raises(MinipeftError, match=r"--stride 6 is not below half of the 12 tokens"):
        encode_windows(tokenizer, ["a text"], ["another"], LENGTH, 6)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_pooling_is_that_of_numpy(pooling: str) -> None:
    logits = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    pooled = Windows(pooling, np.array([2, 1, 4])).pool(logits).numpy()
    reduce = {"mean": np.mean, "max": np.max}[pooling]
    expected = np.stack([reduce(part, axis=0) for part in np.split(logits.numpy(), [2, 3])])
    np.testing.assert_allclose(pooled, expected, rtol=1e-6)


def test_training_is_that_of_a_plain_loop_over_windows(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A step's loss is the mean over its texts of the mean over their windows, whatever the batches; within 1e-5."""
    tokenizer, texts, per_step = load_tokenizer(tiny_checkpoint), texts_of(10), 4
    labels = [number % 2 for number in range(len(texts))]
    reference = reference_model(
        vocab_size=tokenizer.vocab_size, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    reference.save_pretrained(tmp_path / "checkpoint")
    train = encode_texts(get_task("sst2"), texts, None, tokenizer, LENGTH, LongTexts(STRIDE, "mean"), labels)
    assert len(train) == len(texts) < len(train.sequences)
    schedule = Schedule(1, 1e-3, 0, 0.0, per_step, 64, 3, "accuracy", max_grad_norm=0.0)
    histories = []
    from dataclasses import replace

    from minipeft.data.tokens.examples import Examples

    for max_tokens in (10_000, 40, 1):
        model = apply(load_pretrained(tmp_path / "checkpoint"), Full())
        folder = tmp_path / f"run-{max_tokens}"
        folder.mkdir()
        plan = replace(schedule, max_tokens=max_tokens)
        histories.append(train_loop(model, Examples(train, train), plan, RunFolder(folder, quiet=True)).history)

    windows = their_windows(tiny_checkpoint, texts)
    optimizer = torch.optim.AdamW(reference.parameters(), weight_decay=0.0)
    order, losses = epoch_order(len(texts), 3, 0), 0.0
    for step, start in enumerate(range(0, len(texts), per_step)):
        chosen = order[start : start + per_step]
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate(step, 3)
        parts = []
        for index in chosen:
            logits = reference.train()(**padded(windows[index])).logits
            parts.append(torch.nn.functional.cross_entropy(logits, torch.tensor([labels[index]] * len(logits))))
        loss = torch.stack(parts).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses += loss.item() * len(chosen)
    with torch.no_grad():
        pooled = torch.stack([reference.eval()(**padded(found)).logits.mean(0) for found in windows])
    expected = torch.nn.functional.cross_entropy(pooled, torch.tensor(labels)).item()
    for history in histories:
        assert history[0]["train_loss"] == pytest.approx(losses / len(texts), abs=1e-5)
        assert history[0]["eval_loss"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_a_run_predicts_from_the_pooled_logits_of_its_windows(
    pooling: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    texts = texts_of(40)
    found = [{"text": text, "label": "long" if len(text.split()) > 20 else "short"} for text in texts]
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in found))
    options: dict[str, Any] = {"task": "auto", "long_text": "window", "window_pooling": pooling, "holdout": 0.2}
    options |= {"train_limit": None, "eval_limit": None, "max_length": LENGTH, "stride": STRIDE, "precision": "fp32"}
    small_run(tiny_checkpoint, source, tmp_path / "run", **options, epochs=1)
    run = load_run(tmp_path / "run")
    values, (row,) = run.evaluate(), rows(tmp_path / "run")
    assert values == {name: row[name] for name in values}
    run.export(tmp_path / "export")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export")
    with torch.no_grad():
        logits = [theirs(**padded(windows)).logits for windows in their_windows(tiny_checkpoint, texts)]
    pooled = torch.stack([one.mean(0) if pooling == "mean" else one.max(0).values for one in logits])
    np.testing.assert_allclose(run.predict_proba(texts), pooled.softmax(1), atol=1e-5)
    arguments = ["--input", str(source), "--output", str(tmp_path / "out.jsonl")]
    assert main(["predict", str(tmp_path / "run"), *arguments]) == 0
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == run.predict(texts)
    # another stride would change the run; the same one continues it
    before = without_times(rows(tmp_path / "run"))
    small_run(tiny_checkpoint, source, tmp_path / "run", **options, epochs=1, resume=True)
    assert without_times(rows(tmp_path / "run")) == before
    with pytest.raises(MinipeftError, match=r"the run has stride 4, not 5"):
        small_run(tiny_checkpoint, source, tmp_path / "run", **options | {"stride": 5}, epochs=1, resume=True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--long-text", "split"], "--long-text 'split'; one of truncate, window"),
        (["--stride", "8"], "--stride 8 is for --long-text window"),
        (["--window-pooling", "max"], "--window-pooling 'max' is for --long-text window"),
        (["--long-text", "window", "--window-pooling", "first"], "--window-pooling 'first'; one of mean, max"),
        (["--long-text", "window", "--stride", "-1"], "--stride -1 is not a whole number of 0 or more"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_train(["--output", str(tmp_path / "run"), *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.full
def test_two_processes_train_to_the_losses_of_one(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """With windows, class weights and label smoothing; without dropout."""
    model = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (model / "config.json").write_text(json.dumps(config))
    found = [{"text": text, "label": "long" if len(text.split()) > 45 else "short"} for text in texts_of(40)]
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in found))
    options = {"long_text": "window", "max_length": LENGTH, "stride": STRIDE, "precision": "fp32", "dropout": 0.0}
    options |= {"class_weights": "balanced", "label_smoothing": 0.1, "device": "cpu", "epochs": 2, "batch_size": 8}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    arguments = ["train.py", f"--data={source}", f"--model={model}", "--grad-accum=1", "--quiet", *flags]
    assert main_train([*arguments[1:], f"--output={tmp_path / 'one'}"]) == 0
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = run_command(*torchrun, *arguments, f"--output={tmp_path / 'two'}", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert two["train_loss"] == pytest.approx(one["train_loss"], abs=1e-5)
        assert two["eval_loss"] == pytest.approx(one["eval_loss"], abs=1e-5)
