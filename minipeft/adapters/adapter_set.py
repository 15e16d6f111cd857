"""Several LoRA adapters on one base: switch, disable, average, or one batch in which each sequence names its own."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minipeft.adapters.adapter import install_adapter
from minipeft.adapters.adapter_file import read_adapter
from minipeft.adapters.save import CONFIG
from minipeft.data.batches.packing import PackedBatch
from minipeft.errors import MinipeftError, check_float
from minipeft.files import user_path
from minipeft.methods.adapted import target_modules_of
from minipeft.methods.lora import LoRA, LoRALinear
from minipeft.model.classifier import SequenceClassifier
from minipeft.model.config import generic_labels
from minipeft.model.families import family_of
from minipeft.model.layers import Linear
from minipeft.problems import problem_row


@dataclass
class AdapterAssignment:
    """Which adapter each row belongs to, as runs of neighbours: (name, sequences, tokens); None is the base alone."""

    runs: tuple[tuple[str | None, int, int], ...] = ()

    def rows(self, count: int) -> list[tuple[str | None, int, int]]:
        """(adapter, first row, last + 1) for a layer that sees `count` rows: every token, or one a sequence."""
        names, sequences, tokens = zip(*self.runs, strict=True)
        sizes = tokens if count == sum(tokens) else sequences
        if len(names) == 1:  # every row, DeBERTa's relative positions included
            sizes = (count,)
        ends = list(accumulate(sizes))
        return list(zip(names, [0, *ends], ends, strict=False))


class GroupedLoRALinear(Linear):
    """y = x Wᵀ + b, and to the rows of adapter i the product s_i · x A_iᵀ B_iᵀ    (Hu et al. 2021, equation 3)

    x: (rows, in_features) → (rows, out_features); an adapter that leaves the layer as it is has no A and B here.
    """

    def __init__(self, frozen: Linear, assignment: AdapterAssignment) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = frozen.in_features, frozen.out_features
        self.weight, self.bias = frozen.weight, frozen.bias
        self.assignment = assignment
        self.lora_A, self.lora_B = nn.ParameterDict(), nn.ParameterDict()  # B carries the scaling

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        for name, start, stop in self.assignment.rows(len(x)):
            if name is not None and name in self.lora_A:
                low = x[start:stop] @ self.lora_A[name].to(x.dtype).T  # (rows of the adapter, rank)
                y[start:stop].addmm_(low, self.lora_B[name].to(x.dtype).T)
        return y


class AdapterSet(nn.Module):
    """Several LoRA adapters, each with its own head, on the frozen weights of one model, for prediction.

    Sequences of adapter i go through W x + b + s_i · B_i A_i x    (Hu et al. 2021, equation 3).

    Args:
        model: A SequenceClassifier without a method; the set takes it over.

        adapters = AdapterSet(load_pretrained("roberta-base"))
        adapters.load("rte", "runs/rte/adapter")
        adapters.load("sst2", "runs/sst2/adapter")
        adapters(batch, ["rte", "sst2", None])      # each sequence by its own; None: the base and its own head
        adapters.switch("rte")
        adapters(batch)                             # all by one

    Raises:
        MinipeftError: for a model that has a method, and for a TokenClassifier.
    """

    def __init__(self, model: SequenceClassifier) -> None:
        super().__init__()
        if problem_row(model.config.problem_type, model.config.num_labels).per_token:
            raise MinipeftError("AdapterSet: the model classifies tokens. Pass a classifier of sequences")
        if model.method is not None:
            raise MinipeftError(f"the model already has {model.method!r}; give the set a model without a method")
        self.model = model.eval().requires_grad_(False)
        self.heads = nn.ModuleDict()
        self.labels: dict[str, list[str]] = {}
        self.active: str | None = None
        self._assignment = AdapterAssignment()
        self._layers = {
            place.path: GroupedLoRALinear(place.linear, self._assignment)
            for place in target_modules_of(model, family_of(model.config).linears)
        }
        for path, grouped in self._layers.items():
            model.encoder.set_submodule(path, grouped)

    def load(self, name: str, folder: str | Path) -> None:
        """Add the LoRA adapter in `folder` under `name`.

        Raises:
            MinipeftError: as load_adapter does, for another method than LoRA, and for a name that is taken.
        """
        self._check_new(name)
        folder = user_path(folder)
        adapter, own = read_adapter(folder, self.model.config), self.model
        method, config = adapter.method, own.config
        if problem_row(adapter.problem_type).per_token:
            raise MinipeftError(f"{folder}: the adapter classifies tokens. Load one that classifies sequences")
        if type(method) is not LoRA or method.bias != "none" or method.modules_to_save:
            raise MinipeftError(f"{folder / CONFIG}: an AdapterSet takes LoRA of A and B alone, not {method!r}")
        state = {key: tensor for key, tensor in own.state_dict(keep_vars=True).items() if ".lora_" not in key}
        state |= {f"head.{key}": tensor.clone() for key, tensor in own.head.state_dict().items()}
        new_tensors = own.new_tensors
        if adapter.num_labels not in (None, config.num_labels):
            config = config.with_labels(adapter.details.get("labels") or generic_labels(adapter.num_labels))
            new_output = family_of(config).head(config).get_submodule("out_proj").state_dict()
            output = {f"head.out_proj.{key}": tensor for key, tensor in new_output.items()}
            state, new_tensors = state | output, (*new_tensors, *output)
        with torch.device("meta"):
            model = SequenceClassifier(config).eval()  # it gets the set's own tensors, so that it takes no memory
        model.load_state_dict(state, assign=True)
        model.new_tensors = new_tensors
        install_adapter(model, adapter)
        for path, grouped in self._layers.items():
            lora = model.encoder.get_submodule(path)
            if isinstance(lora, LoRALinear):
                a, b = _difference(lora, grouped)
                grouped.lora_A[name], grouped.lora_B[name] = _frozen(a), _frozen(b)
        self.heads[name] = model.head.to(own.encoder.word_embeddings.weight.device).requires_grad_(False)
        self.labels[name] = list(model.config.id2label.values())

    def average(self, name: str, weights: dict[str, float]) -> None:
        """Add under `name` the sum of adapters times their weights: Σ w_i · s_i · B_i A_i, and the heads likewise.

        Args:
            weights: A loaded adapter's name → its w_i.

        Raises:
            MinipeftError: for an unknown or taken name, a weight that is not a finite number, and adapters whose labels
                differ.
        """
        self._check_new(name)
        if not weights:
            raise MinipeftError("no weights; give some adapters theirs")
        for part, weight in weights.items():
            self._check_known(part)
            check_float(f"weight of {part!r}", weight)
            if self.labels[part] != self.labels[next(iter(weights))]:
                raise MinipeftError(f"{part!r} has the labels {', '.join(self.labels[part])}, the first one others")
        for layer in self._layers.values():
            parts = [part for part in weights if part in layer.lora_A]
            if parts:
                layer.lora_A[name] = _frozen(torch.cat([layer.lora_A[part] for part in parts]))
                layer.lora_B[name] = _frozen(torch.cat([weights[part] * layer.lora_B[part] for part in parts], dim=1))
        head = copy.deepcopy(self.heads[next(iter(weights))])
        states = [(weight, self.heads[part].state_dict()) for part, weight in weights.items()]
        head.load_state_dict({key: sum(weight * state[key] for weight, state in states) for key in states[0][1]})
        self.heads[name], self.labels[name] = head, self.labels[next(iter(weights))]

    def switch(self, name: str | None) -> None:
        """Let every sequence go through the adapter `name` from now on; None disables them all.

        Raises:
            MinipeftError: for a name that is not loaded.
        """
        if name is not None:
            self._check_known(name)
        self.active = name

    @torch.inference_mode()
    def forward(self, batch: PackedBatch, adapters: Sequence[str | None] | None = None) -> Tensor:
        """Logits (num_sequences, most labels of an adapter in it), float32, in the batch's order.

        Where an adapter has fewer labels than another, its sequences have -inf in the columns beyond.

        Args:
            batch: The packed sequences.
            adapters: One name per sequence, None for the base; by default the one that `switch` chose.

        Raises:
            MinipeftError: for a name that is not loaded, and for another number of names than sequences.
        """
        names = [self.active] * len(batch) if adapters is None else list(adapters)
        if len(names) != len(batch):
            raise MinipeftError(f"{len(names)} adapters for {len(batch)} sequences; name one a sequence")
        for name in {name for name in names if name is not None}:
            self._check_known(name)
        order = sorted(range(len(batch)), key=lambda i: names[i] or "")
        runs = []
        for name, members in groupby(order, key=lambda i: names[i]):
            of_name = list(members)
            runs.append((name, len(of_name), sum(batch.lengths[i] for i in of_name)))
        hidden = self._pooled(reorder(batch, order), runs)  # (num_sequences, hidden_size)
        heads = [self.model.head if name is None else self.heads[name] for name, _, _ in runs]
        outputs = [head(part) for head, part in zip(heads, hidden.split([count for _, count, _ in runs]), strict=True)]
        width = max(output.shape[1] for output in outputs)
        logits = torch.empty(len(batch), width, device=hidden.device)
        sorted_logits = torch.cat([F.pad(output, (0, width - output.shape[1]), value=-torch.inf) for output in outputs])
        logits[torch.tensor(order, device=hidden.device)] = sorted_logits
        return logits

    def _pooled(self, batch: PackedBatch, runs: list[tuple[str | None, int, int]]) -> Tensor:
        """Return what the heads read, (num_sequences, hidden_size), for sequences in the order of `runs`."""
        if len(runs) > 1 and "relative_embeddings" in family_of(self.model.config).names:
            # All sequences of a batch share DeBERTa's projections of relative positions, which the adapters change.
            ends = list(accumulate(count for _, count, _ in runs))
            members = [range(end - run[1], end) for end, run in zip(ends, runs, strict=True)]
            parts = [self._pooled(reorder(batch, part), [run]) for part, run in zip(members, runs, strict=True)]
            return torch.cat(parts)
        self._assignment.runs = tuple(runs)
        return self.model.encoder.pooled(batch)

    def _check_new(self, name: str) -> None:
        if name in self.heads or not name or "." in name:
            taken = ", ".join(self.heads) or "none so far"
            raise MinipeftError(f"adapter name {name!r} is taken, empty or has a dot in it; taken: {taken}")
        if any(hasattr(part, name) for part in (self.heads, nn.ParameterDict())):  # what holds the adapters
            raise MinipeftError(f"adapter name {name!r} is a reserved name of torch's. Choose another name")

    def _check_known(self, name: str) -> None:
        if name not in self.heads:
            raise MinipeftError(f"no adapter {name!r}; loaded: {', '.join(self.heads) or 'none'}")


def reorder(batch: PackedBatch, order: Sequence[int]) -> PackedBatch:
    """Return the batch with its sequences in another order."""
    starts = torch.tensor([0, *batch.lengths]).cumsum(0)
    lengths = tuple(batch.lengths[sequence] for sequence in order)
    tokens = torch.cat([torch.arange(batch.lengths[sequence]) + starts[sequence] for sequence in order])
    tokens, sequences = tokens.to(batch.input_ids.device), torch.tensor(order, device=batch.input_ids.device)
    return PackedBatch(
        batch.input_ids[tokens],
        batch.position_ids[tokens],
        None if batch.token_type_ids is None else batch.token_type_ids[tokens],
        torch.tensor([0, *lengths]).cumsum(0).to(batch.cu_seqlens),
        batch.max_seqlen,
        lengths,
        None if batch.labels is None else batch.labels[sequences],
        None if batch.weights is None else batch.weights[sequences],
    )


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.detach().clone(), requires_grad=False)


def _difference(lora: LoRALinear, frozen: Linear) -> tuple[Tensor, Tensor]:
    """A and s · B of what an adapter adds to the frozen weight; pissa has taken a part out of it, of the same rank."""
    a, b = lora.lora_A.detach(), lora.scaling * lora.lora_B.detach()
    if lora.weight is frozen.weight:
        return a, b
    u, sigma, v = torch.linalg.svd(frozen.weight.float() - lora.weight.float(), full_matrices=False)
    rank = len(a)
    return torch.cat([a, v[:rank]]), torch.cat([b, -u[:, :rank] * sigma[:rank]], dim=1)
