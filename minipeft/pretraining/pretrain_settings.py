"""Settings of a pretraining run, checked before anything is written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from minipeft.data.tokens.tokenizer import ROBERTA_SPECIALS, load_tokenizer
from minipeft.device import choose_device, choose_precision
from minipeft.errors import MinipeftError, check_float, check_int, check_probability, check_seed, under_torchrun
from minipeft.files import read_json
from minipeft.hub.hub import resolve_model
from minipeft.model.config import EncoderConfig
from minipeft.model.families import load_config
from minipeft.pretraining.corpus import read_texts
from minipeft.pretraining.init_from_counts import LARGEST_VOCABULARY

SMALLEST_VOCABULARY = 256 + len(ROBERTA_SPECIALS)
HELD_OUT_EVERY = 200  # one line in so many is validation text


@dataclass(frozen=True)
class PretrainSettings:
    """Settings of a pretraining run; lengths and batch sizes count tokens."""

    text: tuple[str, ...]
    output: str
    model: str | None = None  # a checkpoint to go on from; None: a new model and a new tokenizer
    start: str = "counts"  # of a new model's weights, or "random": see training/start.py
    vocab_size: int = 8192
    hidden_size: int = 256
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    steps: int = 10_000
    batch_tokens: int = 8192
    block_length: int = 128
    long_block_length: int = 512  # for the last 10 percent of the steps, as in Devlin et al. 2019, A.2
    lr: float = 1e-3
    warmup_steps: int = 500
    weight_decay: float = 0.01
    dropout: float = 0.0
    evaluate_every: int = 500
    checkpoint_minutes: float = 5.0
    seed: int = 0
    precision: str = "fp32"
    device: str = "cpu"
    resume: bool = False
    quiet: bool = False


def check_settings(settings: PretrainSettings) -> None:
    """Refuse settings and text that cannot be used, before anything is written."""
    if under_torchrun() and os.environ["WORLD_SIZE"] != "1":
        raise MinipeftError("pretraining takes one process; start it without torchrun")
    for name in (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "steps",
        "batch_tokens",
        "block_length",
        "long_block_length",
        "evaluate_every",
    ):
        check_int(f"--{name.replace('_', '-')}", getattr(settings, name))
    for name in ("lr", "warmup_steps", "weight_decay", "checkpoint_minutes"):
        check_float(f"--{name.replace('_', '-')}", getattr(settings, name), least=0.0)
    check_seed("--seed", settings.seed)
    check_probability("--dropout", settings.dropout)
    if settings.model is None:
        if settings.vocab_size < SMALLEST_VOCABULARY:
            raise MinipeftError(
                f"--vocab-size {settings.vocab_size} is too small; every byte and the special tokens "
                f"are {SMALLEST_VOCABULARY}"
            )
        if settings.start not in ("counts", "random"):
            raise MinipeftError(f"--start {settings.start!r} is neither counts nor random")
        if settings.start == "counts" and settings.vocab_size > LARGEST_VOCABULARY:
            raise MinipeftError(
                f"--start counts takes a --vocab-size up to {LARGEST_VOCABULARY}, not {settings.vocab_size}; "
                "use --start random"
            )
        if settings.start == "counts" and settings.hidden_size > settings.vocab_size:
            raise MinipeftError(
                f"--start counts takes a --hidden-size up to the {settings.vocab_size} of --vocab-size, "
                f"not {settings.hidden_size}; use --start random"
            )
        config = new_config(settings, settings.vocab_size)
    else:
        model_folder = resolve_model(settings.model)[0]
        config = load_config(model_folder)
        if (size := load_tokenizer(model_folder).vocab_size) > config.vocab_size:
            raise MinipeftError(
                f"{model_folder}: the tokenizer has {size} entries, the model {config.vocab_size}; "
                "use the model's tokenizer"
            )
    for name in ("block_length", "long_block_length"):
        length = getattr(settings, name)
        if not 3 <= length <= config.max_length:
            raise MinipeftError(
                f"--{name.replace('_', '-')} {length} is not between 3 and the {config.max_length} tokens of the model"
            )
        if length > settings.batch_tokens:
            raise MinipeftError(f"--batch-tokens {settings.batch_tokens} is less than one block of {length} tokens")
    if not (Path(settings.output) / "pretrain.json").is_file():
        lines = sum(1 for _ in read_texts(settings.text))
        if lines < HELD_OUT_EVERY:
            raise MinipeftError(
                f"{', '.join(settings.text)}: {lines} lines of text; {HELD_OUT_EVERY} or more are needed, "
                "for one in so many is held out"
            )


def choose_hardware(output: str, device: str, precision: str) -> dict[str, str]:
    """Return the device and the precision; a run that is in the folder `output` keeps its precision under "auto"."""
    device, file = choose_device(device), Path(output) / "pretrain.json"
    if precision == "auto" and file.is_file():
        precision = str(read_json(file).get("precision", "fp32"))
    return {"device": device, "precision": choose_precision(precision, device)}


def new_config(settings: PretrainSettings, vocab_size: int) -> EncoderConfig:
    return EncoderConfig(
        vocab_size=vocab_size,
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.num_hidden_layers,
        num_attention_heads=settings.num_attention_heads,
        intermediate_size=4 * settings.hidden_size,
        hidden_dropout_prob=settings.dropout,
        attention_probs_dropout_prob=settings.dropout,
    )
