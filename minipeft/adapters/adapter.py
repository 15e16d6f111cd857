"""An adapter's files → a model: load_adapter, a run's best epoch, and an adapter to start from."""

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from minipeft.adapters.adapter_file import Adapter, read_adapter
from minipeft.adapters.save import CONFIG, PREFIX, WEIGHTS, adapter_tensors
from minipeft.errors import MinipeftError, first_line, logger, short_repr
from minipeft.files import user_path
from minipeft.methods import METHODS, apply, method_name
from minipeft.methods.peft_format.reading import read_pattern
from minipeft.model.classifier import SequenceClassifier, new_classifier
from minipeft.model.config import EncoderConfig
from minipeft.model.families import family_of
from minipeft.model.layers import Linear
from minipeft.model.pretrained import check_tensor
from minipeft.problems import problem_row


def load_adapter(model: SequenceClassifier, folder: str | Path) -> SequenceClassifier:
    """Install the method that `folder` holds in `model`, with its trained values; returns the same model.

    The adapter may be ours or peft's; the model must have no method yet, and as many labels as the adapter.

    Raises:
        MinipeftError: before the model is changed, for an adapter of another base, an unknown type or setting, and a
            tensor that is missing, unused or of a wrong shape.
    """
    return install_adapter(model, read_adapter(user_path(folder), model.config))


def install_adapter(model: SequenceClassifier, adapter: Adapter) -> SequenceClassifier:
    """Install an adapter that was read; see `load_adapter`."""
    folder, method, labels = adapter.folder, adapter.method, adapter.details.get("labels")
    if labels and len(labels) != model.config.num_labels:
        raise MinipeftError(
            f"{folder}: the adapter has {len(labels)} labels, the model {model.config.num_labels}; "
            f"load the model with num_labels={len(labels)}"
        )
    if problem_row(adapter.problem_type).per_token != problem_row(model.config.problem_type).per_token:
        raise MinipeftError(
            f"{folder}: the adapter and the model have other kinds of labels. "
            f"Load the model with problem_type={adapter.problem_type or model.config.label_kind!r}."
        )
    try:
        with torch.device("meta"):
            shape = apply(new_classifier(model.config), method)
    except (MinipeftError, RuntimeError, OverflowError) as error:  # torch's, for sizes that no tensor can have
        raise MinipeftError(f"{folder / CONFIG}: {first_line(error)}") from None
    names = adapter_tensors(shape)
    own, state = _head_of_model(model, names, adapter)
    _check_tensors({theirs: tensor for theirs, tensor in names.items() if theirs not in own}, state, adapter)
    apply(model, method)
    _copy(adapter_tensors(model), state | own)
    model.new_tensors = ()
    if labels:
        model.config = model.config.with_labels(labels, adapter.problem_type)
    return model


def reload_adapter(model: SequenceClassifier, adapter: Adapter) -> None:
    """Give a model that has the method already the values of `adapter`: a run's best epoch, say."""
    tensors = adapter_tensors(model)
    _check_tensors(tensors, adapter.state, adapter)
    _copy(tensors, adapter.state)


def read_initial_adapter(run: Path, config: EncoderConfig) -> Adapter:
    """The adapter of a run, or of an adapter folder, for a model of shape `config`."""
    folder = run / "adapter" if (run / "adapter" / CONFIG).is_file() else run
    return read_adapter(folder, config)


def initialize_from_adapter(model: SequenceClassifier, start: Adapter) -> str:
    """Give a model that has the method an adapter's values, head included where the labels are the same.

    Returns one line that says what was taken.
    """
    tensors = adapter_tensors(model)
    labels, own = start.details.get("labels"), list(model.config.id2label.values())
    keeps_head = labels == own
    if any(_is_in_head(name, model.config) for name in start.state):  # a part of a head would be another function
        _head_of_model(model, tensors, start)
    wanted, found = (
        {name: tensor for name, tensor in named.items() if keeps_head or not _is_in_head(name, model.config)}
        for named in (tensors, start.state)
    )
    _check_tensors(wanted, found, start)
    _copy(wanted, found)
    trained_on = f"{start.details.get('task', 'an adapter')}, labels {', '.join(map(str, labels or ['unknown']))}"
    taken = "head included" if keeps_head else f"with a new head for {', '.join(own)}"
    return f"start   {start.folder} ({trained_on}), {taken}"


def _check_tensors(expected: dict[str, Tensor], state: dict[str, Tensor], adapter: Adapter) -> None:
    """Raise unless the file has every tensor of the model with its shape, and no other."""
    path = adapter.folder / WEIGHTS
    for name, tensor in expected.items():
        if name not in state:
            remedy = _describe_layer_mismatch(expected, state) or "the file is not whole"
            raise MinipeftError(f"{path}: tensor {name} is missing; {remedy}")
        check_tensor(state[name], tensor.shape, f"{path}: {name}")
    if unused := sorted(set(state) - set(expected)):
        remedy = _describe_layer_mismatch(expected, state) or "the adapter belongs to another model or method"
        raise MinipeftError(
            f"{path}: nothing uses tensor {short_repr(unused[0])[1:-1]} (and {len(unused) - 1} more); {remedy}"
        )


def _describe_layer_mismatch(expected: Iterable[str], state: Iterable[str]) -> str:
    """What to say where a file's tensors end at another layer than the model's; nothing where they do not."""
    asked, found = (
        max((int(number) for name in names for number in re.findall(r"\.layers?\.(\d{1,9})\.", name)), default=-1) + 1
        for names in (expected, state)
    )
    if asked == found:
        return ""
    return f"it holds tensors up to layer {found}, the model asks for {asked}: load the model that it belongs to"


@torch.no_grad()
def _copy(tensors: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        tensor.copy_(state[name])


def _head_of_model(
    model: SequenceClassifier, names: dict[str, Tensor], adapter: Adapter
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the parts of the head that come from the model, and the adapter's tensors without those merged into them.

    peft saves the modules of the head that modules_to_save name. It can adapt the head's linear layers as well, which
    "all-linear" does; here the head is trained whole, so W + s · B A is its weight.
    """
    family, own = family_of(model.config), {}
    state = dict(adapter.state)
    for name in [name for name in state if ".base_layer." in name and _is_in_head(name, model.config)]:
        state[name.replace(".base_layer.", ".")] = state.pop(name)  # so peft saves its bias with bias="all"
    for ours, theirs in family.head_names.items():
        part = next(module for module in family.head_modules if f".{module}." in f".{theirs}.")
        for leaf, tensor in model.head.get_submodule(ours).named_parameters():
            name = next(name for name in names if name.endswith(f".{theirs}.{leaf}"))
            if name in state or part in (adapter.content.get("modules_to_save") or []):
                continue
            if f"head.{ours}.{leaf}" in model.new_tensors:
                raise MinipeftError(
                    f"{adapter.folder}: tensor {theirs}.{leaf} of the head is neither in the adapter nor in the base "
                    f"model; save the adapter with {', '.join(family.head_modules)} in modules_to_save"
                )
            own[name] = tensor.detach().clone()
        weight = f"{PREFIX}{theirs}.weight"
        adapted = {name for name in state if f".{theirs}." in name and name not in names}
        if adapted and weight in own:
            merged = {name: state.pop(name) for name in adapted}
            own[weight] = _merge_into_head(own[weight], theirs, merged, adapter)
    if any("classifier" in name for name in own):
        logger.warning("%s holds no classification head: the model keeps its own", adapter.folder)
    return own, state


def _is_in_head(name: str, config: EncoderConfig) -> bool:
    return any(f".{theirs}." in name for theirs in family_of(config).head_names.values())


@torch.no_grad()
def _merge_into_head(weight: Tensor, path: str, state: dict[str, Tensor], adapter: Adapter) -> Tensor:
    """Return the merged weight of a linear layer of the head, whose LoRA tensors are in `state`."""
    method, peft = adapter.method, METHODS[method_name(adapter.method)].peft
    if peft is None or peft.layer is None:
        raise MinipeftError(
            f"{adapter.folder / CONFIG}: target_modules names {path}, a layer of the head, which only LoRA can adapt"
        )
    linear = Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight.float())
    rank = len(state.get(f"{PREFIX}{path}.lora_A.weight", ())) or method.rank
    alpha = read_pattern(adapter.content, "alpha_pattern", [path], method.alpha)[path]
    layer = peft.layer(linear, rank, alpha, 0.0, method.rslora, method.init)
    own = dict(layer.named_parameters())
    names = {f"{PREFIX}{path}.{peft.names.get(leaf, leaf)}": own[leaf] for leaf in own if leaf != "weight"}
    _check_tensors(names, state, adapter)
    _copy(names, state)
    return layer.merged_weight()
