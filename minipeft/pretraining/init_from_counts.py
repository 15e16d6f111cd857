"""Initialization from co-occurrence counts, for short pretraining.

With random weights a masked language model learns the frequencies of words first, and then little for some ten million
tokens: attention cannot select useful neighbours before the embeddings carry meaning, and the embeddings need attention
to learn. This initialization gives it both; the training that follows is the usual one.

    words       embeddings from co-occurrence counts: positive pointwise mutual information, factorised
                (Levy and Goldberg 2014, sections 3.2 and 3.3)
    positions   sinusoids (Vaswani et al. 2017, section 3.5)
    attention   in the first two layers each head attends to the token at a fixed distance
    the rest    normal, with standard deviation 0.7 / √in_features, so that the attention output is not small
                compared with the residual
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minipeft.model.language_model import MaskedLanguageModel
from minipeft.model.roberta import EncoderLayer

WINDOW = 5  # tokens on each side; a token at distance d counts 1 / d
COUNTED_TOKENS = 12_000_000
EMBEDDING_STD = 0.05
NEIGHBOUR_LAYERS, SHARPNESS = 2, 1.5
LARGEST_VOCABULARY = 16_384  # its square is the size of the table of counts, 1 GiB


@torch.no_grad()
def init_from_counts(model: MaskedLanguageModel, tokens: np.ndarray[Any, Any]) -> None:
    """Initialize a model in place; `tokens`, (num_tokens,), are the training text, one line after the other."""
    encoder, config = model.encoder, model.config
    for part in model.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.7 / math.sqrt(part.in_features))
    counts = np.bincount(tokens, minlength=config.vocab_size) + 1.0
    model.bias.copy_(torch.from_numpy(np.log(counts / counts.sum())))
    encoder.word_embeddings.weight.copy_(word_vectors(tokens, config.vocab_size, config.hidden_size))

    heads, pairs = config.num_attention_heads, config.hidden_size // config.num_attention_heads // 2
    frequencies = torch.logspace(math.log10(2.5), math.log10(0.02), pairs)  # radians a token, the same for each head
    angles = torch.arange(config.max_position_embeddings)[:, None] * frequencies
    sinusoids = torch.stack([angles.cos(), angles.sin()], dim=-1).flatten(1)  # (positions, head_size)
    encoder.position_embeddings.weight.copy_(EMBEDDING_STD * sinusoids.repeat(1, heads))
    # Rotating the sinusoids of position i by frequency · distance gives those of position i + distance, where the
    # product of query and key is largest.
    turns = [rotation(frequencies, distance) for distance in (sign * n for n in range(1, heads) for sign in (-1, 1))]
    for layer in list(encoder.layers)[:NEIGHBOUR_LAYERS]:
        assert isinstance(layer, EncoderLayer)
        layer.query.weight.copy_(SHARPNESS * torch.block_diag(*turns[:heads]))
        layer.key.weight.copy_(SHARPNESS * torch.eye(config.hidden_size))


def rotation(frequencies: Tensor, distance: int) -> Tensor:
    """Return the rotation (2 · pairs, 2 · pairs) that moves sinusoids by `distance` tokens."""
    cos, sin = (frequencies * distance).cos(), (frequencies * distance).sin()
    return torch.block_diag(*(torch.tensor([[c, -s], [s, c]]) for c, s in zip(cos.tolist(), sin.tolist(), strict=True)))


def word_vectors(tokens: np.ndarray[Any, Any], vocab_size: int, size: int) -> Tensor:
    """(vocab_size, size) from PPMI_ij = max(0, log(P(i, j) / (P(i) Pc(j)))), Pc ∝ P^0.75, = U Σ Vᵀ: U √Σ, centred."""
    tokens = tokens[:COUNTED_TOKENS].astype(np.int64)
    flat = np.zeros(vocab_size * vocab_size, dtype=np.float32)
    for distance in range(1, WINDOW + 1):
        pairs, times = np.unique(tokens[:-distance] * vocab_size + tokens[distance:], return_counts=True)
        flat[pairs] += times / distance
    joint = torch.from_numpy(flat).view(vocab_size, vocab_size)
    joint = joint + joint.T
    marginal = joint.sum(1)
    smoothed = marginal**0.75 / (marginal**0.75).sum()
    ppmi = (joint / (marginal[:, None] + 1e-9) / (smoothed + 1e-12)).log_().nan_to_num_(0.0, 0.0, 0.0).clamp_(min=0)
    u, sigma, _ = torch.svd_lowrank(ppmi, q=min(vocab_size, size + 16), niter=3)
    vectors = u[:, :size] * sigma[:size].sqrt()
    vectors = vectors - vectors.mean(0)
    return vectors / vectors.std() * EMBEDDING_STD
