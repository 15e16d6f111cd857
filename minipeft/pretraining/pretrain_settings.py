"""The table of a pretraining run's settings: fields of PretrainSettings, and flags of `minipeft pretrain`."""

from __future__ import annotations

from dataclasses import dataclass

from minipeft.errors import check_int, check_probability, check_seed
from minipeft.training.settings import checks
from minipeft.training.settings.setting import REQUIRED, setting

DATA, MODEL = "task and data", "model"
OPTIMIZATION, HARDWARE, OUTPUT = "optimization", "hardware", "output"


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """Settings of a pretraining run; lengths and batch sizes count tokens."""

    text: tuple[str, ...] = setting(
        REQUIRED, checks.paths, DATA, 'text files, a paragraph a line, or jsonl with a "text"', several=True
    )
    block_length: int = setting(128, check_int, DATA, "tokens a sequence")
    # The last 10 percent of the steps have longer sequences, as in Devlin et al. 2019, A.2.
    long_block_length: int = setting(512, check_int, DATA, "in the last 10 percent of the steps")

    model: str | None = setting(None, checks.path, MODEL, "checkpoint to continue [none: a new model and tokenizer]")
    start: str = setting(  # see init_from_counts.py
        "counts", checks.choice("counts", "random"), MODEL, "of a new model: word co-occurrence counts, or random"
    )
    vocab_size: int = setting(8192, check_int, MODEL, "of a new tokenizer")
    hidden_size: int = setting(256, check_int, MODEL, "of a new model")
    num_hidden_layers: int = setting(6, check_int, MODEL, "of a new model")
    num_attention_heads: int = setting(4, check_int, MODEL, "of a new model")
    dropout: float = setting(0.0, check_probability, MODEL, "a new model keeps it in config.json, --model its own")

    steps: int = setting(10_000, check_int, OPTIMIZATION, "optimizer steps")
    batch_tokens: int = setting(8192, check_int, OPTIMIZATION, "tokens a step")
    lr: float = setting(1e-3, checks.not_negative, OPTIMIZATION, "peak learning rate [1e-3]")
    warmup_steps: int = setting(500, checks.whole, OPTIMIZATION, "steps of linear warmup")
    weight_decay: float = setting(0.01, checks.not_negative, OPTIMIZATION, "AdamW's, on matrices")
    seed: int = setting(0, check_seed, OPTIMIZATION, "of the weights, the order, the masks and dropout")

    device: str = setting("auto", checks.text, HARDWARE, "auto, cpu, cuda, cuda:1 … or mps", on_resume="of the call")
    precision: str = setting(
        "auto",
        checks.choice("auto", "fp32", "bf16"),
        HARDWARE,
        "auto, fp32 or bf16 [auto: bf16 where that is native, else fp32]",
    )

    output: str = setting(REQUIRED, checks.path, OUTPUT, "folder that becomes the checkpoint", on_resume="of the call")
    evaluate_every: int = setting(500, check_int, OUTPUT, "steps between evaluations")
    checkpoint_minutes: float = setting(
        5.0, checks.not_negative, OUTPUT, "minutes between checkpoints", on_resume="of the call"
    )
    resume: bool = setting(False, checks.boolean, OUTPUT, "continue the run in --output", on_resume="of the call")
    quiet: bool = setting(False, checks.boolean, OUTPUT, "no progress bar", on_resume="of the call")
