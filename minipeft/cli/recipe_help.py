"""The text of --help on the defaults that depend on the task, the method and the model of the flags before it."""

from pathlib import Path
from typing import Any

from minipeft.errors import MinipeftError
from minipeft.files import read_json
from minipeft.hub import bundled, weights_folder
from minipeft.training.settings.setting import rows
from minipeft.training.settings.train_settings import TrainSettings, recipe_defaults


def describe_recipe(namespace: Any) -> dict[str, str]:
    """Return the help of each flag whose default is a recipe's, for the flags that have been parsed."""
    names = {"task": "rte", "method": "lora", "model": "roberta-base"}
    for name in names:
        given = getattr(namespace, name, None) or "auto"
        first = given[0] if isinstance(given, list) else given  # compare takes several
        names[name] = names[name] if first == "auto" else first
    shape = _shape(names["model"])
    found = recipe_defaults(names["task"], names["method"], Path(names["model"]).name, shape)
    return {name: rows(TrainSettings)[name].describe(found) for name in found}


def _shape(model: str) -> tuple[int, str]:
    """Return the hidden size and model_type of a checkpoint on this machine, else what its name suggests."""
    for folder in (Path(model).expanduser(), weights_folder() / model, bundled(model)):
        if folder is not None and (folder / "config.json").is_file():
            try:
                content = read_json(folder / "config.json")
            except MinipeftError:
                break
            size = content.get("hidden_size", content.get("dim"))
            return size if isinstance(size, int) and size > 0 else 768, str(content.get("model_type"))
    families = {"deberta-v3": "deberta-v2", "electra": "electra", "modernbert": "modernbert"}
    model_type = next((families[name] for name in families if name in model.lower()), "roberta")
    return 1024 if "large" in model else 768, model_type
