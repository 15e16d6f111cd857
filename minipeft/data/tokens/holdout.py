"""The training examples that --holdout takes out of training, to choose the best epoch on."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minipeft.data.tasks.draw import draw_together
from minipeft.data.tokens.examples import Encoded
from minipeft.errors import MinipeftError


def hold_out(
    examples: Encoded, fraction: float, seed: int, together: Sequence[int] | np.ndarray[Any, Any] | None = None
) -> tuple[Encoded, Encoded]:
    """Split examples at random into those to train on and a `fraction` held out; a function of the seed.

    The split is stratified by class where an example has one class. Examples with one number in `together` stay
    together: that of their text or group.
    """
    strata = examples.split.task.problem.strata(examples.split.labels)
    mask = draw_together(range(len(examples)) if together is None else together, strata, fraction, seed)
    if not 0 < round(len(examples) * fraction) < len(examples) or mask.all() or not mask.any():
        raise MinipeftError(
            f"--holdout {fraction:g} of {len(examples)} training examples is {'all' if fraction > 0.5 else 'none'}. "
            "Choose another fraction."
        )
    return examples.subset(~mask), examples.subset(mask)
