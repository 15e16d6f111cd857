"""Solutions of page 5."""

import math


def compute() -> tuple[int, float]:
    """$\\lceil 2490 / 64 \\rceil = 39$ steps in an epoch, 975 in all. After the warmup the factor falls in a straight
    line to 0 at step 975: $(975 - 500) / (975 - 100) = 0.543$.
    """
    steps = 25 * math.ceil(2490 / 64)
    return steps, (steps - 500) / (steps - 100)


def change(step: int, warmup_steps: int, total_steps: int) -> float:
    """It is above the linear schedule in the first half after the warmup, and below it in the second. The package's is
    the same in a run's own steps; beyond them, where a run was extended, it stays at 0.
    """
    if step < warmup_steps:
        return step / warmup_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / (total_steps - warmup_steps)))


def explain() -> str:
    """You may: both take 64 sequences in a step, and the gradient is the same sum, divided by 64, whichever way it is
    cut up (a). But in minipeft it does not help: both are the same run, because `split_by_tokens` forms the batches,
    and it looks at the budget of tokens only (c). What bounds the memory is `--max-tokens` (d).
    """
    return "acd"
