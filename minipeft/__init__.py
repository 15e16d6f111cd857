"""minipeft: parameter-efficient fine-tuning of encoders, from scratch, in plain PyTorch.

The public names, imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from minipeft.version import __version__ as __version__

if TYPE_CHECKING:
    from minipeft.adapters.adapter import load_adapter as load_adapter
    from minipeft.adapters.adapter_set import AdapterSet as AdapterSet
    from minipeft.adapters.merging import export as export
    from minipeft.adapters.merging import merge as merge
    from minipeft.adapters.merging import unmerge as unmerge
    from minipeft.adapters.save import save_adapter as save_adapter
    from minipeft.data.batches.packing import PackedBatch as PackedBatch
    from minipeft.data.batches.packing import pack as pack
    from minipeft.data.tokens.tokenizer import Tokenizer as Tokenizer
    from minipeft.data.tokens.tokenizer import load_tokenizer as load_tokenizer
    from minipeft.errors import MinipeftError as MinipeftError
    from minipeft.inference.estimator import Classifier as Classifier
    from minipeft.inference.estimator import Regressor as Regressor
    from minipeft.inference.predict import load_run as load_run
    from minipeft.methods import apply as apply
    from minipeft.methods import count_parameters as count_parameters
    from minipeft.methods.bitfit import BitFit as BitFit
    from minipeft.methods.bottleneck import Houlsby as Houlsby
    from minipeft.methods.bottleneck import Pfeiffer as Pfeiffer
    from minipeft.methods.full import Full as Full
    from minipeft.methods.head import Head as Head
    from minipeft.methods.ia3 import IA3 as IA3
    from minipeft.methods.layer_norm import LayerNormTuning as LayerNormTuning
    from minipeft.methods.lora import LoRA as LoRA
    from minipeft.methods.lora import LoRALinear as LoRALinear
    from minipeft.methods.lora_variants.adalora import AdaLoRA as AdaLoRA
    from minipeft.methods.lora_variants.dora import DoRA as DoRA
    from minipeft.methods.lora_variants.vera import VeRA as VeRA
    from minipeft.methods.virtual_tokens import PrefixTuning as PrefixTuning
    from minipeft.methods.virtual_tokens import PromptTuning as PromptTuning
    from minipeft.model.classifier import SequenceClassifier as SequenceClassifier
    from minipeft.model.config import EncoderConfig as EncoderConfig
    from minipeft.model.pretrained import load_pretrained as load_pretrained
    from minipeft.model.token_classifier import TokenClassifier as TokenClassifier
    from minipeft.training.result import Result as Result
    from minipeft.training.run import train as train

_HOMES = {
    "minipeft.adapters.adapter": ("load_adapter",),
    "minipeft.adapters.save": ("save_adapter",),
    "minipeft.adapters.adapter_set": ("AdapterSet",),
    "minipeft.data.batches.packing": ("PackedBatch", "pack"),
    "minipeft.data.tokens.tokenizer": ("Tokenizer", "load_tokenizer"),
    "minipeft.errors": ("MinipeftError",),
    "minipeft.adapters.merging": ("export", "merge", "unmerge"),
    "minipeft.methods": ("apply", "count_parameters"),
    "minipeft.methods.lora_variants.adalora": ("AdaLoRA",),
    "minipeft.methods.bitfit": ("BitFit",),
    "minipeft.methods.lora_variants.dora": ("DoRA",),
    "minipeft.methods.bottleneck": ("Houlsby", "Pfeiffer"),
    "minipeft.methods.full": ("Full",),
    "minipeft.methods.head": ("Head",),
    "minipeft.methods.ia3": ("IA3",),
    "minipeft.methods.layer_norm": ("LayerNormTuning",),
    "minipeft.methods.lora": ("LoRA", "LoRALinear"),
    "minipeft.methods.lora_variants.vera": ("VeRA",),
    "minipeft.methods.virtual_tokens": ("PrefixTuning", "PromptTuning"),
    "minipeft.model.pretrained": ("load_pretrained",),
    "minipeft.model.config": ("EncoderConfig",),
    "minipeft.model.classifier": ("SequenceClassifier",),
    "minipeft.model.token_classifier": ("TokenClassifier",),
    "minipeft.inference.estimator": ("Classifier", "Regressor"),
    "minipeft.inference.predict": ("load_run",),
    "minipeft.training.result": ("Result",),
    "minipeft.training.run": ("train",),
}
__all__ = sorted(name for names in _HOMES.values() for name in names)


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'minipeft' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
