"""Complete and check the settings of a pretraining run, before anything is written."""

import os
from dataclasses import replace
from pathlib import Path

from minipeft.data.tokens.tokenizer import load_tokenizer
from minipeft.device import choose_device, choose_precision
from minipeft.errors import MinipeftError, under_torchrun
from minipeft.files import read_json
from minipeft.hub import resolve_model
from minipeft.model.config import EncoderConfig
from minipeft.model.families import load_config
from minipeft.pretraining.corpus import ROBERTA_SPECIALS, read_texts
from minipeft.pretraining.init_from_counts import LARGEST_VOCABULARY
from minipeft.pretraining.pretrain_settings import PretrainSettings
from minipeft.training.settings.setting import check_given, rows

RECORD = "pretrain.json"
SMALLEST_VOCABULARY = 256 + len(ROBERTA_SPECIALS)
HELD_OUT_EVERY = 200  # one line in so many is validation text


def complete_settings(settings: PretrainSettings) -> PretrainSettings:
    """Return the settings in their right types, with the device and the precision, which a resumed run keeps."""
    if under_torchrun() and os.environ["WORLD_SIZE"] != "1":
        raise MinipeftError("pretraining takes one process; start it without torchrun")
    settings = PretrainSettings(**check_given(PretrainSettings, vars(settings)))
    device, file, precision = choose_device(settings.device), Path(settings.output) / RECORD, settings.precision
    if precision == "auto" and file.is_file():
        precision = str(read_json(file).get("precision"))
    settings = replace(settings, device=device, precision=choose_precision(precision, device))
    if settings.model is None:
        if settings.vocab_size < SMALLEST_VOCABULARY:
            raise MinipeftError(
                f"--vocab-size {settings.vocab_size} is too small; every byte and the special tokens "
                f"are {SMALLEST_VOCABULARY}"
            )
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
                f"{rows(PretrainSettings)[name].flag} {length} is not between 3 and the {config.max_length} tokens "
                "of the model"
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
    return settings


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
