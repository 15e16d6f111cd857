"""Solutions of page 1."""

import minipeft


def compute() -> tuple[int, int, float]:
    """Padded: 4 rows as wide as the longest, $4 \\cdot 100 = 400$ slots. Packed: $10 + 20 + 30 + 100 = 160$. The ratio
    is 2.5, the longest length divided by the mean length of 40.
    """
    lengths = [10, 20, 30, 100]
    padded, packed = len(lengths) * max(lengths), sum(lengths)
    return padded, packed, padded / packed


def change(batch: minipeft.PackedBatch) -> list[list[int]]:
    """Cut the ids where the lengths say so."""
    return [ids.tolist() for ids in batch.input_ids.split(batch.lengths)]


def explain() -> str:
    """The gradient of a step is a sum over its sequences, and a sum does not depend on the order of its terms (a).
    Sorting the whole training set changes which sequences are in a step: short texts would be trained with short
    texts, and the steps would no longer be random samples of the data (c). A packed batch has no padding in any order
    (b), and the loss of a sequence does not depend on the others in its batch (d).
    """
    return "ac"
