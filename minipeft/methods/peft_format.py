"""peft's adapter_config.json: what each field says about our layers, and refusing what cannot be done."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from minipeft.errors import MinipeftError
from minipeft.model.config import EncoderConfig
from minipeft.model.families import family_of

# Fields that change no number of a loaded adapter.
WITHOUT_EFFECT = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
    "velora_config",
}
Targets = dict[tuple[int, str], str]  # (layer's number, our target) → the module's path in transformers' model


@dataclass(frozen=True)
class PeftFormat:
    """How peft stores a method.

    Attributes:
        write: The method's config and the model's → peft's fields.
        read: peft's fields and the model's config → the method's config; raises MinipeftError.
        names: The last part of a tensor's name here → in peft's file, where it differs; or the whole name. The head's
            tensors keep theirs.
        marks: Fields that distinguish methods of one peft_type.
        prefix: What peft puts before transformers' names.
    """

    write: Callable[[Any, EncoderConfig], dict[str, Any]]
    read: Callable[[dict[str, Any], EncoderConfig], Any]
    names: dict[str, str] = field(default_factory=dict)
    marks: dict[str, Any] = field(default_factory=dict)
    prefix: str = "base_model.model."

    def describes(self, content: dict[str, Any]) -> bool:
        """Return whether an adapter_config.json of the method's peft_type is of this method."""
        return all(bool(content.get(name)) == value for name, value in self.marks.items())


def check_fields(content: dict[str, Any], known: Collection[str]) -> None:
    """Refuse a field that is set and that nothing here understands: it might change the mathematics."""
    for name, value in content.items():
        if value not in (None, False, "", "none", [], {}) and name not in WITHOUT_EFFECT and name not in known:
            raise MinipeftError(f"{name} {value!r} is not supported; an adapter without it is")


def write_targets(config: EncoderConfig, targets: Collection[tuple[int, str]]) -> list[str]:
    """peft's target_modules for (layer, target) pairs: a suffix where all layers have the target, else one a layer."""
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
    """peft's target_modules for targets that every layer has."""
    return write_targets(config, [place for place in linear_modules(config) if place[1] in targets])


def linear_modules(config: EncoderConfig) -> Targets:
    """Every linear layer of the encoder."""
    return {place: theirs for place, (_, theirs) in family_of(config).linear_paths(config).items()}


def read_targets(content: dict[str, Any], config: EncoderConfig) -> Targets:
    """The linear layers that peft's target_modules name."""
    family = family_of(config)
    # peft's "all-linear" names the head's layers too, and leaves them out where modules_to_save has them.
    head = (*family.head_names.values(), *family.head_modules, "score")
    return match_targets(content, linear_modules(config), "linear layer", head)


def match_targets(content: dict[str, Any], every: Targets, kind: str, ignored: Collection[str] = ()) -> Targets:
    """Those of `every` that peft's target_modules name: a list of suffixes, or one regular expression.

    A name that fits neither one of them nor one of the paths `ignored` raises MinipeftError.
    """
    modules = content.get("target_modules")
    if not isinstance(modules, str) and not (
        isinstance(modules, list) and modules and all(isinstance(name, str) for name in modules)
    ):
        raise MinipeftError(f"target_modules {modules!r} is neither a list of names nor a regular expression")
    excluded = content.get("exclude_modules") or []
    layers = None if isinstance(modules, str) else content.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers
    whole = content.get("modules_to_save") or []  # trained as they are, so never targets
    found = {
        place: path
        for place, path in every.items()
        if matches(modules, path, "target_modules")
        and not matches(excluded, path, "exclude_modules")
        and not matches(whole, path, "modules_to_save")
        and (layers is None or place[0] in layers)
    }
    if not found:
        raise MinipeftError(f"target_modules {modules!r} names no {kind} of the encoder")
    known = [*every.values(), *ignored]
    for name in [] if isinstance(modules, str) else modules:
        if not any(matches([name], path, "target_modules") for path in known):
            raise MinipeftError(f"target_modules names {name!r}, which is not a {kind} of the encoder")
    return found


def in_every_layer(found: Targets, every: Targets, field_name: str = "target_modules") -> tuple[str, ...]:
    """The targets found, for a method that takes each in every layer or in none; one in some raises MinipeftError."""
    targets = {target for _, target in found}
    for layer, target in every:
        if target in targets and (layer, target) not in found:
            raise MinipeftError(
                f"{field_name} names {target} in some layers, but not in layer {layer}; "
                "only a target in all layers is supported"
            )
    return tuple(dict.fromkeys(target for _, target in every if target in targets))


def matches(modules: list[str] | str, path: str, field_name: str) -> bool:
    """Whether a field of peft's, a list of suffixes or a regular expression, names the module at `path`."""
    if isinstance(modules, str):
        try:
            return re.fullmatch(modules, path) is not None
        except re.error as error:
            raise MinipeftError(f"{field_name} {modules!r} is not a regular expression ({error})") from None
    return any(path == name or path.endswith("." + name) for name in modules)


def read_pattern(content: dict[str, Any], field_name: str, path: str, default: Any) -> Any:
    """What rank_pattern or alpha_pattern says of a module: the value of the first key that its path ends in."""
    pattern = content.get(field_name) or {}
    if not isinstance(pattern, dict):
        raise MinipeftError(f"{field_name} {pattern!r} is not a table of module names")
    for key, value in pattern.items():
        try:
            if re.match(rf"(.*\.)?({key})$", path):
                return value
        except re.error as error:
            raise MinipeftError(f"{field_name}: {key!r} is not a regular expression ({error})") from None
    return default
