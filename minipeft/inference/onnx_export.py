"""A finished run → an ONNX program with its tokenizer and labels, for services that have no torch.

    model.onnx        input_ids, attention_mask and, where the family has them, token_type_ids → logits, float32
    model_int8.onnx   the same with weights of 8 bits and inputs that are quantized as they come, but for the
                     feed-forward's second product
    config.json, tokenizer.json, tokenizer_config.json   as in a merged checkpoint

torch.export traces the model itself, over a padded batch (model/attention/padded.py), so that there is no second model
to keep equal. What merges is merged; adapters and prefixes are part of the program.
"""

import logging
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from minipeft.adapters.merging import check_export_folder, merged_copy, save_tokenizer, write_folder
from minipeft.data.batches.packing import PackedBatch
from minipeft.errors import MinipeftError
from minipeft.methods import METHODS, method_name
from minipeft.model.attention.padded import padded_batch
from minipeft.model.classifier import SequenceClassifier
from minipeft.model.config import EncoderConfig
from minipeft.model.pretrained import save_config
from minipeft.model.token_classifier import TokenClassifier

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
            raise MinipeftError(f"--format onnx: {package} is not installed. {remedy}") from None
    method = None if model.method is None else method_name(model.method)
    if method == "prompt_tuning":
        raise MinipeftError(
            "prompt_tuning: its prompt lengthens each sequence, which --format onnx does not support. "
            "Export a run of another method."
        )
    expected, differences = logits_of(model), {}

    def write(target: Path) -> None:
        save_config(model, target)
        save_tokenizer(model, target)
        _write_programs(model if method and not METHODS[method].merges else merged_copy(model), target, int8)
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


@torch.no_grad()
def _write_programs(model: SequenceClassifier, folder: Path, int8: bool) -> None:
    """Trace the model and write it; weights beyond one file's limit go to a second one."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    names = ["input_ids", "attention_mask", *(["token_type_ids"] if model.config.type_vocab_size > 1 else [])]
    batch = torch.export.Dim("batch", min=1, max=1 << 20)
    room = model.config.max_length - getattr(model.method, "num_virtual_tokens", 0)
    length = torch.export.Dim("length", min=1, max=room)
    path, large = folder / "model.onnx", sum(parameter.nbytes for parameter in model.parameters()) > LARGEST_FILE
    logging.disable(logging.WARNING)  # no user can change what the exporter and the quantizer warn of
    try:
        with warnings.catch_warnings():
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
            for node in program.model.graph.all_nodes():
                node.metadata_props.clear()  # its source line, with folders of this machine
            program.save(path, external_data=large)
            if int8:
                quantize_dynamic(
                    path,
                    folder / "model_int8.onnx",
                    per_channel=True,
                    weight_type=QuantType.QInt8,
                    nodes_to_exclude=_feed_forward_outputs(program.model.graph, model.config),
                    use_external_data_format=large,
                )
    finally:
        logging.disable(logging.NOTSET)


def _feed_forward_outputs(graph: Any, config: EncoderConfig) -> list[str]:
    """Return the products that stay in float32: GELU's outliers leave few of 8 bits to all other activations."""
    shape = (config.hidden_size, config.intermediate_size)
    shapes = {"Gemm": shape, "MatMul": shape[::-1]}  # Gemm transposes its weights
    names = [
        node.name
        for node in graph
        if node.op_type in shapes and tuple(node.inputs[1].shape or ()) == shapes[node.op_type]
    ]
    return names + [f"{name}_MatMul" for name in names]  # as the quantizer calls them after it has divided a Gemm
