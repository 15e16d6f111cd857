"""A tokenizer.json that may take unbounded time or memory is refused when it is loaded; the usual ones are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from minipeft import MinipeftError, load_tokenizer
from minipeft.data.tokens.tokenizer_limits import LARGEST_EXPANSION, check_limits, check_pattern

WORDS = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


DOUBLE = replace({"String": "a"}, "aa")
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
A, B = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
TEMPLATE = {"type": "TemplateProcessing", "single": [A], "pair": [A, B], "special_tokens": {}}
WORD_PIECE = {"type": "WordPiece", "unk_token": "a", "continuing_subword_prefix": "##", "vocab": {"a": 0}}
WORD_PIECE |= {"max_input_chars_per_word": 100}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "28 doublings": ({"normalizer": {"type": "Sequence", "normalizers": [DOUBLE] * 28}}, "more than 40 characters"),
    "a long content": ({"normalizer": replace({"String": "a"}, "b" * 10_000_000)}, "more than 40 characters"),
    "a regular expression that inserts": ({"normalizer": replace({"Regex": ""}, "b" * 50)}, "more than 40 characters"),
    "a long beginning": ({"normalizer": {"type": "Prepend", "prepend": "b" * 1000}}, "more than 40 characters"),
    "bytes of bytes": ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES] * 20}}, "more than 40 charact"),
    "many steps": ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}] * 100}}, "100 steps"),
    "a decoder": ({"decoder": {"type": "Sequence", "decoders": [DOUBLE] * 28}}, "the decoder makes more than 40"),
    "nested quantifiers": ({"normalizer": replace({"Regex": "(a+)+$"}, "")}, r"'\(a\+\)\+\$' may take hours"),
    "a split": ({"pre_tokenizer": SPLIT | {"pattern": {"Regex": "(a|a)*b"}}}, "may take hours on one text"),
    "a decoder's pattern": ({"decoder": replace({"Regex": "(.*)*x"}, "")}, "may take hours on one text"),
    "a text used twice": (
        {"post_processor": TEMPLATE | {"single": [A] * 1000}},
        "the single template .* each text once",
    ),
    "a pair used twice": ({"post_processor": TEMPLATE | {"pair": [A, B] * 99}}, "the pair template .* each text once"),
    "long words": ({"model": WORD_PIECE | {"max_input_chars_per_word": 10**9}}, "max_input_chars_per_word is more"),
    "a long prefix": (
        {"model": WORD_PIECE | {"continuing_subword_prefix": "#" * 10**6}},
        "continuing_subword_prefix has",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_may_cost_too_much_is_refused_when_it_is_loaded(case: str, tmp_path: Path) -> None:
    parts, message = REFUSED[case]
    (tmp_path / "tokenizer.json").write_text(json.dumps(json.loads(WORDS.to_str()) | parts))
    with pytest.raises(MinipeftError, match=message) as caught:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(caught.value) and len(str(caught.value)) < 500


STEPS = st.one_of(
    st.builds(normalizers.Replace, st.text("ab", min_size=1, max_size=2), st.text("abc", max_size=4)),
    st.builds(normalizers.Prepend, st.text("abc", min_size=1, max_size=3)),
    st.sampled_from([normalizers.NFKD(), normalizers.Lowercase(), normalizers.Strip(), normalizers.ByteLevel()]),
)


@given(steps=st.lists(STEPS, max_size=8), text=st.text("abcé ﷺ", max_size=20))
@settings(max_examples=200, deadline=None)
def test_no_accepted_pipeline_makes_more_of_a_text_than_the_limit(steps: list[Any], text: str) -> None:
    tokenizer = Tokenizer(WORDS.model)
    tokenizer.normalizer = normalizers.Sequence(steps)
    try:
        check_limits(tokenizer)
    except ValueError:
        return
    # One ligature may become 18 letters, once, in addition.
    assert len(tokenizer.normalizer.normalize_str(text)) <= LARGEST_EXPANSION * max(len(text), 1) * 18


PUBLISHED = {
    "GPT-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "Llama 3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
    "o200k": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{M}]*[\p{Ll}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}|\s+(?!\S)|\s+",
    "DeBERTa": r"\s{2,}|[\n\r\t]",
    "SentencePiece": " {2,}",
    "BLOOM": r" ?[^(\s|[.,!?…。，、।۔،])]+",
    "quotes": "''|``",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_patterns_of_published_tokenizers_are_accepted(name: str) -> None:
    check_pattern(PUBLISHED[name])
    assert pre_tokenizers.Split(Regex(PUBLISHED[name]), "isolated").pre_tokenize_str("don't  go, it's 1234\n")


SLOW = ["(a+)+$", "(a|a)*$", ".*.*.*x", "(a*)*", r"(.+)\1", "a?" * 30 + "a" * 30, "(a|a)" * 30, "a{1,30}+", "a**"]
SLOW += ["(?:a{1,9}){1,9}", "(?x)a", r"\g<0>", "(a", "a)", "[a", "(?>a+)+", "a" * 5000, r"(\p{L}+\s?)+!", "((a))*"]


@pytest.mark.parametrize("pattern", SLOW, ids=lambda pattern: pattern[:20])
def test_patterns_that_may_backtrack_without_bound_are_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="may take hours on one text"):
        check_pattern(pattern)
