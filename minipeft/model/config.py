"""config.json → EncoderConfig, under Hugging Face's field names."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minipeft.errors import MinipeftError, first_line, shown
from minipeft.files import parse_json, read_small

# model_type → the family whose names its tensors bear
MODEL_TYPES = {"roberta": "roberta", "xlm-roberta": "roberta", "camembert": "roberta", "bert": "bert"}
# No model comes near; they keep a hostile config.json from asking for more than can be counted.
LARGEST_SIZE, MOST_LAYERS = 1 << 24, 1 << 10


@dataclass(frozen=True)
class EncoderConfig:
    """The shape of an encoder of the RoBERTa family; the defaults are roberta-base's (Liu et al. 2019, table 9).

    model_type                    roberta, xlm-roberta, camembert or bert
    vocab_size                    tokens that have an embedding
    hidden_size                   features of a token between the layers
    num_hidden_layers             layers
    num_attention_heads           heads of a layer; each has hidden_size / num_attention_heads features
    intermediate_size             features inside the feed-forward
    max_position_embeddings       rows of the position table, its offset included: see max_length
    type_vocab_size               token types: 1 in roberta, 2 in bert
    pad_token_id                  padding's id, which only fixes where positions begin
    layer_norm_eps                added to the variance
    initializer_range             standard deviation of new weights
    hidden_dropout_prob           probability, after the embeddings and each sublayer
    attention_probs_dropout_prob  probability, on the attention's weights
    classifier_dropout            probability, in the head; None means hidden_dropout_prob, as in transformers
    id2label                      a class's number → its name

    Raises MinipeftError for a value that no encoder can have; the message names the field.
    """

    model_type: str = "roberta"
    vocab_size: int = 50265
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 514
    type_vocab_size: int = 1
    pad_token_id: int = 1
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None
    id2label: dict[int, str] = field(default_factory=lambda: {0: "LABEL_0", 1: "LABEL_1"})

    def __post_init__(self) -> None:
        if not isinstance(self.model_type, str) or self.model_type not in MODEL_TYPES:
            raise MinipeftError(
                f"model_type {shown(self.model_type)} is not supported; one of {', '.join(MODEL_TYPES)} is"
            )
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "type_vocab_size",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise MinipeftError(f"{name} {shown(value)} in the model's config is not a whole number of 1 or more")
            if value > (largest := MOST_LAYERS if name == "num_hidden_layers" else LARGEST_SIZE):
                raise MinipeftError(f"{name} {shown(value)} in the model's config is beyond any model's, {largest}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            value = getattr(self, name)
            if value is None and name == "classifier_dropout":
                continue
            if not (isinstance(value, (int, float)) and 0 <= value < 1):
                raise MinipeftError(f"{name} {shown(value)} in the model's config is not a probability below 1")
        for name in ("layer_norm_eps", "initializer_range"):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and 0 <= value <= sys.float_info.max):
                raise MinipeftError(f"{name} {shown(value)} in the model's config is not a number of 0 or more")
        if list(self.id2label) != list(range(len(self.id2label))) or not self.id2label:
            raise MinipeftError(
                f"id2label {shown(self.id2label)} in the model's config does not count its classes from 0"
            )
        if self.hidden_size % self.num_attention_heads:
            raise MinipeftError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if not isinstance(self.pad_token_id, int) or not 0 <= self.pad_token_id < self.vocab_size:
            raise MinipeftError(
                f"pad_token_id {shown(self.pad_token_id)} lies outside the vocabulary of {self.vocab_size}"
            )
        if self.max_length < 1:
            raise MinipeftError(
                f"max_position_embeddings {self.max_position_embeddings} leaves no position "
                f"after the offset {self.position_offset}"
            )

    @property
    def is_bert(self) -> bool:
        """BERT differs in positions (from 0), token types and its pooler."""
        return self.model_type == "bert"

    @property
    def position_offset(self) -> int:
        """The first token's position: 0 for bert, padding_idx + 1 for the others."""
        return 0 if self.is_bert else self.pad_token_id + 1

    @property
    def max_length(self) -> int:
        """The longest sequence that the position table holds, in tokens."""
        return self.max_position_embeddings - self.position_offset

    @property
    def num_labels(self) -> int:
        """The number of classes; 1 for regression."""
        return len(self.id2label)

    @property
    def head_dropout_prob(self) -> float:
        """The classification head's dropout probability."""
        return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout

    def with_labels(self, names: list[str]) -> EncoderConfig:
        """The same shape with the classes `names`."""
        return dataclasses.replace(self, id2label=dict(enumerate(names)))

    def to_dict(self) -> dict[str, Any]:
        """The content of config.json, as transformers reads it."""
        content = dataclasses.asdict(self)
        content["id2label"] = {str(number): name for number, name in self.id2label.items()}
        content["label2id"] = {name: number for number, name in self.id2label.items()}
        content["architectures"] = [
            "BertForSequenceClassification" if self.is_bert else "RobertaForSequenceClassification"
        ]
        content["hidden_act"] = "gelu"
        return content


def load_config(folder: Path) -> EncoderConfig:
    """Read `folder`/config.json.

    Fields that would change the mathematics (another activation, relative positions, a decoder) are refused.
    """
    path = folder / "config.json"
    try:
        content = parse_json(read_small(path))
    except FileNotFoundError:
        raise MinipeftError(
            f"{folder}: no config.json; a checkpoint folder needs config.json, weights and a tokenizer"
        ) from None
    except (OSError, ValueError) as error:
        raise MinipeftError(f"{path}: not readable as JSON ({first_line(error)}); fetch the checkpoint again") from None
    if not isinstance(content, dict):
        raise MinipeftError(f"{path}: holds no JSON object; fetch the checkpoint again")
    expected = {
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
    }
    for name, value in expected.items():
        if content.get(name, value) != value:
            raise MinipeftError(f"{path}: {name} {shown(content[name])} is not supported; {value!r} is")
    if "model_type" not in content:
        raise MinipeftError(f"{path}: no model_type; one of {', '.join(MODEL_TYPES)} is needed")
    names = {f.name for f in dataclasses.fields(EncoderConfig)}
    known = {name: value for name, value in content.items() if name in names}
    known = _silent(content["model_type"]) | known
    try:
        labels = content.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
        if not isinstance(labels, dict):
            raise ValueError(f"id2label {shown(labels)} is no table of numbers and names")
        known["id2label"] = {int(number): str(name) for number, name in sorted(labels.items(), key=lambda x: int(x[0]))}
        return EncoderConfig(**known)
    except (TypeError, ValueError, AttributeError) as error:
        raise MinipeftError(f"{path}: {first_line(error)}; fetch the checkpoint again") from None
    except MinipeftError as error:
        raise MinipeftError(f"{path}: {error}") from None


def _silent(model_type: Any) -> dict[str, Any]:
    """What transformers assumes where a config.json says nothing."""
    return {
        "vocab_size": 50265 if model_type == "roberta" else 30522,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0 if model_type == "bert" else 1,
    }
