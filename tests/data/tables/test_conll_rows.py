"""CoNLL files as people have them: line ends, separators, white space in words, words without tags."""

from pathlib import Path

import pytest

from minipeft import MinipeftError
from minipeft.data.tables.open_table import open_table


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("separator", ["\t", " ", "   "])
@pytest.mark.parametrize("last", ["", "END"])
def test_line_ends_and_separators(tmp_path: Path, end: str, separator: str, last: str) -> None:
    lines = ["-DOCSTART-", "", "1\xa0000{}NN{}O", "Paris{}NNP{}B-loc", "", "", "\u3000{}NN{}O"]
    text = end.join(line.replace("{}", separator) for line in lines) + last.replace("END", end)
    path = tmp_path / "a.conll"
    path.write_text(text, encoding="utf-8", newline="")
    found = list(open_table(str(path)).read(["tokens", "ner_tags"]))
    sentences = [[["1\xa0000", "Paris"], ["O", "B-loc"]], [["\u3000"], ["O"]]]
    assert found == [(f"{path}, line {line}", row) for line, row in zip((3, 7), sentences, strict=True)]


def test_words_alone_have_no_tag(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text("Ada\nsleeps\t\n\nParis", encoding="utf-8")
    rows = [row for _, row in open_table(str(path)).read(["tokens", "ner_tags"])]
    assert rows == [[["Ada", "sleeps"], [None, None]], [["Paris"], [None]]]


def test_conll_u_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text("# text = Ada sleeps\n1\tAda\tAda\tPROPN\tNNP\t_\t2\tnsubj\t_\t_\n", encoding="utf-8")
    with pytest.raises(MinipeftError, match=r"a\.conll, line 2: CoNLL-U is not read"):
        list(open_table(str(path)).read(["tokens"]))


def test_another_ending_names_the_flag(tmp_path: Path) -> None:
    (tmp_path / "a.bio").write_text("Ada\tO\n", encoding="utf-8")
    with pytest.raises(MinipeftError, match=r"a\.bio: unknown ending '\.bio'; use .*\.conll.*, or give --format$"):
        open_table(str(tmp_path / "a.bio"))
    assert open_table(str(tmp_path / "a.bio"), "conll").columns == ("tokens", "ner_tags")
