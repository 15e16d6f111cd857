"""The schedule of a training: the learning rate of each step, and the steps at which it evaluates and ends.

Everything here is a function of the step number, without state: a resumed run continues on the same curve, and a
logged learning rate can be recomputed. With w warmup steps, T steps in all and the peak rate lr,

    step t < w:   lr t / w
    step t ≥ w:   lr (T − t) / (T − w)                       linear, which is the default
                  lr ½ (1 + cos(π (t − w) / (T − w)))        cosine
                  lr                                         constant

Left out: restarts and schedules of the weight decay. Fine-tuning takes a few epochs, and adapters are trained with the
three above in the papers that introduced them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minipeft.training.progress import best_epoch


def count_steps(epochs: int, examples: int, sequences_per_step: int) -> int:
    """Return the optimizer steps of a run; the last step of an epoch may have fewer sequences."""
    return epochs * math.ceil(examples / sequences_per_step)


def linear_schedule(step: int, warmup_steps: int, total_steps: int) -> float:
    """Return the factor on the learning rate of step `step`, from 0: up to 1 over the warmup, then down to 0."""
    # At first AdamW knows v from few gradients only. Small steps keep a bad estimate from doing harm.
    if step < warmup_steps:
        return step / warmup_steps
    # The warmup may be as long as the training, and a run that was extended may have passed its old total.
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))


def cosine_schedule(step: int, warmup_steps: int, total_steps: int) -> float:
    """Return the factor on the learning rate: up to 1 over the warmup, then half a cosine down to 0.

    Reference: Loshchilov and Hutter 2017, equation 5, without restarts.
    """
    if step < warmup_steps:
        return step / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))))


def constant_schedule(step: int, warmup_steps: int, total_steps: int) -> float:
    """Return the factor on the learning rate: up to 1 over the warmup, then 1."""
    return step / warmup_steps if step < warmup_steps else 1.0


# --lr-schedule: the learning rate after the warmup, as (step, warmup_steps, total_steps) → its factor.
LR_SCHEDULES: dict[str, Callable[[int, int, int], float]] = {
    "linear": linear_schedule,
    "cosine": cosine_schedule,
    "constant": constant_schedule,
}


@dataclass(frozen=True)
class Schedule:
    """The numbers that determine a training, apart from its model and examples.

    Attributes:
        epochs: passes over the training examples.
        lr: peak learning rate, after `warmup_steps` steps of linear warmup.
        weight_decay: AdamW's, on matrices.
        sequences_per_step: examples of an optimizer step, in batches of at most `max_tokens` tokens.
        seed: of the order and of dropout.
        select_by: the figure that chooses the best epoch, such as "accuracy" or "holdout_accuracy".
        lr_schedule: the learning rate after the warmup, one of LR_SCHEDULES.
        betas, epsilon: AdamW's.
        max_grad_norm: gradients with a larger norm are scaled down to it; 0 never scales.
        steps: optimizer steps after which training ends, in place of `epochs`; 0 for all of the epochs.
        eval_every: optimizer steps between evaluations within an epoch; 0 evaluates at the end of epochs only.
        patience: epochs without a better `select_by` after which training ends; 0 for no early stopping.
    """

    epochs: int
    lr: float
    warmup_steps: int
    weight_decay: float
    sequences_per_step: int
    max_tokens: int
    seed: int
    select_by: str
    lr_schedule: str = "linear"
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    steps: int = 0
    eval_every: int = 0
    patience: int = 0

    def total_steps(self, examples: int) -> int:
        """Return the optimizer steps of the whole training on so many examples."""
        # --steps counts across epochs and wins over --epochs.
        return self.steps or count_steps(self.epochs, examples, self.sequences_per_step)

    def learning_rate(self, step: int, total_steps: int) -> float:
        """Return the learning rate of optimizer step `step`, counted from 0."""
        # A function of the step alone: resuming needs no state of a scheduler.
        return self.lr * LR_SCHEDULES[self.lr_schedule](step, self.warmup_steps, total_steps)

    def next_evaluation(self, step: int, epoch: int, examples: int) -> int:
        """Return the number of steps after which the next evaluation comes.

        Args:
            step: optimizer steps done.
            epoch: the current epoch, from 0.
            examples: the number of training examples.
        """
        # The next of three: the end of training, the end of the epoch, and a multiple of eval_every.
        ends = [self.total_steps(examples), count_steps(epoch + 1, examples, self.sequences_per_step)]
        if self.eval_every:
            ends.append((step // self.eval_every + 1) * self.eval_every)
        return min(ends)

    def out_of_patience(self, history: list[dict[str, Any]], examples: int) -> bool:
        """Whether the best evaluation is `patience` epochs old or older."""
        if not self.patience or not history:
            return False
        # In steps, not evaluations: --eval-every must not shorten the patience.
        since = history[-1]["step"] - best_epoch(history, self.select_by)["step"]
        return bool(since >= count_steps(self.patience, examples, self.sequences_per_step))
