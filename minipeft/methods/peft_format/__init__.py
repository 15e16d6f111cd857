"""How peft stores a method: the fields of adapter_config.json that a method writes.

reading.py reads them; training imports this file alone.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from minipeft.model.config import EncoderConfig
from minipeft.model.families import family_of
from minipeft.model.roberta import Encoder

Targets = dict[tuple[int, str], str]  # (layer's number, our target) → the module's path in transformers' model


@dataclass(frozen=True)
class PeftFormat:
    """How peft stores a method.

    Attributes:
        write: The method's config and the model's → peft's fields.
        read: peft's fields and the model's config → the method's config; raises MinipeftError.
        names: The last part of a tensor's name here → in peft's file, where it differs; or the whole name. The head's
            tensors keep theirs.
        use_dora: peft's field that distinguishes DoRA from LoRA, which have one peft_type.
        prefix: What peft puts before transformers' names.
        layer: LoRA's kind of linear layer; peft can adapt the head's with it too, and loading merges these.
    """

    write: Callable[[Any, EncoderConfig], dict[str, Any]]
    read: Callable[[dict[str, Any], EncoderConfig], Any]
    names: dict[str, str] = field(default_factory=dict)
    use_dora: bool = False
    prefix: str = "base_model.model."
    layer: type[Any] | None = None


def write_targets(config: EncoderConfig, targets: Collection[tuple[int, str]]) -> list[str]:
    """Return peft's target_modules: a suffix of a target that all layers have, else one path per layer."""
    names = []
    family = family_of(config)
    every = linear_modules(config)
    linears = {target: family.names[module] for target, module in family.linears.items()}
    for target, path in linears.items():
        layers = [layer for layer, name in targets if name == target]
        parent, _, inside = path.rpartition(".{i}.")
        parts = inside.split(".")
        suffixes = [".".join(parts[-length:]) for length in range(1, len(parts) + 1)]
        # "output.dense" alone would name attention.output.dense too
        unique = [end for end in suffixes if sum(f".{other}".endswith(f".{end}") for other in linears.values()) == 1]
        if unique and len(layers) == sum(name == target for _, name in every):
            names.append(unique[0])
        else:
            names += [f"{parent.rpartition('.')[2]}.{layer}.{inside}" for layer in layers]
    return names


def write_in_every_layer(config: EncoderConfig, targets: Collection[str]) -> list[str]:
    """Return peft's target_modules for targets that every layer has."""
    return write_targets(config, [place for place in linear_modules(config) if place[1] in targets])


def write_layers(content: dict[str, Any], peft_type: str, encoder: Encoder) -> dict[str, Any]:
    """Return the fields that restrict the method of peft's fields `content` to the layers that train."""
    if peft_type in ("LORA", "ADALORA", "VERA"):
        return {"layers_to_transform": list(range(encoder.frozen_layers or 0, len(encoder.layers)))}
    # Other methods have no such field.
    lists = [name for name in ("target_modules", "feedforward_modules") if name in content]
    return {name: trained_paths(content[name], encoder) for name in lists}


def trained_paths(names: Collection[str], encoder: Encoder) -> list[str]:
    """Return the paths of the modules that end in one of `names` and are in the layers that train."""
    modules = family_of(encoder.config).encoder_paths(encoder.config).items()
    ends = tuple(f".{name}" for name in names)
    return [theirs for ours, theirs in modules if encoder.may_train(ours) and f".{theirs}".endswith(ends)]


def linear_modules(config: EncoderConfig) -> Targets:
    """Return every linear layer of the encoder."""
    return {place: theirs for place, (_, theirs) in family_of(config).linear_paths(config).items()}
