"""Check your answers to a walkthrough's exercises: `python walkthroughs/check.py 3`.

The exercises of page 3 are the three functions of walkthroughs/exercises/03_lora.py. Replace the `...` of each by your
answer. This script says which answers are right, and gives a hint for the others, never the solution.
"""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER), str(FOLDER.parent)]
NAMES = {"compute": "Compute", "change": "Change the code", "explain": "Explain"}


def exercises(page: int) -> ModuleType:
    """Return the module with the exercises of a page; it has one function for each name of NAMES, and `check`."""
    files = sorted((FOLDER / "exercises").glob(f"{page:02}_*.py"))
    if not files:
        numbers = ", ".join(str(int(file.name[:2])) for file in sorted((FOLDER / "exercises").glob("[0-9]*.py")))
        sys.exit(f"check.py: page {page} has no exercises. Name one of {numbers}.")
    return importlib.import_module(f"exercises.{files[0].stem}")


def check_answer(page: int, answer: Callable[..., Any]) -> None:
    """Print whether an answer is right, with a hint if it is not.

    Args:
        page: number of the walkthrough.
        answer: the function that answers an exercise, named `compute`, `change` or `explain`.
    """
    is_right(page, answer)


def is_right(page: int, answer: Callable[..., Any]) -> bool:
    """Print the same, and return whether the answer is right."""
    title = f"{list(NAMES).index(answer.__name__) + 1}. {NAMES[answer.__name__]}"
    try:
        hint = exercises(page).check(answer)
    except Exception as error:  # whatever a reader's own code raises
        hint = f"The answer raises {type(error).__name__}: {error}"
    print(f"{title}: {'right' if not hint else f'not yet. {hint}'}")
    return not hint


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not arguments[0].isdecimal():
        sys.exit("check.py: the number of a page is missing. For example: python walkthroughs/check.py 3")
    page = int(arguments[0])
    module = exercises(page)
    return 0 if all([is_right(page, getattr(module, name)) for name in NAMES]) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
