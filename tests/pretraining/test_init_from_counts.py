"""Where pretraining starts: heads that see a neighbour, and words that are near where their contexts are the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minipeft import EncoderConfig, pack
from minipeft.model.language_model import MaskedLanguageModel
from minipeft.model.layers import init_weights
from minipeft.pretraining.init_from_counts import NEIGHBOUR_LAYERS, init_from_counts, word_vectors

CONFIG = EncoderConfig(
    vocab_size=70,
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=128,
    max_position_embeddings=130,
)


def text(length: int = 6000) -> np.ndarray:  # type: ignore[type-arg]
    """Tokens 10 to 29 come before 30 to 34 alone, tokens 40 to 59 before 35 to 39 alone."""
    generator = np.random.default_rng(0)
    tokens = []
    for _ in range(length // 2):
        animal = generator.random() < 0.5
        tokens += [generator.integers(10, 30), generator.integers(30, 35)] if animal else []
        tokens += [] if animal else [generator.integers(40, 60), generator.integers(35, 40)]
    return np.array(tokens, dtype=np.int32)


@pytest.fixture(scope="module")
def model() -> MaskedLanguageModel:
    torch.manual_seed(0)
    model = MaskedLanguageModel(CONFIG)
    init_weights(model, CONFIG.initializer_range)
    init_from_counts(model, text())
    return model.eval()


def test_each_head_of_the_first_layers_looks_at_the_token_its_distance_away(model: MaskedLanguageModel) -> None:
    positions = model.encoder.position_embeddings.weight
    for layer in list(model.encoder.layers)[:NEIGHBOUR_LAYERS]:
        query, key = (part(positions).unflatten(-1, (4, 16)).transpose(0, 1) for part in (layer.query, layer.key))
        best = (query @ key.transpose(1, 2)).argmax(-1)  # (heads, positions)
        for head, distance in enumerate((-1, 1, -2, 2)):
            inside = torch.arange(5, 125)
            assert torch.equal(best[head, inside], inside + distance)


def test_words_of_the_same_contexts_are_near() -> None:
    torch.manual_seed(0)
    vectors = word_vectors(text(), 70, 16)
    assert vectors.shape == (70, 16)
    near = F.cosine_similarity(vectors[10:30, None], vectors[None, 10:30], dim=-1).mean()
    far = F.cosine_similarity(vectors[10:30, None], vectors[None, 40:60], dim=-1).mean()
    assert near > far + 0.3


def test_at_the_start_a_word_is_as_likely_as_it_is_frequent(model: MaskedLanguageModel) -> None:
    counts = torch.from_numpy(np.bincount(text(), minlength=70) + 1.0)
    assert torch.allclose(model.bias.detach().double().exp(), counts / counts.sum(), atol=1e-6)
    logits = model(pack([[0, 11, 33, 2], [0, 45, 2]], config=CONFIG))
    assert logits.isfinite().all()


def test_the_start_is_a_function_of_the_seed_and_the_text() -> None:
    models = []
    for _ in range(2):
        torch.manual_seed(5)
        models.append(MaskedLanguageModel(CONFIG))
        init_weights(models[-1], CONFIG.initializer_range)
        init_from_counts(models[-1], text())
    one, other = (one.state_dict() for one in models)
    assert all(torch.equal(one[name], other[name]) for name in one)
