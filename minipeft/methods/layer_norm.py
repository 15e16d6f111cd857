"""LayerNorm tuning (Zhao et al. 2023): weight and bias of the LayerNorms train, nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minipeft.errors import MinipeftError, one_of
from minipeft.methods.peft_format import PeftFormat, Targets, check_fields, in_every_layer, named_by_targets
from minipeft.model.checkpoint import ENCODER_NAMES
from minipeft.model.config import MODEL_TYPES, EncoderConfig
from minipeft.model.roberta import SequenceClassifier

# Which LayerNorm → our module; {i} is a layer's number.
LAYER_NORMS = {
    "embeddings": "encoder.layer_norm",
    "attention": "encoder.layers.{i}.attention_layer_norm",
    "output": "encoder.layers.{i}.output_layer_norm",
}


@dataclass(frozen=True)
class LayerNormTuning:
    """y = (x − mean) / √(variance + eps) · weight + bias, weight and bias trained    (Ba et al. 2016; Zhao et al. 2023)

    layer_norms     which of them: "embeddings", that of the embeddings; "attention", the one after attention in each
                    layer; "output", the one that ends each layer

    Parameters: 4 hidden_size a layer and 2 hidden_size in the embeddings; 38,400 for roberta-base. Raises MinipeftError
    for an unknown name.
    """

    layer_norms: tuple[str, ...] = tuple(LAYER_NORMS)

    def __post_init__(self) -> None:
        given = (self.layer_norms,) if isinstance(self.layer_norms, str) else self.layer_norms
        if not isinstance(given, (tuple, list)) or not given:
            raise MinipeftError(f"layer_norms {given!r} names no LayerNorm; name some of {', '.join(LAYER_NORMS)}")
        for name in given:
            one_of("LayerNorm", name, LAYER_NORMS)
        object.__setattr__(self, "layer_norms", tuple(name for name in LAYER_NORMS if name in given))


def install(model: SequenceClassifier, method: LayerNormTuning) -> None:
    for layer, name in _paths(model.config):
        if name in method.layer_norms:
            model.get_submodule(LAYER_NORMS[name].replace("{i}", str(layer))).requires_grad_(True)


def _paths(config: EncoderConfig) -> Targets:
    """(layer's number, which LayerNorm) → its path in transformers' model."""
    places = [(0, "embeddings")]
    places += [(layer, name) for layer in range(config.num_hidden_layers) for name in ("attention", "output")]
    prefix = MODEL_TYPES[config.model_type] + "."
    return {
        (layer, name): ENCODER_NAMES[LAYER_NORMS[name]].replace("{i}", str(layer)).replace("{p}", prefix)
        for layer, name in places
    }


def to_peft(method: LayerNormTuning, config: EncoderConfig) -> dict[str, Any]:
    """peft's LNTuningConfig fields; "output.LayerNorm" alone would name the ones after attention too."""
    paths = [path for (_, name), path in _paths(config).items() if name in method.layer_norms]
    return {"target_modules": ["LayerNorm"] if method == LayerNormTuning() else paths}


def from_peft(content: dict[str, Any], config: EncoderConfig) -> LayerNormTuning:
    """The config that peft's LNTuningConfig fields describe."""
    check_fields(content, {"target_modules", "exclude_modules"})
    paths = _paths(config)
    return LayerNormTuning(in_every_layer(named_by_targets(content, paths, "LayerNorm"), paths))


PEFT = PeftFormat(
    "LN_TUNING",
    to_peft,
    from_peft,
    names={"weight": "ln_tuning_layers.weight", "bias": "ln_tuning_layers.bias"},
)
