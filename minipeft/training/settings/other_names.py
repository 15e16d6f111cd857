"""What other programs call our settings, for the error that names the setting that was probably meant."""

from collections.abc import Iterable

from minipeft.errors import nearest
from minipeft.methods import PEFT_OPTIONS

# The Trainer's, peft's and run_glue.py's names → ours.
OTHER_NAMES = {
    "learning_rate": "lr",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "train_batch_size": "batch_size",
    "gradient_accumulation_steps": "grad_accum",
    "gradient_checkpointing": "activation_checkpointing",
    "metric_for_best_model": "select_by",
    "resume_from_checkpoint": "resume",
    "max_seq_length": "max_length",
    "max_train_samples": "train_limit",
    "max_eval_samples": "eval_limit",
    "model_name_or_path": "model",
    "model_name": "model",
    "task_name": "task",
    "dataset": "data",
    "dataset_name": "data",
    "train_file": "data",
    "validation_file": "validation",
    "output_dir": "output",
    "torch_compile": "compile",
    "lora_r": "rank",
    "layers_to_transform": "train_layers",
    **PEFT_OPTIONS,
}


def nearest_setting(name: str, known: Iterable[str]) -> str:
    """Return a question that names the setting or flag that was probably meant, or "" where none is similar."""
    choices = list(known)
    dashes = "--" if name.startswith("-") else ""
    name = name.partition("=")[0].lstrip("-").replace("-", "_")
    if dashes:
        choices = [flag[2:] for flag in choices if flag.startswith("--")]
        name = OTHER_NAMES.get(name, name).replace("_", "-")
        return nearest(name, choices).replace("mean ", "mean --")
    return nearest(OTHER_NAMES.get(name, name), choices)
