"""peft's adapter_config.json: what each field says about our layers, and refusing what cannot be done."""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from minipeft.errors import MinipeftError, first_line, short_repr
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
MOST_NAMES, LONGEST_PATTERN = 10_000, 10_000  # names in a field; characters of a regular expression
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
        layer: LoRA's kind of linear layer; peft can adapt the head's with it too, and loading merges these.
    """

    write: Callable[[Any, EncoderConfig], dict[str, Any]]
    read: Callable[[dict[str, Any], EncoderConfig], Any]
    names: dict[str, str] = field(default_factory=dict)
    marks: dict[str, Any] = field(default_factory=dict)
    prefix: str = "base_model.model."
    layer: type[Any] | None = None

    def describes(self, content: dict[str, Any]) -> bool:
        """Return whether an adapter_config.json of the method's peft_type is of this method."""
        return all(bool(content.get(name)) == value for name, value in self.marks.items())


def check_fields(content: dict[str, Any], known: Collection[str]) -> None:
    """Refuse a field that is set and that nothing here understands: it might change the mathematics."""
    for name, value in content.items():
        if value not in (None, False, "", "none", [], {}) and name not in WITHOUT_EFFECT and name not in known:
            raise MinipeftError(f"{name} {short_repr(value)} is not supported; an adapter without it is")


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
    paths = tuple(every.values())
    chosen = matching(modules, paths, "target_modules")
    chosen -= matching(content.get("exclude_modules") or [], paths, "exclude_modules")
    for name in check_names(content.get("modules_to_save") or [], "modules_to_save"):  # trained whole, never targets
        if name.isidentifier():  # "classifier", for which pyarrow and what it imports are not needed
            chosen -= {path for path in paths if name in path.split(".")}
        else:
            chosen -= _matching_regex(rf"(^|.*\.)({name})($|\..*)", paths, "modules_to_save")
    layers = content.get("layers_to_transform")
    if layers not in (None, []) and isinstance(modules, list):
        if not all(type(layer) is int for layer in (layers if isinstance(layers, list) else [layers])):
            raise MinipeftError(f"layers_to_transform {short_repr(layers)} is not a list of layers' numbers")
        numbers = set(layers) if isinstance(layers, list) else {layers}
        kept = {path for (layer, _), path in every.items() if layer in numbers}
        chosen &= kept | set(modules)  # peft takes a whole path in every layer
    if not chosen:
        raise MinipeftError(f"target_modules {short_repr(modules)} names no {kind} of the encoder")
    known = (*paths, *ignored)
    for name in modules if isinstance(modules, list) else []:
        if not matching([name], known, "target_modules"):
            raise MinipeftError(f"target_modules names {short_repr(name)}, which is not a {kind} of the encoder")
    return {place: path for place, path in every.items() if path in chosen}


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


def matching(modules: Any, paths: tuple[str, ...], field_name: str) -> set[str]:
    """Return the paths that a field of peft's, a list of suffixes or one regular expression, names."""
    if isinstance(modules, str):
        return _matching_regex(modules, paths, field_name)
    names = set(check_names(modules, field_name))
    # "a.b.c" ends in the names "a.b.c", "b.c" and "c".
    ends = {path: {path.split(".", number)[-1] for number in range(path.count(".") + 1)} for path in paths}
    return {path for path in paths if names & ends[path]}


def check_names(names: Any, field_name: str) -> list[str]:
    """Return a list of names; anything else, and more than a model has modules, raises MinipeftError."""
    if not isinstance(names, list) or len(names) > MOST_NAMES or not all(isinstance(name, str) for name in names):
        raise MinipeftError(f"{field_name} {short_repr(names)} is neither a list of names nor a regular expression")
    return names


def _matching_regex(pattern: str, paths: tuple[str, ...], field_name: str) -> set[str]:
    """Return the paths that match a whole regular expression.

    RE2, which pyarrow contains, takes time linear in the path; Python's `re` takes exponential time for some patterns.
    RE2 lacks lookaround and references to groups. Such a pattern raises MinipeftError.
    """
    import pyarrow
    import pyarrow.compute

    try:
        if len(pattern) > LONGEST_PATTERN:
            raise ValueError(f"it has {len(pattern):,} characters")
        re.compile(pattern)  # what peft's would refuse is refused
        if "{," in pattern:  # means {0, to Python, and itself to RE2
            raise ValueError("write {0, for {,")
        found = pyarrow.compute.match_substring_regex(pyarrow.array(paths, pyarrow.string()), rf"\A(?:{pattern})\z")
    except (re.error, ValueError, OverflowError, RecursionError) as error:  # pyarrow's errors are ValueErrors
        raise MinipeftError(
            f"{field_name} {short_repr(pattern)} is not a regular expression that is supported ({first_line(error)})"
        ) from None
    return {path for path, matches in zip(paths, found.to_pylist(), strict=True) if matches}


def read_pattern(content: dict[str, Any], field_name: str, paths: Collection[str], default: Any) -> dict[str, Any]:
    """Return what rank_pattern or alpha_pattern says of each path: the value of the first key that it ends in."""
    pattern = content.get(field_name) or {}
    if not isinstance(pattern, dict) or len(pattern) > MOST_NAMES:
        raise MinipeftError(f"{field_name} {short_repr(pattern)} is not a table of module names")
    values: dict[str, Any] = {}
    for key, value in pattern.items():
        left = tuple(path for path in paths if path not in values)
        values |= dict.fromkeys(_matching_regex(rf"(.*\.)?({key})", left, f"{field_name}:"), value)
    return dict.fromkeys(paths, default) | values
