"""Progress of long work: a bar on a terminal, one line in a file, nothing if quiet."""

from __future__ import annotations

import io
import sys

import pytest

from minipeft import progress_bar
from minipeft.progress_bar import show_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_long_work_prints_one_line_in_a_file(
    seconds: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress_bar, "LINE_AFTER", seconds)
    parts = [[1] * 3, [2], [3, 4]]
    assert list(show_progress(parts, "tokenizing train", total=6)) == parts
    printed = capsys.readouterr().err
    assert printed == ("" if seconds else "tokenizing train: 3 of 6 rows after 0 s\n")
    assert list(show_progress(iter(parts), "x", quiet=True)) == parts and capsys.readouterr().err == ""


def test_a_terminal_has_a_bar_and_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    for name, value in (("LINE_AFTER", 0.0), ("BAR_AFTER", 0.0)):
        monkeypatch.setattr(progress_bar, name, value)
    list(show_progress(range(5), "reading", rows=lambda row: 1, total=5))
    assert "reading" in terminal.getvalue() and "after" not in terminal.getvalue()
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    list(show_progress(range(5), "reading", quiet=True, rows=lambda row: 1))
    assert terminal.getvalue() == ""
