"""The registry of kinds of labels: what it imports, and that no other folder asks which kind a problem is."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import minipeft
from minipeft.problems import PROBLEMS, problem_class
from minipeft.problems.problem import Problem

PACKAGE = Path(minipeft.__file__).parent
OUTSIDE = sorted(path for path in PACKAGE.rglob("*.py") if path.parent.name != "problems")
KINDS = {row.class_name for row in PROBLEMS.values()}
# Names of a kind that may stand in a table, such as that of GLUE's tasks or of the defaults of transformers' files.
TABLES = {"data/tasks/task.py"}


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_other_folder_asks_for_a_kind_of_label(path: Path) -> None:
    """Neither by its class, nor by its name or label type, nor by an attribute such as `is_regression`."""
    modules = {f"minipeft.problems.{row.module}" for row in PROBLEMS.values()}
    names = {*PROBLEMS, "multilabel"}  # the other label types are words of their own
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.module not in modules, f"line {node.lineno} imports {node.module}"
        elif isinstance(node, (ast.Name, ast.Attribute)):
            name = node.id if isinstance(node, ast.Name) else node.attr
            assert name not in {*KINDS, "is_regression", "multilabel", "has_classes"}, f"line {node.lineno}: {name}"
        elif isinstance(node, ast.Constant) and str(path.relative_to(PACKAGE)) not in TABLES:
            assert node.value not in names, f"line {node.lineno}: {node.value!r}"


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_kind_answers_for_itself(name: str) -> None:
    kind = problem_class(name)
    assert issubclass(kind, Problem) and kind.name == name
    assert problem_class(None, 1).name == "regression" and problem_class(None, 3).name == "single_label_classification"
    problem = kind.of_outputs(["a", "b"])
    assert kind.of_outputs(problem.outputs) == problem
    for answer in ("find", "read", "losses", "baseline", "predictions", "report", "mistakes"):
        assert getattr(kind, answer) is not getattr(Problem, answer), answer


@pytest.mark.parametrize("task", ["sst2", "stsb"])
def test_a_task_imports_its_kind_of_label_alone(task: str) -> None:
    code = (
        f"import sys; from minipeft.data.tasks.task import get_task; kind = type(get_task({task!r}).problem).__name__\n"
        "print(kind, *(name for name in sys.modules if name.startswith('minipeft.problems.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True, cwd=PACKAGE.parent)
    kind, *loaded = done.stdout.split()
    of_kinds = {f"minipeft.problems.{row.module}": row.class_name for row in PROBLEMS.values()}
    assert [of_kinds[name] for name in loaded if name in of_kinds] == [kind]
