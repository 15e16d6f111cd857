"""The pages in Traditional Chinese have the commands, the figures and the links of the English ones."""

import re
from collections import Counter
from pathlib import Path

import pytest
from conftest import REPOSITORY

PAGES = {
    "README.md": "README.zh-TW.md",
    "docs/quickstart.md": "docs/zh-TW/quickstart.md",
    "docs/report.md": "docs/zh-TW/report.md",
}
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()[^)]+(?=\))")
SPELT = {"two": "2", "six": "6"}  # numbers that the English text spells where the Chinese has digits


def both(english: str) -> tuple[str, str]:
    first, second = ((REPOSITORY / name).read_text(encoding="utf-8") for name in (english, PAGES[english]))
    return first, second


def figures(text: str) -> set[str]:
    """The numbers outside code, links and the marks of tables; the months and spelt numbers of a sentence are words."""
    text = LINK.sub("", CODE.sub("", re.sub(r"<!--.*?-->", "", text)))
    return set(re.findall(r"(?<![\w.])\d[\d,.]*(?:e-\d+)?(?!\w)", re.sub(r"[.,](?=\s|$|[^\d])", "", text)))


@pytest.mark.parametrize("english", PAGES)
def test_a_translation_has_the_same_commands_and_code(english: str) -> None:
    original, translation = (CODE.findall(text) for text in both(english))
    assert original == translation and original


@pytest.mark.parametrize("english", PAGES)
def test_a_translation_has_the_same_figures(english: str) -> None:
    original, translation = (figures(text) for text in both(english))
    assert translation - original <= {*SPELT.values(), "1"}, "figures of the translation alone"  # 1: January as 1 月
    assert original <= translation, "figures that the translation does not have"


@pytest.mark.parametrize("english", PAGES)
def test_a_translation_has_the_same_rows_in_its_tables(english: str) -> None:
    original, translation = (
        Counter(line.count("|") for line in text.splitlines() if line.startswith("|")) for text in both(english)
    )
    assert original == translation


@pytest.mark.parametrize("english", PAGES)
def test_each_page_links_to_the_other_and_every_link_leads_somewhere(english: str) -> None:
    original, translation = both(english)
    files = [REPOSITORY / name for name in (english, PAGES[english])]
    for file, text, other in zip(files, (original, translation), reversed(files), strict=True):
        head = "\n".join(text.splitlines()[:5])
        assert other.resolve() in {(file.parent / link).resolve() for link in LINK.findall(head)}
        for link in LINK.findall(CODE.sub("", text)):
            target = Path(file.parent, link.partition("#")[0]).resolve()
            copied = REPOSITORY / "walkthroughs" / target.name  # the site copies the notebooks into docs/walkthroughs
            assert link.startswith("https://") or target.exists() or copied.exists(), link


def test_the_translation_is_traditional_chinese() -> None:
    """No character that only simplified Chinese has, of those that these pages would use."""
    for name in PAGES.values():
        text = (REPOSITORY / name).read_text(encoding="utf-8")
        assert not set(text) & set("训练权数据习码档资编语说这为个并与对应时间过续从设结论级"), name
