"""The model card of a run: adapter/README.md, rendered from model_card.md.j2."""

import html
import json
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from minipeft.errors import printable
from minipeft.hub.names import base_name, name_in_path
from minipeft.methods import METHODS
from minipeft.training.reporting.console import describe_method
from minipeft.training.settings.job import Job

CARD = "README.md"
FOLDERS = re.compile(r"(?<![\w:/\\])([A-Za-z]:)?([/\\][^\s/\\,;]+)+[/\\](?=[^\s/\\])")  # in front of a file's name


def make_card(job: Job, content: dict[str, Any]) -> str:
    """Return the text of the model card of a run with this result.json; no path of this machine is in it."""
    task, config, name = job.task, job.config, str(content["method"])
    base = base_name(str(job.model.folder))
    in_peft = METHODS[name].peft is not None
    data = FOLDERS.sub("", job.data.description)
    header = {
        **({"base_model": base} if "/" in base else {}),
        "library_name": "peft" if in_peft else "minipeft",
        "pipeline_tag": task.problem.pipeline_tag,
        "tags": ["minipeft", name, *task.problem.tags],
        "metrics": list(task.metrics),
    }
    rows = {
        "base model": base,
        "task": f"{task.name}: {' and '.join(task.columns)} to {', '.join(task.problem.outputs)}",
        "data": data,
        "method": f"{describe_method(job.method)}: {content['parameters']['method']:,} trainable parameters, "
        f"{content['parameters']['head']:,} in the head",
        "training": f"{config['epochs']} epochs, {job.schedule.sequences_per_step} sequences a step, "
        f"peak learning rate {job.schedule.lr:g}, seed {content['seed']}, {content['precision']}",
        "versions": ", ".join(f"{package} {version}" for package, version in content["versions"].items()),
    }
    splits = [name for name in (*(name for name, _ in task.also), "holdout") if name in content]
    scores = {"validation": {kind: content[kind]["value"] for kind in ("best", "last")}}
    environment = Environment(
        loader=PackageLoader("minipeft.training.reporting", ""), undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters |= {"json": json.dumps, "cell": _cell}  # JSON is YAML
    return environment.get_template("model_card.md.j2").render(
        header=header,
        rows=rows,
        scores=scores | {split: content[split] for split in splits},
        content=content,
        task=task,
        name=name,
        method=type(job.method).__name__,
        base=base,
        local=Path(name_in_path(str(job.model.folder.resolve()))).is_absolute(),
        pairs=len(task.columns) == 2,
        in_peft=in_peft,
        auto_model=task.problem.auto_model,
        holdout=bool(job.settings.holdout),
    )


def _cell(text: str) -> str:
    """Text in one cell of a table; markup in a label stays text."""
    return html.escape(printable(re.sub(r"\s+", " ", text)), quote=False).replace("|", "\\|")
