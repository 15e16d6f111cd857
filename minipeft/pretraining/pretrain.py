"""Masked-language-model pretraining after RoBERTa (Liu et al. 2019), on the packed encoder.

Full sentences packed into blocks, masked dynamically (15% of the tokens: 80% <mask>, 10% a random
token, 10% kept), no next-sentence prediction; AdamW with beta2 0.98, linear warmup and decay. Every step's blocks,
masks and dropout are pure functions of (seed, step), so a run that was killed resumes to the same bits.
"""

import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from minipeft.data.batches.packing import PackedBatch, pack
from minipeft.data.batches.sampling import epoch_order
from minipeft.data.tokens.tokenizer import Tokenizer, load_tokenizer
from minipeft.errors import Interrupted, MinipeftError, first_line
from minipeft.files import (
    FORMAT,
    check_output,
    make_folder,
    read_json,
    write_atomically,
    write_json,
    write_lines,
)
from minipeft.hub import resolve_model
from minipeft.lease import Lease
from minipeft.model.config import EncoderConfig
from minipeft.model.language_model import MaskedLanguageModel, load_language_model
from minipeft.model.layers import init_weights
from minipeft.model.roberta import Encoder, EncoderLayer
from minipeft.model.saved_checkpoint import save_checkpoint
from minipeft.pretraining.corpus import TokenizedText, mask, read_texts, tokenize_lines, train_tokenizer
from minipeft.pretraining.init_from_counts import init_from_counts
from minipeft.pretraining.pretrain_checks import HELD_OUT_EVERY, RECORD, complete_settings, new_config
from minipeft.pretraining.pretrain_settings import PretrainSettings
from minipeft.progress_bar import disable_bar
from minipeft.training.optimization.optimizer import adamw, set_learning_rate
from minipeft.training.optimization.schedule import linear_schedule
from minipeft.training.run_folder.checkpoint_files import has_checkpoint, write_checkpoint
from minipeft.training.run_folder.checkpoint_reader import load_state, read_last_checkpoint
from minipeft.training.run_folder.signals import collect_signals
from minipeft.training.settings.setting import rows

_epoch_order = lru_cache(maxsize=1)(epoch_order)  # asked for in every step


def pretrain(settings: PretrainSettings) -> dict[str, Any]:
    """Pretrain; returns validation loss and perplexity. `settings.output` becomes a checkpoint folder.

    Raises:
        MinipeftError: for bad input, before anything is written; and where another process holds the folder.
        Interrupted: after a signal, with the state saved.
    """
    settings = complete_settings(settings)
    folder = Path(settings.output)
    _check_folder(folder, settings)
    with Lease(folder):
        record = _check_folder(folder, settings)  # again, now that nobody else can change it
        make_folder(folder / "checkpoint")
        write_json(folder / RECORD, {"format": FORMAT, **record})
        return _train(folder, settings)


def _train(folder: Path, settings: PretrainSettings) -> dict[str, Any]:
    tokenizer = _tokenizer(folder, settings)
    train_text, validation_text = _tokens(folder, settings, tokenizer)
    torch.manual_seed(settings.seed)
    model = _model(settings, tokenizer)
    if settings.model is None and settings.start == "counts" and not has_checkpoint(folder):
        init_from_counts(model, train_text.tokens)
    model = model.to(settings.device)
    model.encoder.dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    optimizer = adamw(model, settings.weight_decay, betas=(0.9, 0.98), eps=1e-6)
    blocks = {length: train_text.blocks(length) for length in (settings.block_length, settings.long_block_length)}
    validation = list(_validation_batches(validation_text, settings, model.config, tokenizer))

    first_step, history = 0, list[dict[str, Any]]()
    if has_checkpoint(folder):
        content, weights, state = read_last_checkpoint(folder)
        load_state(folder, model, optimizer, weights, state)
        first_step, history = content["step"], content["history"]
    saved_at = time.monotonic()
    model.train()
    with (
        collect_signals() as received,
        tqdm(total=settings.steps, initial=first_step, unit="step", disable=disable_bar(settings.quiet)) as bar,
    ):
        for step in range(first_step, settings.steps):
            length = settings.block_length if step < 0.9 * settings.steps else settings.long_block_length
            token_ids = _step_blocks(train_text, blocks[length], settings.batch_tokens // length, settings.seed, step)
            torch.manual_seed(settings.seed * 1_000_003 + step)
            batch, masked, targets = mask(pack(token_ids, config=model.config), tokenizer)
            learning_rate = settings.lr * linear_schedule(step, settings.warmup_steps, settings.steps)
            set_learning_rate(optimizer, learning_rate)
            loss = F.cross_entropy(
                model(batch.to(settings.device), masked.to(settings.device)), targets.to(settings.device)
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

            done = step + 1
            evaluating = done % settings.evaluate_every == 0 or done == settings.steps
            due = time.monotonic() - saved_at > 60 * settings.checkpoint_minutes
            saving = done == settings.steps or due or bool(received)
            if (evaluating or saving) and not math.isfinite(loss.item()):
                raise MinipeftError(f"step {done}: the loss is {loss.item()}; lower --lr ({folder} keeps the state)")
            if evaluating:
                row = {
                    "step": done,
                    "train_loss": loss.item(),
                    "learning_rate": learning_rate,
                    **evaluate_language_model(model, validation, settings.device),
                }
                history.append(row)
                write_lines(folder / "metrics.jsonl", history)
                if not settings.quiet:
                    figures = "  ".join(f"{name} {row[name]:.4f}" for name in ("train_loss", "eval_loss", "perplexity"))
                    tqdm.write(f"step {done} of {settings.steps}  {figures}", file=sys.stderr)
            if saving:
                write_checkpoint(folder, {"step": done, "history": history}, model, optimizer)
                saved_at = time.monotonic()
            bar.update()
            if received:
                raise Interrupted(received[0], f"interrupted in step {done}; continue with --resume")
    save_checkpoint(model, folder, torch.float16)
    result = {"format": FORMAT, "steps": settings.steps}
    result |= {name: history[-1][name] for name in ("eval_loss", "perplexity")}
    write_json(folder / "result.json", result)
    return result


@torch.no_grad()
def evaluate_language_model(
    model: MaskedLanguageModel, batches: Sequence[tuple[PackedBatch, Tensor, Tensor]], device: str
) -> dict[str, float]:
    """Mean loss a masked token, and its exponential, the perplexity."""
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for batch, masked, targets in batches:
        logits = model(batch.to(device), masked.to(device))
        total += F.cross_entropy(logits, targets.to(device), reduction="sum").item()
        count += len(targets)
    model.train(was_training)
    return {"eval_loss": total / count, "perplexity": math.exp(total / count)}


def _step_blocks(
    text: TokenizedText, blocks: list[tuple[int, int]], count: int, seed: int, step: int
) -> list[list[int]]:
    """The step's blocks: epochs of all blocks in a random order, cut into steps."""
    per_epoch = max(1, len(blocks) // count)
    epoch, place = divmod(step, per_epoch)
    order = _epoch_order(len(blocks), seed, epoch)
    return [text.block(*blocks[index]) for index in order[place * count : (place + 1) * count]]


def _validation_batches(
    text: TokenizedText, settings: PretrainSettings, config: EncoderConfig, tokenizer: Tokenizer
) -> Iterator[tuple[PackedBatch, Tensor, Tensor]]:
    """Up to 32 batches of held-out text, masked once and for all."""
    blocks = text.blocks(settings.block_length)
    count = max(1, settings.batch_tokens // settings.block_length)
    torch.manual_seed(0)
    for start in range(0, min(len(blocks), 32 * count), count):
        yield mask(pack([text.block(*block) for block in blocks[start : start + count]], config=config), tokenizer)


def _check_folder(folder: Path, settings: PretrainSettings) -> dict[str, Any]:
    """Return what the folder records of the settings; raise where it records others."""
    wanted = {name: getattr(settings, name) for name, row in rows(PretrainSettings).items() if row.on_resume == "equal"}
    check_output(folder, RECORD, "pretraining run", settings.resume)
    if (folder / RECORD).is_file():
        recorded = read_json(folder / RECORD)
        for name, value in wanted.items():
            if (known := recorded.get(name)) != value:
                raise MinipeftError(
                    f"{folder}: the run has {name} {known!r}, not {value!r}. Resume with the same settings."
                )
    return wanted


def _tokenizer(folder: Path, settings: PretrainSettings) -> Tokenizer:
    if (folder / "tokenizer.json").is_file():
        return load_tokenizer(folder)
    if settings.model is None:
        every_fourth = (line for number, line in enumerate(read_texts(settings.text)) if number % 4 == 0)
        return train_tokenizer(every_fourth, settings.vocab_size, folder)
    tokenizer = load_tokenizer(settings.model)
    tokenizer.save(folder)
    return tokenizer


def _tokens(folder: Path, settings: PretrainSettings, tokenizer: Tokenizer) -> tuple[TokenizedText, TokenizedText]:
    """Training and validation text as token ids, kept in the run's folder."""
    start_id, end_id = tokenizer.encode([""])[0]
    texts = []
    for name in ("train", "validation"):
        file = folder / "checkpoint" / f"{name}.safetensors"
        if not file.is_file():
            holdout_mask = name == "validation"
            lines = (
                line
                for number, line in enumerate(read_texts(settings.text))
                if (number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1) == holdout_mask
            )
            tokens, offsets = tokenize_lines(lines, tokenizer)
            write_atomically(file, partial(save_file, {"tokens": tokens, "offsets": offsets}))
        try:
            arrays = load_file(file)
            texts.append(TokenizedText(arrays["tokens"], arrays["offsets"], start_id, end_id))
        except (OSError, KeyError, SafetensorError) as error:
            raise MinipeftError(f"{file}: cannot be read ({first_line(error)}). Remove it to make it again.") from None
        if not len(texts[-1].tokens):
            raise MinipeftError(f"{', '.join(settings.text)}: no {name} text; give {HELD_OUT_EVERY} lines or more")
    return texts[0], texts[1]


def _model(settings: PretrainSettings, tokenizer: Tokenizer) -> MaskedLanguageModel:
    if settings.model is not None:
        model: MaskedLanguageModel = load_language_model(resolve_model(settings.model)[0])
    else:
        config = new_config(settings, tokenizer.vocab_size)
        model = MaskedLanguageModel(config)
        init_weights(model, config.initializer_range)
    # The dropout of pretraining; model.config, which is saved, keeps a given checkpoint's own for fine-tuning.
    for part in model.encoder.modules():
        if isinstance(part, (Encoder, EncoderLayer)):
            part.config = replace(
                part.config, hidden_dropout_prob=settings.dropout, attention_probs_dropout_prob=settings.dropout
            )
    return model
