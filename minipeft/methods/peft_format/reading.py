"""peft's adapter_config.json → what it says about our layers; an unsupported field raises MinipeftError."""

import re
from collections.abc import Collection
from typing import Any

from minipeft.errors import MinipeftError, check_choice, first_line, short_repr
from minipeft.methods.peft_format import Targets, linear_modules
from minipeft.model.config import EncoderConfig
from minipeft.model.families import FAMILIES, LINEAR_NAMES, family_of, get_family

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


def check_fields(content: dict[str, Any], known: Collection[str]) -> None:
    """Raise for a field that is set and not known: it might change the mathematics."""
    for name, value in content.items():
        if value not in (None, False, "", "none", [], {}) and name not in WITHOUT_EFFECT and name not in known:
            raise MinipeftError(f"{name} {short_repr(value)} is not supported; an adapter without it is")


def read_targets(content: dict[str, Any], config: EncoderConfig) -> Targets:
    """Return the linear layers that peft's target_modules name."""
    family = family_of(config)
    # peft's "all-linear" names the head's layers too, and leaves them out where modules_to_save has them.
    head = (*family.head_names.values(), *family.head_modules, "score")
    return match_targets(content, linear_modules(config), "linear layer", head)


def linear_name(name: str) -> str:
    """Return our name of a linear layer of any family, for ours or for the end of its path in transformers."""
    names = dict.fromkeys(LINEAR_NAMES)
    for family in map(get_family, FAMILIES):
        names |= dict.fromkeys(family.linears)
        for ours, module in family.linears.items():
            path = family.names[module].rpartition("{i}.")[2]  # "attention.q_lin", which ends in "q_lin"
            if name in (path, path.rpartition(".")[2]) and name not in ("dense", "Wo"):  # the ends of several paths
                return ours
    check_choice("target", name, names)
    return name


def target_names(targets: Targets, config: EncoderConfig) -> tuple[str, ...]:
    """Return our names of the linear layers found, each once, in the order of the layer."""
    found = {target for _, target in targets}
    return tuple(name for name in family_of(config).linears if name in found)


def match_targets(content: dict[str, Any], every: Targets, kind: str, ignored: Collection[str] = ()) -> Targets:
    """Return those of `every` that peft's target_modules name: a list of suffixes, or one regular expression.

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
    """Return the targets found; raise for one that is in some layers only, as a method may take all or none."""
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
    """Return the paths that match a whole regular expression; raise for lookaround and references to groups."""
    # RE2, which pyarrow contains, takes time linear in the path. Python's `re` may take exponential time.
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


# The fields of peft's LoraConfig that `read_lora` understands.
LORA_FIELDS = {
    *("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "use_rslora"),
    *("init_lora_weights", "bias", "rank_pattern", "alpha_pattern"),
}
# How A and B may have started; the other ways (olora, loftq, corda, …) change the frozen weights.
LORA_INITIALIZATIONS = {"gaussian": "gaussian", "pissa": "pissa"} | dict.fromkeys((True, False, None), "kaiming")
LORA_INITIALIZATIONS |= dict.fromkeys(("eva", "orthogonal"), "kaiming")


def read_lora(content: dict[str, Any], config: EncoderConfig, *also_known: str) -> dict[str, Any]:
    """Return the settings of LoRA, or of DoRA, that peft's LoraConfig fields describe."""
    check_fields(content, {*LORA_FIELDS, *also_known})
    init = content.get("init_lora_weights")
    if init not in LORA_INITIALIZATIONS:
        raise MinipeftError(f"init_lora_weights {init!r} is not supported; true, gaussian and pissa are")
    targets = read_targets(content, config)
    names = target_names(targets, config)
    rank, alpha = content.get("r", 8), content.get("lora_alpha", 8)
    by_path = read_pattern(content, "rank_pattern", targets.values(), rank)
    ranks = {key: by_path[targets[key]] if key in targets else 0 for key in linear_modules(config) if key[1] in names}
    by_path = read_pattern(content, "alpha_pattern", targets.values(), alpha)
    alphas = {key: by_path[path] for key, path in targets.items()}
    return {
        "rank": rank,
        "alpha": alpha,
        "dropout": content.get("lora_dropout", 0.0),
        "targets": names,
        "rslora": bool(content.get("use_rslora", False)),
        "init": LORA_INITIALIZATIONS[init],
        "rank_pattern": _pattern(ranks, rank),
        "alpha_pattern": _pattern(alphas, alpha),
        "bias": content.get("bias", "none"),
        "modules_to_save": content.get("modules_to_save") or (),
    }


def _pattern(values: dict[tuple[int, str], Any], default: Any) -> dict[str, Any]:
    """Return the shortest of our patterns: by target where all layers agree."""
    pattern: dict[str, Any] = {}
    for target in dict.fromkeys(target for _, target in values):
        of_target = {f"{layer}.{name}": value for (layer, name), value in values.items() if name == target}
        if len(set(of_target.values())) == 1:
            of_target = dict.fromkeys([target], next(iter(of_target.values())))
        pattern |= {key: value for key, value in of_target.items() if value != default}
    return pattern
