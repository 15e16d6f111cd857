"""The registry of encoder families, and RoBERTa's row.

The rows of the other families stand in their files, with their tables of names. A file is imported when its family is
used, so that a run on RoBERTa imports no other family. `minipeft/model/__init__.py` explains what a family consists of
and how to add one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, cast

from minipeft.errors import MinipeftError, first_line, short_repr
from minipeft.files import read_json
from minipeft.model.config import EncoderConfig
from minipeft.problems import problem_row

if TYPE_CHECKING:
    from torch import nn

    from minipeft.model.roberta import Encoder

# The linear layers that a method may target in RoBERTa and in most other families.
LINEAR_NAMES = ("query", "key", "value", "output", "intermediate", "ffn_output")
# Which LayerNorm → our module in the encoder; {i} is a layer's number.
LAYER_NORMS = {
    "embeddings": "layer_norm",
    "attention": "layers.{i}.attention_layer_norm",
    "output": "layers.{i}.output_layer_norm",
}
# Our module in the encoder → transformers' path behind the family's prefix.
BERT_NAMES = {
    "word_embeddings": "embeddings.word_embeddings",
    "position_embeddings": "embeddings.position_embeddings",
    "token_type_embeddings": "embeddings.token_type_embeddings",
    "layer_norm": "embeddings.LayerNorm",
    "layers.{i}.query": "encoder.layer.{i}.attention.self.query",
    "layers.{i}.key": "encoder.layer.{i}.attention.self.key",
    "layers.{i}.value": "encoder.layer.{i}.attention.self.value",
    "layers.{i}.output": "encoder.layer.{i}.attention.output.dense",
    "layers.{i}.attention_layer_norm": "encoder.layer.{i}.attention.output.LayerNorm",
    "layers.{i}.intermediate": "encoder.layer.{i}.intermediate.dense",
    "layers.{i}.ffn_output": "encoder.layer.{i}.output.dense",
    "layers.{i}.output_layer_norm": "encoder.layer.{i}.output.LayerNorm",
}


@dataclass(frozen=True)
class Family:
    """What distinguishes a family of encoders.

    Attributes:
        architecture: Start of transformers' class names: "Roberta" for RobertaForSequenceClassification.
        prefix: Precedes the encoder's names in transformers: "roberta.".
        names: Our module in the encoder → transformers' path behind the prefix; {i} is a layer's number.
        head_names: Our module in the head → transformers' full path.
        head_modules: The modules of the head that peft's modules_to_save names.
        config_class: The class that reads and holds config.json, as "module:name"; so are the next two.
        encoder_class: The class of the encoder.
        head_class: The class of the classification head.
        defaults: What transformers assumes for fields missing in config.json, where `config` has other defaults.
        layer_norms: The names of the LayerNorms that can be tuned → our module in the encoder.
        absent: Our modules that `names` gives but that do not exist: "layers.0.attention_layer_norm".
        saved_per_token: Numbers that a layer saves for the backward pass of a token, in units of hidden_size; measured
            with LoRA on query and value.
        projections: Linear layers from embedding_size to hidden_size, which exist where the two differ.
        aliases: Names of linear layers that mean another one here: {"query": "qkv"}.
        unsupported: A method's registry name, or "--cuda-graphs" → the reason why it is not possible here.
        reads_tokens: Whether the head of sequences reads tokens as well, so that token classification has the same one.
        language_model: Our module in MaskedLanguageModel → transformers' path; empty if it cannot be pretrained.
    """

    architecture: str
    prefix: str
    names: dict[str, str]
    head_names: dict[str, str]
    head_modules: tuple[str, ...]
    config_class: str = "config:EncoderConfig"
    encoder_class: str = "roberta:Encoder"
    head_class: str = "roberta:ClassificationHead"
    defaults: dict[str, Any] = field(default_factory=dict)
    layer_norms: dict[str, str] = field(default_factory=lambda: LAYER_NORMS)
    absent: tuple[str, ...] = ()
    saved_per_token: float = 12.5
    projections: tuple[str, ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)
    unsupported: dict[str, str] = field(default_factory=dict)
    reads_tokens: bool = False
    language_model: dict[str, str] = field(default_factory=dict)

    @property
    def config(self) -> type[EncoderConfig]:
        """The class that reads and holds config.json."""
        return cast("type[EncoderConfig]", resolve_name(f"minipeft.model.{self.config_class}"))

    @property
    def encoder(self) -> type[Encoder]:
        """The class of the encoder."""
        return cast("type[Encoder]", resolve_name(f"minipeft.model.{self.encoder_class}"))

    @property
    def head(self) -> type[nn.Module]:
        """The class of the classification head."""
        return cast("type[nn.Module]", resolve_name(f"minipeft.model.{self.head_class}"))

    @property
    def linears(self) -> dict[str, str]:
        """Name of a linear layer, which a method may target → our module in the encoder, a key of `names`."""
        norms = self.layer_norms.values()
        in_layers = [ours for ours in self.names if "{i}" in ours and ours not in norms]
        return {ours.rpartition(".")[2]: ours for ours in (*in_layers, *self.projections)}

    def linear_paths(self, config: EncoderConfig) -> dict[tuple[int, str], tuple[str, str]]:
        """Return (layer, target) → (our path in the encoder, transformers' full path) of every linear layer.

        A projection counts to layer 0.
        """
        paths = self.encoder_paths(config)
        found = {}
        for layer in range(config.num_hidden_layers):
            for target, template in self.linears.items():
                ours = template.replace("{i}", str(layer))
                if ours in paths and ("{i}" in template or layer == 0):
                    found[layer, target] = ours, paths[ours]
        return found

    def encoder_paths(self, config: EncoderConfig) -> dict[str, str]:
        """Our module in the encoder → transformers' full path, for every layer."""
        paths = {}
        for ours, theirs in self.names.items():
            for layer in range(config.num_hidden_layers if "{i}" in ours else 1):
                paths[ours.replace("{i}", str(layer))] = self.prefix + theirs.replace("{i}", str(layer))
        absent = self.absent if config.embedding_size != config.hidden_size else (*self.absent, *self.projections)
        return {ours: theirs for ours, theirs in paths.items() if ours not in absent}


ROBERTA = Family(
    architecture="Roberta",
    prefix="roberta.",
    names=BERT_NAMES,
    head_names={"dense": "classifier.dense", "out_proj": "classifier.out_proj"},
    head_modules=("classifier",),
    defaults={"vocab_size": 50265, "max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12},
    language_model={"dense": "lm_head.dense", "layer_norm": "lm_head.layer_norm", "bias": "lm_head.bias"},
)
XLM_ROBERTA = replace(ROBERTA, architecture="XLMRoberta", defaults=ROBERTA.defaults | {"vocab_size": 30522})
CAMEMBERT = replace(XLM_ROBERTA, architecture="Camembert")

# model_type → where its row is defined, in minipeft.model.
FAMILIES = {
    "roberta": "families:ROBERTA",
    "xlm-roberta": "families:XLM_ROBERTA",
    "camembert": "families:CAMEMBERT",
    "bert": "families.bert:BERT",
    "distilbert": "families.distilbert:DISTILBERT",
    "electra": "families.electra:ELECTRA",
    "deberta-v2": "families.deberta:DEBERTA",
    "modernbert": "families.modernbert:MODERNBERT",
}


def get_family(model_type: Any) -> Family:
    """Return the row of a model_type, and import its file."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise MinipeftError(f"model_type {short_repr(model_type)} is not supported; one of {', '.join(FAMILIES)} is")
    return cast(Family, resolve_name(f"minipeft.model.{FAMILIES[model_type]}"))


def family_of(config: EncoderConfig) -> Family:
    """Return the row of a config's family, with the head that its kind of labels needs."""
    family = get_family(config.model_type)
    if family.reads_tokens or not problem_row(config.problem_type, config.num_labels).per_token:
        return family
    names, head_class = {"out_proj": "classifier"}, "token_classifier:TokenHead"
    return replace(family, head_names=names, head_modules=("classifier",), head_class=head_class)


def load_config(folder: Path) -> EncoderConfig:
    """Read a checkpoint's config.json as its family's config.

    Raises:
        MinipeftError: for a missing or damaged file, an unsupported family, and a field that would change the
            mathematics (a decoder, another kind of positions).
    """
    path = folder / "config.json"
    if not path.exists():
        raise MinipeftError(f"{folder}: no config.json; a checkpoint folder needs config.json, weights and a tokenizer")
    content = read_json(path)
    if "model_type" not in content:
        raise MinipeftError(f"{path}: no model_type; one of {', '.join(FAMILIES)} is needed")
    try:
        family = get_family(content["model_type"])
        return family.config.from_dict(content, family.defaults)
    except (TypeError, ValueError, AttributeError) as error:
        raise MinipeftError(f"{path}: {first_line(error)}; fetch the checkpoint again") from None
    except MinipeftError as error:
        raise MinipeftError(f"{path}: {error}") from None
