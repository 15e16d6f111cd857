"""LayerNorm tuning (Zhao et al. 2023): weight and bias of the LayerNorms train, nothing else."""

from dataclasses import dataclass
from typing import Any

from minipeft.errors import MinipeftError, check_choice
from minipeft.methods import LayerMethodConfig
from minipeft.methods.peft_format import PeftFormat, Targets
from minipeft.methods.peft_format.reading import check_fields, in_every_layer, match_targets
from minipeft.model.classifier import SequenceClassifier
from minipeft.model.config import EncoderConfig
from minipeft.model.families import FAMILIES, LAYER_NORMS, family_of, get_family

# Every name of a LayerNorm that some family has.
NAMES = tuple(dict.fromkeys(name for family in map(get_family, FAMILIES) for name in family.layer_norms))


@dataclass(frozen=True)
class LayerNormTuning(LayerMethodConfig):
    """y = (x − mean) / √(variance + eps) · weight + bias, weight and bias trained    (Ba et al. 2016; Zhao et al. 2023)

    Args:
        layer_norms: Which of them: "embeddings", that of the embeddings; "attention", the one after attention in each
            layer; "output", the one that ends each layer.

    Parameters: 4 hidden_size a layer and 2 hidden_size in the embeddings; 38,400 for roberta-base.

    Raises:
        MinipeftError: for an unknown name.
    """

    layer_norms: tuple[str, ...] = tuple(LAYER_NORMS)

    def __post_init__(self) -> None:
        given = (self.layer_norms,) if isinstance(self.layer_norms, str) else self.layer_norms
        if not isinstance(given, (tuple, list)) or not given:
            raise MinipeftError(f"layer_norms {given!r} names no LayerNorm; name some of {', '.join(NAMES)}")
        for name in given:
            check_choice("LayerNorm", name, NAMES)
        object.__setattr__(self, "layer_norms", tuple(name for name in NAMES if name in given))


def install(model: SequenceClassifier, method: LayerNormTuning) -> None:
    layer_norms = family_of(model.config).layer_norms
    for name in method.layer_norms:
        check_choice(f"LayerNorm of a {model.config.model_type} encoder:", name, layer_norms)
    for layer, name in _paths(model.config):
        if name in method.layer_norms:
            model.encoder.get_submodule(layer_norms[name].replace("{i}", str(layer))).requires_grad_(True)


def _paths(config: EncoderConfig) -> Targets:
    """(layer's number, which LayerNorm) → its path in transformers' model."""
    family = family_of(config)
    paths = family.encoder_paths(config)
    return {
        (layer, name): paths[place]
        for name, ours in family.layer_norms.items()
        for layer in range(config.num_hidden_layers if "{i}" in ours else 1)
        if (place := ours.replace("{i}", str(layer))) in paths
    }


def to_peft(method: LayerNormTuning, config: EncoderConfig) -> dict[str, Any]:
    """Return the fields of peft's LNTuningConfig; "output.LayerNorm" alone would name the ones after attention too."""
    every = _paths(config)
    paths = [path for (_, name), path in every.items() if name in method.layer_norms]
    all_of_them = len(paths) == len(every) and all(path.endswith(".LayerNorm") for path in paths)
    return {"target_modules": ["LayerNorm"] if all_of_them else paths}


def from_peft(content: dict[str, Any], config: EncoderConfig) -> LayerNormTuning:
    """Return the config that peft's LNTuningConfig fields describe."""
    check_fields(content, {"target_modules", "exclude_modules"})
    paths = _paths(config)
    return LayerNormTuning(in_every_layer(match_targets(content, paths, "LayerNorm"), paths))


PEFT = PeftFormat(
    to_peft,
    from_peft,
    names={"weight": "ln_tuning_layers.weight", "bias": "ln_tuning_layers.bias"},
)
