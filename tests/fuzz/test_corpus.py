"""The inputs that fuzzing has saved: each ends in a result or in a MinipeftError of one line."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from targets import TARGETS, check, read_corpus


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("target", TARGETS)
def test_every_saved_input_ends_in_a_result_or_an_error(target: str) -> None:
    inputs = read_corpus(target)
    assert inputs
    for data in inputs:
        check(target, data)
