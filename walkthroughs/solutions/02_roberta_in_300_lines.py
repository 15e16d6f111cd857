"""Solutions of page 2."""

import torch


def compute() -> int:
    """Four square layers $4(h^2 + h)$, the feed-forward part $4h^2 + 4h$ and $4h^2 + h$, and two LayerNorms with $2h$
    each: 7,087,872.
    """
    h = 768
    return 4 * (h * h + h) + (4 * h * h + 4 * h) + (4 * h * h + h) + 2 * 2 * h


def change(q: torch.Tensor, k: torch.Tensor) -> tuple[float, float]:
    """Larger scores make a softmax sharper: without the division the weights are spread over fewer tokens, so that the
    second number is the smaller one.
    """

    def entropy(weights: torch.Tensor) -> float:
        return float(-(weights * weights.clamp_min(1e-30).log()).sum(dim=1).mean())

    scores = q @ k.T
    return entropy(torch.softmax(scores / q.shape[1] ** 0.5, dim=1)), entropy(torch.softmax(scores, dim=1))


def explain() -> str:
    """The first sequence starts at the right position (a), and each later one gets the positions that come after its
    predecessor (c). Attention does not cross sequences, but the position embeddings of the later ones are wrong (d).
    """
    return "ac"
