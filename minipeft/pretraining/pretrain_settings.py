"""The table of a pretraining run's settings: fields of PretrainSettings, and flags of `minipeft pretrain`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from minipeft.errors import check_int, check_probability, check_seed
from minipeft.training.settings import checks
from minipeft.training.settings.setting import REQUIRED, setting

DATA = partial(setting, group="task and data")
MODEL = partial(setting, group="model")
OPTIMIZATION = partial(setting, group="optimization")
HARDWARE = partial(setting, group="hardware")
OUTPUT = partial(setting, group="output")


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """Settings of a pretraining run; lengths and batch sizes count tokens."""

    text: tuple[str, ...] = DATA(
        REQUIRED, checks.paths, 'text files, a paragraph a line, or jsonl with a "text"', several=True
    )
    block_length: int = DATA(128, check_int, "tokens a sequence")
    # The last 10 percent of the steps have longer sequences, as in Devlin et al. 2019, A.2.
    long_block_length: int = DATA(512, check_int, "in the last 10 percent of the steps")

    model: str | None = MODEL(None, checks.path, "checkpoint to continue [none: a new model and tokenizer]")
    start: str = MODEL(  # see init_from_counts.py
        "counts", checks.choice("counts", "random"), "of a new model: word co-occurrence counts, or random"
    )
    vocab_size: int = MODEL(8192, check_int, "of a new tokenizer")
    hidden_size: int = MODEL(256, check_int, "of a new model")
    num_hidden_layers: int = MODEL(6, check_int, "of a new model")
    num_attention_heads: int = MODEL(4, check_int, "of a new model")
    dropout: float = MODEL(0.0, check_probability, "a new model keeps it in config.json, --model its own")

    steps: int = OPTIMIZATION(10_000, check_int, "optimizer steps")
    batch_tokens: int = OPTIMIZATION(8192, check_int, "tokens a step")
    lr: float = OPTIMIZATION(1e-3, checks.not_negative, "peak learning rate [1e-3]")
    warmup_steps: int = OPTIMIZATION(500, checks.whole, "steps of linear warmup")
    weight_decay: float = OPTIMIZATION(0.01, checks.not_negative, "AdamW's, on matrices")
    seed: int = OPTIMIZATION(0, check_seed, "of the weights, the order, the masks and dropout")

    device: str = HARDWARE("auto", checks.text, "auto, cpu, cuda, cuda:1 … or mps", on_resume="of the call")
    precision: str = HARDWARE(
        "auto",
        checks.choice("auto", "fp32", "bf16"),
        "auto, fp32 or bf16 [auto: bf16 where that is faster, else fp32]",
    )

    output: str = OUTPUT(REQUIRED, checks.output, "folder that becomes the checkpoint", on_resume="of the call")
    evaluate_every: int = OUTPUT(500, check_int, "steps between evaluations")
    checkpoint_minutes: float = OUTPUT(5.0, checks.not_negative, "minutes between checkpoints", on_resume="of the call")
    resume: bool = OUTPUT(False, checks.boolean, "continue the run in --output", on_resume="of the call")
    quiet: bool = OUTPUT(False, checks.boolean, "no progress bar", on_resume="of the call")
