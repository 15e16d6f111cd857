"""The model card of a run: adapter/README.md, with the header that the Hugging Face hub reads."""

from __future__ import annotations

import json
import re
from typing import Any

from minipeft.errors import printable
from minipeft.hub.names import base_name
from minipeft.methods import METHODS
from minipeft.training.reporting.banner import describe_method
from minipeft.training.settings.job import Job

CARD = "README.md"
FOLDERS = re.compile(r"(?<![\w:/\\])([A-Za-z]:)?([/\\][^\s/\\,;]+)+[/\\](?=[^\s/\\])")  # in front of a file's name


def make_card(job: Job, content: dict[str, Any]) -> str:
    """Return the text of the model card; no path of this machine is in it.

    Args:
        job: The run.
        content: Of result.json.
    """
    task, config, name = job.task, job.config, str(content["method"])
    auto_model = task.problem.auto_model
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
    scores = [("validation", content["best"]["value"], content["last"]["value"])]
    scores += [(split, content[split]["best"], content[split]["last"]) for split in _splits(job, content)]
    lines = [
        "---",
        *(f"{key}: {json.dumps(value)}" for key, value in header.items()),  # JSON is YAML
        "---",
        "",
        f"# {type(job.method).__name__} on {printable(task.name)}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {_cell(str(value))} |" for key, value in rows.items()),
        "",
        "## Metrics",
        "",
        f"| split | {content['metric']}, best epoch ({content['best']['epoch']}) | last epoch | seed |",
        "|---|---:|---:|---:|",
        *(f"| {split} | {best:.4f} | {last:.4f} | {content['seed']} |" for split, best, last in scores),
        "",
        "This is one run with one seed. The best epoch was chosen "
        + (
            "on examples held out of the training split."
            if job.settings.holdout
            else "on the validation split, which makes its value optimistic; that of the last epoch is not."
        ),
        "",
        "## Use",
        "",
        "With minipeft, which finds the base model by its name (`FOLDER` is this folder):",
        "",
        "```python",
        "import minipeft",
        "",
        f'run = minipeft.load_run("FOLDER"{", pairs=True" if len(task.columns) == 2 else ""})',
        'run.predict(["a text"]' + (', ["its second text"])' if len(task.columns) == 2 else ")"),
        "```",
        "",
    ]
    if in_peft:
        lines += [
            "With peft:",
            "",
            "```python",
            "from peft import PeftModel",
            f"from transformers import {auto_model}",
            "",
            f'base = {auto_model}.from_pretrained("{base}", num_labels={task.num_labels})',
            'model = PeftModel.from_pretrained(base, "FOLDER")',
            "```",
            "",
        ]
    else:
        lines += [f"peft has no method {name}, so it cannot open this adapter.", ""]
    return "\n".join(lines)


def _splits(job: Job, content: dict[str, Any]) -> list[str]:
    names = [name for name, _ in job.task.also] + (["holdout"] if job.settings.holdout else [])
    return [name for name in names if name in content]


def _cell(text: str) -> str:
    """Text in one cell of a table."""
    return printable(re.sub(r"\s+", " ", text)).replace("|", "\\|")
