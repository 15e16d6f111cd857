"""Defaults of a run's settings, by task and method, each with its source.

report   the comparison that this project starts from: roberta-base on RTE and SST-2 with LoRA r = 2, alpha 8, dropout
         0.01, and BitFit; AdamW, weight decay 0.01, 100 warmup steps, batch 16 x 4 accumulation; RTE 25 epochs at 5e-4,
         SST-2 5 epochs at 2e-5
LoRA     Hu et al. 2021, table 9 (RoBERTa-base)
BitFit   Ben Zaken et al. 2022, section 4: learning rates between 1e-4 and 1e-3
RoBERTa  Liu et al. 2019, table 10: full fine-tuning on GLUE, learning rates 1e-5 to 3e-5, up to 10 epochs

LoRA's learning rate is the same for every family: AdaLoRA's authors train LoRA on DeBERTaV3-base at 5e-4 to 2.2e-3
(Zhang et al. 2023, appendix), and no other family has a published table. Full fine-tuning differs: FULL_LR.
"""

import math
from dataclasses import dataclass

# report
BATCH_SIZE, GRAD_ACCUM, WARMUP_STEPS, WEIGHT_DECAY = 16, 4, 100, 0.01
RANK, ALPHA, DROPOUT = 2, 8.0, 0.01
BETA1, BETA2, EPSILON, MAX_GRAD_NORM = 0.9, 0.999, 1e-8, 1.0  # AdamW's in torch; the norm is the Trainer's

CHECKPOINT_MINUTES = 5.0
GROUP_TIMEOUT = 10.0  # minutes for which a process of several waits for the others

# task → (epochs, learning rate of LoRA). The report's for rte and sst2, but for SST-2's learning rate: its 2e-5 is a
# learning rate for full fine-tuning, LoRA's table has 5e-4. The other rows are LoRA's learning rates, with as many
# epochs as give each task about as many steps as the report gives RTE.
LORA_RECIPES = {
    "rte": (25, 5e-4),
    "sst2": (5, 5e-4),
    "cola": (10, 4e-4),
    "mrpc": (20, 4e-4),
    "stsb": (15, 4e-4),
    "qnli": (5, 4e-4),
    "qqp": (5, 5e-4),
    "mnli": (5, 5e-4),
    "wnli": (20, 5e-4),
}
FULL_EPOCHS = 10  # RoBERTa
CUSTOM_RECIPE = (10, 5e-4)  # of a custom dataset: between the rows above

# The methods that do not take LoRA's learning rate.
METHOD_LR = {
    "full": 2e-5,  # RoBERTa
    "head": 1e-3,  # the features are frozen, so a large learning rate does no harm
    "bitfit": 5e-4,  # report for RTE; inside BitFit's range for the others
    "layernorm": 1e-3,  # the end of BitFit's range: it has fewer parameters than BitFit
    "ia3": 3e-3,  # Liu et al. 2022, T-Few's recipe
    "vera": 4e-3,  # Kopiczko et al. 2024: 4e-3 to 1e-2 on GLUE
    "houlsby": 3e-4,  # Houlsby et al. 2019: the middle of 3e-5, 3e-4 and 3e-3
    "pfeiffer": 1e-4,  # Pfeiffer et al. 2021, AdapterFusion
    "prefix_tuning": 5e-3,  # Liu et al. 2022, P-tuning v2: 5e-3 to 1e-2
    "prompt_tuning": 1e-2,
}

# Full fine-tuning at other learning rates than RoBERTa's: model_type → (largest hidden size, learning rate).
# ELECTRA's authors take 3e-4, 1e-4 and 5e-5 (small, base, large) for the head, and 0.8, 0.8 and 0.9 of it with each
# layer below (Clark et al. 2020, appendix B). Here all layers take the mean over the layers.
# DeBERTa-v3: the commands in the model cards of the published checkpoints.
# ModernBERT: inside the 1e-5 to 8e-5 that its authors searched on GLUE (Warner et al. 2024, appendix).
# BERT and DistilBERT keep RoBERTa's 2e-5, the smallest of BERT's 2e-5 to 5e-5 (Devlin et al. 2019, appendix A.3).
FULL_LR = {
    "electra": ((256, 9e-5), (768, 3e-5), (math.inf, 1.7e-5)),
    "deberta-v2": ((384, 4.5e-5), (768, 2e-5), (math.inf, 6e-6)),
    "modernbert": ((math.inf, 5e-5),),
}

# A small encoder needs larger steps. LoRA's were measured with roberta-mini on the synthetic data, which it learns in
# 8 and 5 epochs, and full fine-tuning's on real SST-2 (its card).
SMALL_HIDDEN_SIZE, SMALL_RTE_EPOCHS = 256, 8
SMALL_LR = {"lora": 2e-3, "bitfit": 3e-3, "head": 3e-3, "full": 3e-4}


@dataclass(frozen=True)
class Recipe:
    """Defaults of a run: epochs and the peak learning rate."""

    epochs: int
    lr: float


def recipe(task: str | None, method: str, hidden_size: int, model_type: str = "roberta") -> Recipe:
    """Return the defaults for a task (None: a custom dataset), a method, and an encoder's hidden size and family."""
    epochs, lr = CUSTOM_RECIPE if task is None else LORA_RECIPES[task]
    lr = METHOD_LR.get(method, lr)
    if method == "full":
        epochs = min(epochs, FULL_EPOCHS)
    if hidden_size <= SMALL_HIDDEN_SIZE:
        lr = SMALL_LR.get(method, lr)
        epochs = SMALL_RTE_EPOCHS if task == "rte" else epochs
    if method == "full" and model_type in FULL_LR:
        lr = next(rate for size, rate in FULL_LR[model_type] if hidden_size <= size)
    return Recipe(epochs, lr)


def default_warmup(steps: int) -> int:
    """Return the warmup of a run of `steps` optimizer steps: 100, or 10 percent in runs of fewer than 900 steps."""
    return WARMUP_STEPS if steps >= 9 * WARMUP_STEPS else steps // 10
