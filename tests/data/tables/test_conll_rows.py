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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# text = a b c\n1\ta\t_\tX\n2\tb\t_\tX\n3\tc\t_\tX\n", "line 4: the words are numbered, as in CoNLL-U"),
        ("Ada\tB-per\n\tO\n", "line 2: a tag without a word"),
        ("Ada\tB-per\n \tO\n", "line 2: a tag without a word"),
    ],
)
def test_what_cannot_be_words_and_tags_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(MinipeftError, match=rf"a\.conll, {message}"):
        list(open_table(str(path)).read(["tokens"]))


def test_comments_are_left_out_and_words_that_begin_with_the_sign_are_not(tmp_path: Path) -> None:
    text = "# id 7\tdomain=en\n# newdoc id = x\n# O\n#ai B-x\nis O\n# O\n\n# text = C #\nC B-x\n# O\n"
    path = tmp_path / "a.conll"
    path.write_text(text, encoding="utf-8")
    rows = [row for _, row in open_table(str(path)).read(["tokens", "ner_tags"])]
    assert rows == [[["#", "#ai", "is", "#"], ["O", "B-x", "O", "O"]], [["C", "#"], ["B-x", "O"]]]


def test_another_ending_names_the_flag(tmp_path: Path) -> None:
    (tmp_path / "a.bio").write_text("Ada\tO\n", encoding="utf-8")
    with pytest.raises(MinipeftError, match=r"a\.bio: unknown ending '\.bio'; use .*\.conll.*, or give --format$"):
        open_table(str(tmp_path / "a.bio"))
    assert open_table(str(tmp_path / "a.bio"), "conll").columns == ("tokens", "ner_tags")
