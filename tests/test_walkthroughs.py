"""The walkthroughs run from top to bottom, each in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import REPOSITORY, run_command

PAGES = sorted((REPOSITORY / "walkthroughs").glob("[0-9]*.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_walkthrough_runs(page: Path) -> None:
    done = run_command(page)
    assert done.returncode == 0, done.stderr


def test_there_are_walkthroughs() -> None:
    assert PAGES
