"""minipeft: parameter-efficient fine-tuning of encoders, from scratch, in plain PyTorch.

The public names, imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from minipeft.version import __version__ as __version__

if TYPE_CHECKING:
    from minipeft.adapters.adapter import load_adapter
    from minipeft.adapters.adapter_set import AdapterSet
    from minipeft.adapters.merging import export, merge, unmerge
    from minipeft.adapters.save import save_adapter
    from minipeft.data.batches.packing import PackedBatch, pack
    from minipeft.data.tokens.tokenizer import Tokenizer, load_tokenizer
    from minipeft.errors import MinipeftError
    from minipeft.inference.estimator import Classifier
    from minipeft.inference.predict import load_run
    from minipeft.methods import apply, count_parameters
    from minipeft.methods.adalora import AdaLoRA
    from minipeft.methods.bitfit import BitFit
    from minipeft.methods.bottleneck import Houlsby, Pfeiffer
    from minipeft.methods.dora import DoRA
    from minipeft.methods.full import Full
    from minipeft.methods.head import Head
    from minipeft.methods.ia3 import IA3
    from minipeft.methods.layer_norm import LayerNormTuning
    from minipeft.methods.lora import LoRA, LoRALinear
    from minipeft.methods.prefix_tuning import PrefixTuning
    from minipeft.methods.prompt_tuning import PromptTuning
    from minipeft.methods.vera import VeRA
    from minipeft.model.classifier import SequenceClassifier
    from minipeft.model.config import EncoderConfig
    from minipeft.model.pretrained import load_pretrained
    from minipeft.model.token_classifier import TokenClassifier
    from minipeft.training.result import Result
    from minipeft.training.run import train

_HOMES = {
    "minipeft.adapters.adapter": ("load_adapter",),
    "minipeft.adapters.save": ("save_adapter",),
    "minipeft.adapters.adapter_set": ("AdapterSet",),
    "minipeft.data.batches.packing": ("PackedBatch", "pack"),
    "minipeft.data.tokens.tokenizer": ("Tokenizer", "load_tokenizer"),
    "minipeft.errors": ("MinipeftError",),
    "minipeft.adapters.merging": ("export", "merge", "unmerge"),
    "minipeft.methods": ("apply", "count_parameters"),
    "minipeft.methods.adalora": ("AdaLoRA",),
    "minipeft.methods.bitfit": ("BitFit",),
    "minipeft.methods.dora": ("DoRA",),
    "minipeft.methods.bottleneck": ("Houlsby", "Pfeiffer"),
    "minipeft.methods.full": ("Full",),
    "minipeft.methods.head": ("Head",),
    "minipeft.methods.ia3": ("IA3",),
    "minipeft.methods.layer_norm": ("LayerNormTuning",),
    "minipeft.methods.lora": ("LoRA", "LoRALinear"),
    "minipeft.methods.prefix_tuning": ("PrefixTuning",),
    "minipeft.methods.prompt_tuning": ("PromptTuning",),
    "minipeft.methods.vera": ("VeRA",),
    "minipeft.model.pretrained": ("load_pretrained",),
    "minipeft.model.config": ("EncoderConfig",),
    "minipeft.model.classifier": ("SequenceClassifier",),
    "minipeft.model.token_classifier": ("TokenClassifier",),
    "minipeft.inference.estimator": ("Classifier",),
    "minipeft.inference.predict": ("load_run",),
    "minipeft.training.result": ("Result",),
    "minipeft.training.run": ("train",),
}
__all__ = [
    "IA3",
    "AdaLoRA",
    "AdapterSet",
    "BitFit",
    "Classifier",
    "DoRA",
    "EncoderConfig",
    "Full",
    "Head",
    "Houlsby",
    "LayerNormTuning",
    "LoRA",
    "LoRALinear",
    "MinipeftError",
    "PackedBatch",
    "Pfeiffer",
    "PrefixTuning",
    "PromptTuning",
    "Result",
    "SequenceClassifier",
    "TokenClassifier",
    "Tokenizer",
    "VeRA",
    "apply",
    "count_parameters",
    "export",
    "load_adapter",
    "load_pretrained",
    "load_run",
    "load_tokenizer",
    "merge",
    "pack",
    "save_adapter",
    "train",
    "unmerge",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'minipeft' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
