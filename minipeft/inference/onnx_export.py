"""A finished run → an ONNX program with its tokenizer and labels, for services that have no torch.

    model.onnx        input_ids, attention_mask and, where the family has them, token_type_ids → logits, float32
    model_int8.onnx   the same with weights of 8 bits and inputs that are quantized as they come, but for values and
                     the feed-forward's second product; channels are scaled first, so that they need fewer bits
    config.json, tokenizer.json, tokenizer_config.json   as in a merged checkpoint

torch.export traces the model itself, over a padded batch (model/attention/padded.py), so that there is no second model
to keep equal. What merges is merged; adapters and prefixes are part of the program.
"""

import copy
import logging
import re
import warnings
from collections import defaultdict
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from minipeft.adapters.merging import check_export_folder, merged_copy, save_tokenizer, write_folder
from minipeft.data.batches.packing import PackedBatch
from minipeft.errors import MinipeftError
from minipeft.methods import METHODS, method_name
from minipeft.model.attention.padded import padded_batch
from minipeft.model.classifier import SequenceClassifier
from minipeft.model.saved_checkpoint import save_config
from minipeft.model.token_classifier import TokenClassifier

SCOPES = "pkg.torch.onnx.name_scopes"  # the modules that a node of the graph was traced from
# Products of model_int8.onnx that stay in float32: GELU's outliers leave few of 8 bits to all other activations, and
# of the other layers the values lose most.
FLOAT32_LAYERS = r"\.(value|ffn_output)\b"
LARGEST_FILE = 2_000_000_000  # bytes of weights in one file; protobuf ends at 2 GiB


def export_onnx(
    model: SequenceClassifier, logits_of: Callable[[SequenceClassifier], Tensor], folder: Path, int8: bool
) -> dict[str, float]:
    """Write the ONNX program of a model, which does not change; see `LoadedRun.export_onnx`.

    Args:
        model: The model, on the CPU in float32.
        logits_of: Returns the logits of a model on some examples.
        folder: A new or empty folder.
        int8: Whether to write model_int8.onnx too.

    Returns:
        "largest_logit_difference" of model.onnx; with `int8` also "int8_largest_logit_difference".

    Raises:
        MinipeftError: for a folder that is not empty, a method that has no ONNX program, and a missing package.
    """
    check_export_folder(folder)
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            import_module(package)
        except ImportError:
            remedy = "Run pip install 'minipeft[onnx]'."
            raise MinipeftError(f"ONNX: {package} is not installed. {remedy}") from None
    method = None if model.method is None else method_name(model.method)
    if method == "prompt_tuning":
        raise MinipeftError(
            "prompt_tuning: its prompt lengthens each sequence, which the ONNX program does not support. "
            "Export a run of another method."
        )
    expected, differences = logits_of(model), {}

    def write(target: Path) -> None:
        save_config(model, target)
        save_tokenizer(model, target)
        exported = copy.deepcopy(model) if method and not METHODS[method].merges else merged_copy(model)
        _write_program(exported, target / "model.onnx")
        if int8:
            _scale_channels(exported, logits_of)
            encoder = exported.encoder
            encoder.word_embeddings = Int8Embedding(encoder.word_embeddings.weight)  # type: ignore[assignment]
            _write_program(exported, target / "model_int8.onnx", int8=True)
        for file, prefix in (("model.onnx", ""), ("model_int8.onnx", "int8_")):
            if (target / file).exists():
                logits = logits_of(OnnxClassifier(target / file, model))
                differences[f"{prefix}largest_logit_difference"] = float((logits - expected).abs().max())

    write_folder(folder, write)
    return differences


class PaddedClassifier(nn.Module):
    """A classifier that takes (batch, length) token ids: the program that is traced."""

    def __init__(self, model: SequenceClassifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Return the logits (batch, num_labels), or (batch, length, num_labels) of a TokenClassifier."""
        logits = self.model(padded_batch(input_ids, attention_mask, token_type_ids, self.model.config))
        return logits.unflatten(0, input_ids.shape) if isinstance(self.model, TokenClassifier) else logits


class OnnxClassifier(SequenceClassifier):
    """An ONNX program in ONNX Runtime that takes packed batches, as the model does that it was exported from."""

    def __init__(self, path: Path, model: SequenceClassifier) -> None:
        import onnxruntime

        nn.Module.__init__(self)
        self.config, self.per_token = model.config, isinstance(model, TokenClassifier)
        self.no_weights = nn.Parameter(torch.empty(0))  # whose device is that of the batches
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def forward(self, batch: PackedBatch) -> Tensor:
        """Return the logits of a packed batch, as the model does."""
        types = torch.zeros_like(batch.input_ids) if batch.token_type_ids is None else batch.token_type_ids
        columns = {"input_ids": batch.input_ids, "attention_mask": torch.ones_like(types), "token_type_ids": types}
        lengths = list(batch.lengths)
        padded = {name: pad_sequence(x.split(lengths), batch_first=True).numpy() for name, x in columns.items()}
        inputs = {one.name: padded[one.name] for one in self.session.get_inputs()}
        logits = torch.from_numpy(self.session.run(["logits"], inputs)[0])
        return logits[torch.from_numpy(padded["attention_mask"]).bool()] if self.per_token else logits


class Int8Embedding(nn.Module):
    """An embedding of 8 bits with a factor per row; ONNX Runtime's quantizer has one factor for the whole table."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        scale = weight.detach().abs().amax(1, keepdim=True).clamp_min(1e-12) / 127  # (vocab_size, 1)
        self.register_buffer("scale", scale)
        self.register_buffer("weight", (weight.detach() / scale).round().to(torch.int8))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the rows of token ids, float32."""
        return self.get_buffer("weight")[input_ids] * self.get_buffer("scale")[input_ids]


@torch.no_grad()
def _scale_channels(model: SequenceClassifier, logits_of: Callable[[SequenceClassifier], Tensor]) -> None:
    """Divide the inputs of linear layers by a factor per channel, and multiply the weights by it: an equal function.

    A few channels of LayerNorm's output are far larger than the others, which are left few of the 8 bits that all of
    them share. The factor is max |x| ** 0.6 / max |W| ** 0.4, over the texts of `logits_of`.

    Reference: Xiao et al. 2023 (SmoothQuant), equation 4 with alpha 0.6.
    """
    groups: dict[str, list[nn.Linear]] = defaultdict(list)
    largest: dict[nn.Module, Tensor] = {}
    for name, part in model.encoder.layers.named_modules():
        if isinstance(part, nn.Linear) and part.in_features == model.config.hidden_size:
            parent, _, last = name.rpartition(".")
            groups[parent if last in ("query", "key", "value") else name].append(part)  # these read the same input
            largest[part] = part.weight.new_zeros(part.in_features)

    def record(part: nn.Module, inputs: tuple[Tensor]) -> None:
        largest[part] = torch.maximum(largest[part], inputs[0].abs().flatten(0, -2).amax(0))

    handles = [part.register_forward_pre_hook(record) for part in largest]
    logits_of(model)
    for handle in handles:
        handle.remove()
    for parts in groups.values():
        inputs = torch.stack([largest[part] for part in parts]).amax(0)
        weights = torch.cat([part.weight for part in parts]).abs().amax(0)
        scale = inputs.clamp_min(1e-5) ** 0.6 / weights.clamp_min(1e-5) ** 0.4
        for part in parts:
            part.weight = nn.Parameter(part.weight * scale)
            part.register_forward_pre_hook(lambda _, inputs, inverse=1 / scale: inputs[0] * inverse)


@torch.no_grad()
def _write_program(model: SequenceClassifier, path: Path, int8: bool = False) -> None:
    """Trace the model and write it; weights beyond one file's limit go to a second one."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    names = ["input_ids", "attention_mask", *(["token_type_ids"] if model.config.type_vocab_size > 1 else [])]
    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    room = model.config.max_length - getattr(model.method, "num_virtual_tokens", 0)
    length = torch.export.Dim("length", min=1, max=room)
    large = sum(parameter.nbytes for parameter in model.parameters()) > LARGEST_FILE
    logging.disable(logging.WARNING)  # no user can change what the exporter and the quantizer warn of
    try:
        with warnings.catch_warnings(), TemporaryDirectory() as scratch:
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                PaddedClassifier(model).eval(),
                kwargs={name: torch.ones(2, 8, dtype=torch.int64) for name in names},  # traced for any size
                dynamo=True,
                dynamic_shapes={name: {0: batch, 1: length} for name in names},
                input_names=names,
                output_names=["logits"],
                opset_version=18,
                verbose=False,
            )
            assert program is not None
            scopes = {node.name: node.metadata_props.get(SCOPES, "") for node in program.model.graph}
            for node in program.model.graph.all_nodes():
                node.metadata_props.clear()  # its source line, with folders of this machine
            traced = Path(scratch) / path.name if int8 else path
            program.save(traced, external_data=large)
            if int8:
                quantize_dynamic(
                    traced,
                    path,
                    per_channel=True,
                    weight_type=QuantType.QInt8,
                    op_types_to_quantize=["MatMul"],
                    nodes_to_exclude=[
                        f"{name}{suffix}"
                        for name, scope in scopes.items()
                        if re.search(FLOAT32_LAYERS, scope)
                        for suffix in ("", "_MatMul")  # as the quantizer calls a Gemm that it has divided
                    ],
                    use_external_data_format=large,
                )
    finally:
        logging.disable(logging.NOTSET)
