"""The browser that checks pages sees what is wrong in one."""

from __future__ import annotations

from pathlib import Path

from browser import DESKTOP, OVERLAPS, PHONE, chromium


def test_a_sound_page_has_no_complaints_and_a_bad_one_all_of_them(tmp_path: Path) -> None:
    start = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    icon = '<link rel="icon" href="data:,">'
    sound, bad = tmp_path / "sound.html", tmp_path / "bad.html"
    sound.write_text(f"{start}{icon}<title>a</title><p>text", encoding="utf-8")
    bad.write_text(
        f"{start}{icon}<title>b</title><div style='width:700px'>wide</div><img src='absent.png' alt=''>"
        "<svg width='90' height='20'><text y='15'>one</text><text y='15' x='3'>two</text></svg>"
        "<script>console.error('oh'); undefined_name</script>",
        encoding="utf-8",
    )
    with chromium() as browser:
        assert browser.open(sound, PHONE) == [] and browser.evaluate(OVERLAPS) == []
        wrong = "\n".join(browser.open(bad, PHONE))
        for word in ("oh", "exception", "request: file", "failed request", "pixels wide"):
            assert word in wrong
        assert browser.evaluate(OVERLAPS) == [["one", "two"]]
        assert "pixels wide" not in "\n".join(browser.open(bad, DESKTOP))
        for dark in (False, True):
            browser.open(sound, DESKTOP, dark)
            assert browser.evaluate("matchMedia('(prefers-color-scheme: dark)').matches") is dark
