"""The public names, what importing costs, and what is never imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import minipeft

PACKAGE = Path(minipeft.__file__).parent
CONTRACT = {
    "load_pretrained",
    "load_tokenizer",
    "pack",
    "LoRA",
    "BitFit",
    "Full",
    "Head",
    "apply",
    "count_parameters",
    "save_adapter",
    "load_adapter",
    "merge",
    "unmerge",
    "export",
    "train",
    "MinipeftError",
}


def modules_after(code: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after `code`."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        text=True,
        capture_output=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("name", sorted({*minipeft.__all__} | CONTRACT))
def test_every_public_name_is_there(name: str) -> None:
    assert name in minipeft.__all__ and name in dir(minipeft)
    assert getattr(minipeft, name).__module__.startswith("minipeft.")
    assert getattr(minipeft, name).__doc__


def test_the_lists_of_names_agree() -> None:
    """The names for type checkers, for the lazy import and for `import *` are the same."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    typed = {
        (node.module, alias.name)
        for block in tree.body
        if isinstance(block, ast.If)
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    lazy = {(home, name) for home, names in minipeft._HOMES.items() for name in names}
    assert typed == lazy and sorted(name for _, name in lazy) == sorted(minipeft.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Lora'"):
        minipeft.Lora  # noqa: B018


def test_importing_minipeft_imports_neither_torch_nor_tokenizers_nor_datasets() -> None:
    assert modules_after("import minipeft").isdisjoint({"torch", "tokenizers", "datasets", "numpy"})


def test_loading_and_training_import_nothing_of_hugging_faces_training_libraries() -> None:
    loaded = modules_after("from minipeft import *\nimport minipeft.pretraining.pretrain, minipeft.cli.cli")
    assert "torch" in loaded and "tokenizers" in loaded
    assert loaded.isdisjoint({"transformers", "peft", "accelerate"})


def imported(path: Path) -> set[str]:
    """The top-level packages that a file imports anywhere, in strings given to import_module too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("import_module", "__import__"):
            names |= {str(arg.value).partition(".")[0] for arg in node.args if isinstance(arg, ast.Constant)}
    return names


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_imports_transformers_peft_or_accelerate(path: Path) -> None:
    allowed = {
        "minipeft",
        "torch",
        "tokenizers",
        "datasets",
        "safetensors",
        "tqdm",
        "huggingface_hub",
        "matplotlib",
        "tensorboard",
        "wandb",  # the trackers, where --report-to names them
        "mlflow",
        "sklearn",  # imported by what scikit-learn itself calls
        "numpy",
        "pyarrow",
        "fsspec",  # of datasets
        "aiohttp",  # of the extra `remote`
        "onnxruntime",  # of the extra `onnx`
        "filelock",
        "jinja2",
        "ray",
        "markupsafe",  # of jinja2
    } | set(sys.stdlib_module_names)
    assert imported(path) <= allowed


# From the bottom to the top: a room may import from itself and from what stands before it. Files of data/ and training/
# themselves, such as training/run.py, stand above the rooms inside.
ROOMS = (
    "hub",
    "data.tables",
    "problems",
    "data.tasks",
    "data.tokens",
    "data.batches",
    "model",
    "methods",
    "adapters",
    "training",
    "pretraining",
    "inference",
    "compare",
    "cli",
)
GROUND_FLOOR = (
    "__init__",
    "__main__",
    "version",
    "errors",
    "files",
    "lease",
    "staging",
    "device",
    "cuda",
    "progress_bar",
)
# The only import upwards, in the property that uses it: a finished run predicts.
ALLOWED_UPWARDS = (("minipeft.training.result", "minipeft.inference.predictor"),)


def room_of(module: str) -> str:
    """The room of a module, "data.tables" or "training"; a module of the ground floor is its own."""
    parts = module.split(".")[1:]
    return next((room for room in (".".join(parts[:2]), parts[0]) if room in ROOMS), parts[0])


def modules() -> dict[str, Path]:
    """Every module of the package but its __init__, by its dotted name."""
    return {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "__init__.py"
    }


def test_the_rooms_are_those_of_the_design() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if any(path.rglob("*.py"))}
    assert folders == {room.partition(".")[0] for room in ROOMS}
    assert {path.stem for path in PACKAGE.glob("*.py")} == set(GROUND_FLOOR)


@pytest.mark.parametrize("room", (*ROOMS, "version", "errors", "files", "lease", "device"))
def test_imports_run_in_one_direction(room: str) -> None:
    """Imports inside functions and for type checkers count too."""
    below = set() if room in GROUND_FLOOR else {room, *ROOMS[: ROOMS.index(room)]}
    for module, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if room_of(module) == room else ():
            if (
                isinstance(node, ast.ImportFrom)
                and (node.module or "").startswith("minipeft.")
                and (module, node.module) not in ALLOWED_UPWARDS
            ):
                assert room_of(str(node.module)) in below | set(GROUND_FLOOR), f"{path} imports {node.module}"


def test_no_two_modules_import_each_other() -> None:
    """A depth-first search through the imports of all modules, those for type checkers included."""
    paths = modules()
    imports: dict[str, set[str]] = {}
    for name, path in paths.items():
        imports[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("minipeft."):
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    imports[name].add(whole if whole in paths else str(node.module))

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " → ".join((*above, name))
        if name not in visited:
            visited.add(name)
            for other in sorted(imports[name]):
                visit(other, (*above, name))

    visited: set[str] = set()
    for name in sorted(imports):
        visit(name, ())


# What a student reads, in this order.
CORE = [
    "data/batches/packing.py",
    "model/roberta.py",
    "model/attention/__init__.py",
    "model/attention/grouped.py",
    "methods/lora.py",
    "methods/bitfit.py",
    "training/run.py",
    "training/loop.py",
    "training/optimization/optimizer.py",
    "training/optimization/schedule.py",
    "training/optimization/loss.py",
]


def test_the_core_is_short() -> None:
    lines = {path: len((PACKAGE / path).read_text().splitlines()) for path in CORE}
    assert sum(lines.values()) <= 2_100, lines


@pytest.mark.parametrize("path", CORE)
def test_a_core_file_opens_with_more_than_a_title(path: str) -> None:
    """What it does, what it leaves out and why."""
    description = ast.get_docstring(ast.parse((PACKAGE / path).read_text()))
    assert description is not None and len(description.splitlines()) >= 4
