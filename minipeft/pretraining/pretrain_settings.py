"""The table of a pretraining run's settings: fields of PretrainSettings, and flags of `minipeft pretrain`."""

from __future__ import annotations

from dataclasses import dataclass

from minipeft.errors import check_probability, check_seed
from minipeft.training.settings import checks
from minipeft.training.settings.setting import DATA, HARDWARE, MODEL, OPTIM, OUTPUT, REQUIRED


@dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """Settings of a pretraining run; lengths and batch sizes count tokens."""

    text: tuple[str, ...] = DATA(REQUIRED, 'text files, a paragraph a line, or jsonl with a "text"', check=checks.paths)
    block_length: int = DATA(128, "tokens a sequence")
    # The last 10 percent of the steps have longer sequences, as in Devlin et al. 2019, A.2.
    long_block_length: int = DATA(512, "in the last 10 percent of the steps")

    model: str | None = MODEL(None, "checkpoint to continue [none: a new model and tokenizer]", check=checks.path)
    # init_from_counts.py
    start: str = MODEL(
        "counts", "of a new model: word co-occurrence counts, or random", check=checks.choice("counts", "random")
    )
    vocab_size: int = MODEL(8192, "of a new tokenizer")
    hidden_size: int = MODEL(256, "of a new model")
    num_hidden_layers: int = MODEL(6, "of a new model")
    num_attention_heads: int = MODEL(4, "of a new model")
    dropout: float = MODEL(0.0, "a new model keeps it in config.json, --model its own", check=check_probability)

    steps: int = OPTIM(10_000, "optimizer steps")
    batch_tokens: int = OPTIM(8192, "tokens a step")
    lr: float = OPTIM(1e-3, "peak learning rate [1e-3]")
    warmup_steps: int = OPTIM(500, "steps of linear warmup", check=checks.whole)
    weight_decay: float = OPTIM(0.01, "AdamW's, on matrices")
    seed: int = OPTIM(0, "of the weights, the order, the masks and dropout", check=check_seed)

    device: str = HARDWARE("auto", "auto, cpu, cuda, cuda:1 … or mps", on_resume="of the call")
    precision: str = HARDWARE(
        "auto",
        "auto, fp32 or bf16 [auto: bf16 where that is faster, else fp32]",
        check=checks.choice("auto", "fp32", "bf16"),
    )

    output: str = OUTPUT(REQUIRED, "folder that becomes the checkpoint", check=checks.output, on_resume="of the call")
    evaluate_every: int = OUTPUT(500, "steps between evaluations")
    checkpoint_minutes: float = OUTPUT(5.0, "minutes between checkpoints", on_resume="of the call")
    resume: bool = OUTPUT(False, "continue the run in --output", on_resume="of the call")
    quiet: bool = OUTPUT(False, "no progress bar", on_resume="of the call")
