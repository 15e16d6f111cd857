"""The names of models on the Hugging Face hub, and of the files that a checkpoint consists of."""

import re
from pathlib import Path

from minipeft.errors import MinipeftError

FACEBOOK = ("roberta-base", "roberta-large", "xlm-roberta-base", "xlm-roberta-large")
SIZES = ("xsmall", "small", "base", "large")
BERT = ("bert-base-uncased", "bert-base-cased", "bert-large-uncased", "bert-large-cased")
ALIASES = {name: f"FacebookAI/{name}" for name in FACEBOOK} | {name: f"google-bert/{name}" for name in BERT}
ALIASES |= {"distilroberta-base": "distilbert/distilroberta-base", "camembert-base": "almanach/camembert-base"}
ALIASES |= {f"distilbert-base-{case}": f"distilbert/distilbert-base-{case}" for case in ("uncased", "cased")}
ALIASES |= {f"electra-{size}-discriminator": f"google/electra-{size}-discriminator" for size in SIZES[1:]}
ALIASES |= {f"deberta-v3-{size}": f"microsoft/deberta-v3-{size}" for size in SIZES}
ALIASES |= {f"modernbert-{size}": f"answerdotai/ModernBERT-{size}" for size in SIZES[2:]}
SHORT_NAMES = {repo_id: name for name, repo_id in ALIASES.items()}

CONFIG, WEIGHTS, PICKLE, INDEX = "config.json", "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"
TOKENIZERS = ({"tokenizer.json"}, {"vocab.json", "merges.txt"}, {"vocab.txt"}, {"spm.model"})  # any of them is enough
FURTHER = {"tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "sentencepiece.bpe.model"}
TOKENIZER_FILES = FURTHER.union(*TOKENIZERS)

SEGMENT = r"(?!.*(?:\.\.|--))\w(?:[\w.-]{0,94}\w)?"  # the owner or the name of a repository
REPO_ID = re.compile(f"{SEGMENT}/{SEGMENT}", re.ASCII)
MODEL_NAME = re.compile(f"(?:{SEGMENT}/)?{SEGMENT}", re.ASCII)
REVISION = re.compile(r"(?!.*\.\.)\w[\w./-]{0,99}", re.ASCII)


def parse_model_name(name: str) -> tuple[str, str | None]:
    """Split "name@revision" into the repository and the revision, and check both."""
    model, at, revision = name.partition("@")
    if not MODEL_NAME.fullmatch(model):
        raise MinipeftError(f"{name!r} is not the name of a model. Pass 'roberta-base', 'owner/name' or a folder.")
    if at and not REVISION.fullmatch(revision):
        raise MinipeftError(f"{name!r}: the revision is invalid. Pass a branch, a tag or a commit after the @.")
    return ALIASES.get(model, model), revision if at else None


def model_name(folder: Path) -> str:
    """Return the name of a checkpoint folder that `resolve_model` found by name."""
    name = base_name(str(folder))
    return SHORT_NAMES.get(name, name)


def name_in_path(path: str) -> str:
    """Return the name of the model in a folder of the Hugging Face cache or of weights/; else the path itself."""
    if found := re.search(r"[/\\]models--([\w.-]+)[/\\]snapshots[/\\]", path):
        return found[1].replace("--", "/")
    return Path(path).name if Path(path).parent.name == "weights" else path


def base_name(folder: str) -> str:
    """Return the name of a base model for other people: a model of the hub by its name, another by its folder's."""
    name = name_in_path(folder)
    return Path(name).name if Path(name).is_absolute() or Path(name).is_dir() else name
