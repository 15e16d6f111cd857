"""What the checks of the exercises share."""

import hashlib
from typing import Any


def unanswered(value: Any) -> bool:
    """Return whether an exercise still has its `...`."""
    return value is ... or value is None


def hint_unless(right: bool, hint: str) -> str:
    """Return the hint, or nothing where the answer is right."""
    return "" if right else hint


def hash_of(page: int, letter: str) -> str:
    """Return a hash, so that the file of an exercise does not show which statements are true."""
    return hashlib.sha256(f"page {page}, statement {letter}".encode()).hexdigest()[:8]


def hint_on_statements(page: int, letters: Any, true: set[str], hint: str) -> str:
    """Return what is wrong with the letters of the statements that a reader holds for true.

    Args:
        page: number of the walkthrough.
        letters: the answer, for example "ad", "A, D" or ["a", "d"].
        true: `hash_of` each true statement.
        hint: where to look.
    """
    if unanswered(letters):
        return f"Name the true statements, for example return 'ad'. {hint}"
    given = {hash_of(page, letter) for letter in "".join(letters).lower() if letter.isalpha()}  # "A, D" is "ad"
    if given - true:
        return f"At least one of these statements is false. {hint}"
    return hint_unless(given == true, f"A true statement is missing. {hint}")
