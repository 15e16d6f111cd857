"""Base of the methods that change linear layers: names of the layers, merging into the frozen weights, and casts.

Casts: low-rank factors A and B are trained in float32 and used in the encoder's dtype, B times the scaling. In 12
layers with two targets, that would be about 200 small operations of a training step, forward and backward. A GPU
computes each of them faster than Python asks for it. `SharedCasts` stacks the factors of all layers: 12 operations.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from minipeft.errors import MinipeftError, check_choice
from minipeft.model.classifier import SequenceClassifier
from minipeft.model.families import FAMILIES, LINEAR_NAMES, family_of, get_family
from minipeft.model.layers import Linear

ALL = "all"  # every linear layer of the encoder's layers


class AdaptedLinear(Linear):
    """A linear layer with the weight and bias of a frozen one, y = x Wᵀ + b, to which a subclass adds its method.

    A method that can be merged overrides `merged_weight`, and `merged_bias` if it changes the bias too.
    """

    def __init__(self, frozen: Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = frozen.in_features, frozen.out_features
        self.weight, self.bias = frozen.weight, frozen.bias
        self.unmerged: tuple[Tensor, Tensor | None] | None = None  # the frozen weight and bias, while merged

    def merged_weight(self) -> Tensor:
        """Return the weight (out_features, in_features), float32, of a plain linear layer that computes the same."""
        raise NotImplementedError

    def merged_bias(self) -> Tensor | None:
        """Return the bias (out_features,), float32, of that linear layer."""
        return None if self.bias is None else self.bias.float()

    def is_merged(self) -> bool:
        """Whether the weight contains the method; training a merged layer raises MinipeftError."""
        if self.unmerged is not None and self.training and torch.is_grad_enabled():
            raise MinipeftError("the adapter is merged, so it cannot train; call minipeft.unmerge first")
        return self.unmerged is not None

    @torch.no_grad()
    def merge(self) -> None:
        """Add the method to the weight, in float32, and keep a copy of the frozen weight and bias."""
        if self.unmerged is None:
            weight, bias = self.merged_weight(), self.merged_bias()
            self.unmerged = self.weight.detach().clone(), None if bias is None else self.bias.detach().clone()
            self.weight.copy_(weight)
            if bias is not None:
                self.bias.copy_(bias)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Restore the frozen weight and bias, bit for bit."""
        if self.unmerged is not None:
            weight, bias = self.unmerged
            self.weight.copy_(weight)
            if bias is not None:
                self.bias.copy_(bias)
            self.unmerged = None


def check_targets(name: str, targets: Any) -> tuple[str, ...]:
    """Return names of linear layers as a tuple of our names; peft's names, "query,value" and "all" are accepted."""
    targets = (targets,) if isinstance(targets, str) else targets
    if not isinstance(targets, (tuple, list)):
        raise MinipeftError(f"{name} {targets!r} is not a list of names; name some of {', '.join(LINEAR_NAMES)}")
    names = [name for target in targets for name in str(target).split(",")]
    if names == [ALL]:
        return (ALL,)
    if not set(names) <= set(LINEAR_NAMES):
        from minipeft.methods.peft_format.reading import linear_name

        names = [linear_name(name) for name in names]
    if not names:
        raise MinipeftError(f"no targets; name some of {', '.join(LINEAR_NAMES)}")
    return tuple(dict.fromkeys(names))


def targets_of(model: SequenceClassifier, targets: tuple[str, ...]) -> tuple[str, ...]:
    """Return `targets` under the names that the model's family has for them, each once.

    Raises:
        MinipeftError: for a linear layer that the family lacks.
    """
    family = family_of(model.config)
    if targets == (ALL,):
        return tuple(family.linears)
    names = tuple(dict.fromkeys(family.aliases.get(target, target) for target in targets))
    for name in names:
        check_choice(f"target of a {model.config.model_type} encoder:", name, (*family.linears, ALL))
    return names


class TargetModule(NamedTuple):
    """A linear layer of the encoder.

    Attributes:
        layer: Number of its layer, from 0.
        target: Its name.
        path: Its path in our encoder: "layers.0.query".
        linear: The module, to be replaced by model.encoder.set_submodule(path, ...).
    """

    layer: int
    target: str
    path: str
    linear: Linear


def target_modules_of(model: SequenceClassifier, targets: Collection[str]) -> list[TargetModule]:
    """Return the linear layers that `targets` name, of all layers that may train."""
    modules = []
    for (layer, target), (path, _) in family_of(model.config).linear_paths(model.config).items():
        if target in targets and model.encoder.may_train(path):
            linear = model.encoder.get_submodule(path)
            assert isinstance(linear, Linear)
            modules.append(TargetModule(layer, target, path, linear))
    if not modules:
        raise MinipeftError(f"targets: {', '.join(targets)} are below the layers that train. Leave out train_layers.")
    return modules


def check_rank(rank: int, module: TargetModule) -> None:
    """Raise for a rank above the smaller dimension of a linear layer, which would only add parameters."""
    if rank > (most := min(module.linear.in_features, module.linear.out_features)):
        raise MinipeftError(
            f"rank {rank} of {module.target} is above {most}, the smaller dimension of that layer. "
            f"Choose a rank from 1 to {most}"
        )


def check_modules(name: str, modules: Any) -> tuple[str, ...]:
    """Return modules_to_save as a tuple of names, without the head, which is always trained."""
    modules = (modules,) if isinstance(modules, str) else modules or ()
    if not isinstance(modules, (tuple, list)) or not all(isinstance(module, str) for module in modules):
        raise MinipeftError(f"{name} {modules!r} is not a list of names; LayerNorm is one")
    if not modules:
        return ()
    # "score" and "pooler" are peft's names for the heads of other models.
    heads = {"score", "pooler"}.union(*(get_family(model_type).head_modules for model_type in FAMILIES))
    return tuple(dict.fromkeys(module for module in modules if module not in heads))


def train_modules(model: SequenceClassifier, modules: tuple[str, ...], adapted: Collection[str]) -> None:
    """Make whole modules of the encoder trainable.

    Args:
        model: The model.
        modules: Paths of modules in transformers, or ends of such paths.
        adapted: Paths of linear layers in our encoder ("layers.0.query") that the method is about to change.

    Raises:
        MinipeftError: before anything is changed, for a name that fits no module or fits one of `adapted`.
    """
    found = []
    paths = family_of(model.config).encoder_paths(model.config)
    for suffix in modules:
        names = [ours for ours, theirs in paths.items() if f".{theirs}".endswith(f".{suffix}")]
        if not names:
            raise MinipeftError(
                f"modules_to_save names {suffix!r}, which is not a module of the encoder; LayerNorm is one"
            )
        for name in names:
            if name in adapted:
                raise MinipeftError(f"modules_to_save names {suffix!r}: {name} is a target too; name it once")
        found += names
    for name in found:
        model.encoder.get_submodule(name).requires_grad_(True)


def train_biases(model: SequenceClassifier, bias: str) -> None:
    """Unfreeze biases: "all" of the encoder, or only those of the adapted layers ("lora_only", "vera_only")."""
    for name, parameter in model.encoder.named_parameters() if bias == "all" else ():
        if name.endswith(".bias"):
            parameter.requires_grad_(True)
    for layer in adapted_layers(model) if bias.endswith("_only") else ():
        if layer.bias is not None:
            layer.bias.requires_grad_(True)


def adapted_layers(model: SequenceClassifier) -> list[AdaptedLinear]:
    """Return the linear layers that a method has changed."""
    return [part for part in model.modules() if isinstance(part, AdaptedLinear)]


# A (rank, in_features) and s · Bᵀ (rank, out_features) of a layer, in the dtype of its input.
Factors = tuple[Tensor, Tensor]


def cast_factors(layers: Sequence[Any], dtype: torch.dtype) -> list[Factors]:
    """Return the factors of LoRALinear or AdaLoRALinear layers that have one shape and one scaling."""
    a = layers[0].stack_a(layers).to(dtype)  # (layers, rank, in_features)
    b = torch.stack([layer.lora_B for layer in layers]) * layers[0].scaling  # (layers, out_features, rank)
    b = _Transpose.apply(b).to(dtype)  # type: ignore[no-untyped-call]
    return list(zip(a.unbind(), b.unbind(), strict=True))


class _Transpose(torch.autograd.Function):
    """The transpose of each matrix, in contiguous memory, and so is its gradient.

    Over a view of B, the product for the gradient of B would be the slowest of the layer on the CPU. A gradient that is
    a view would be copied again for each parameter.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.transpose(1, 2).contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0].transpose(1, 2).contiguous()


class SharedCasts:
    """Casts the factors of layers together, for the time of a forward pass."""

    def __init__(self, layers: Sequence[Any]) -> None:
        groups: dict[Any, list[Any]] = {}
        for layer in layers:
            groups.setdefault((layer.lora_A.shape, layer.lora_B.shape, layer.scaling), []).append(layer)
        self.groups = list(groups.values())

    @contextmanager
    def cast(self, dtype: torch.dtype) -> Iterator[None]:
        """Give each layer its factors while the block runs; a merged layer needs none."""
        for group in self.groups:
            layers = [layer for layer in group if layer.unmerged is None]
            for layer, factors in zip(layers, cast_factors(layers, dtype) if layers else (), strict=True):
                layer.shared_factors = factors
        try:
            yield
        finally:
            for group in self.groups:
                for layer in group:
                    layer.shared_factors = None
