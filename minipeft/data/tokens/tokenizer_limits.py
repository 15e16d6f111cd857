"""Bounds on what a tokenizer.json may cost, checked once when it is loaded, so that encoding needs no limit of its own.

The `tokenizers` library runs any pipeline that a file describes: 28 replacements of a by aa make 2^28 letters of one,
and a regular expression can take hours on one line. Neither Ctrl-C nor an exception reaches a process in such a call.
"""

import base64
import json
import re
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer

from minipeft.errors import short_repr

LARGEST_EXPANSION = 40  # characters that a pipeline may make of one; NFKC makes 18 of one ligature
MOST_STEPS = 64  # of a normalizer, a pre-tokenizer or a decoder
LONGEST_WORD = 1000  # WordPiece's max_input_chars_per_word: the time grows with its square
LONGEST_AFFIX = 16  # characters of a prefix or a suffix that the model adds to each piece
LONGEST_PATTERN = 4000  # characters of a regular expression
MOST_LOOPS, MOST_QUANTIFIERS = 2, 6  # in one alternative of it: the time is length ** MOST_LOOPS


def check_limits(tokenizer: Tokenizer) -> None:
    """Raise ValueError if a text can cost far more time or memory than its length."""
    expansion = 1
    for name in ("normalizer", "pre_tokenizer", "decoder"):
        steps = list(pipeline_steps(getattr(tokenizer, name)))
        if len(steps) > MOST_STEPS:
            raise ValueError(f"the {name} has {len(steps)} steps, more than {MOST_STEPS}")
        expansion = 1 if name == "decoder" else expansion
        for step in steps:
            expansion *= _expansion(step)
        if expansion > LARGEST_EXPANSION:
            raise ValueError(f"the {name} makes more than {LARGEST_EXPANSION} characters of one")
    if getattr(tokenizer.model, "max_input_chars_per_word", 0) > LONGEST_WORD:
        raise ValueError(f"max_input_chars_per_word is more than {LONGEST_WORD}")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if len(getattr(tokenizer.model, name, None) or "") > LONGEST_AFFIX:
            raise ValueError(f"{name} has more than {LONGEST_AFFIX} characters")
    for step in pipeline_steps(tokenizer.post_processor):
        for name, texts in (("single", ["A"]), ("pair", ["A", "B"])):
            used = [piece["Sequence"]["id"] for piece in step.get(name, ()) if "Sequence" in piece]
            if name in step and used != texts:
                raise ValueError(f"the {name} template of the post_processor does not hold each text once")


def pipeline_steps(component: Any) -> Iterator[dict[str, Any]]:
    """Yield the settings of a component, or of each one in a sequence of them."""
    waiting = [] if component is None else [json.loads(component.__getstate__())]
    while waiting:
        step = waiting.pop()
        if step["type"] == "Sequence":
            waiting.extend(reversed(next(value for value in step.values() if isinstance(value, list))))
        else:
            yield step


def _expansion(step: dict[str, Any]) -> int:
    """Return how many characters a step makes of one at most; 1 for steps that expand once and not when repeated."""
    kind = step["type"]
    if kind == "ByteLevel":
        return 2
    if kind == "Prepend":
        return 1 + len(step["prepend"])
    if kind == "Precompiled":  # the length of a trie in 4 bytes, the trie, and the replacements
        charsmap = base64.b64decode(step["precompiled_charsmap"] or "")
        replacements = charsmap[4 + int.from_bytes(charsmap[:4], "little") :].decode(errors="replace")
        return max(1, *map(len, replacements.split("\0")))
    pattern, content = step.get("pattern"), len(step.get("content", ""))
    if isinstance(pattern, dict) and "Regex" in pattern:
        check_pattern(pattern["Regex"])
        return 1 + content  # an empty match leaves the character there
    return max(1, -(-content // max(1, len(pattern["String"])))) if isinstance(pattern, dict) else 1


# What a regular expression (Oniguruma's) may consist of: characters and classes, words such as (?i:'s|'t|'re),
# what is only looked at, and alternatives of them.
_CLASS = r"\[(?:\\.|\[(?:\\.|[^\[\]\\])*\]|[^\[\]\\])*\]"
_CHARACTER = rf"\\[pPx]\{{[^}}]*\}}|\\[^0-9a-zA-Z]|\\[acdDefnhHrsStvwW]|{_CLASS}|[^\\\[\](){{}}|*+?^$]"
_PART = re.compile(
    rf"(?:{_CHARACTER}|\(\?<?[=!](?:{_CHARACTER})\)|\\[AbBzZ]|\^|\$)"
    r"(?:(?P<loop>[*+][?+]?|\{\d*,?\d*\}\??)|(?P<optional>\?[?+]?))?(?![*+?{])"
    r"|(?P<words>\((?:\?i?:)?[^\\\[\](){}*+?^$]+\)\??)(?![*+?{])|(?P<alternative>\|)",
    re.DOTALL,
)


def check_pattern(pattern: str) -> None:
    """Raise ValueError for a regular expression that is not known to be fast, as nested quantifiers are not."""
    parts, position = "", 0
    while position < len(pattern) <= LONGEST_PATTERN and (found := _PART.match(pattern, position)):
        position = found.end()
        parts += (found.lastgroup or " ")[0]
    alternatives = [part.replace(" ", "") for part in parts.split("a")]
    loops, quantifiers = max(part.count("l") for part in alternatives), max(map(len, alternatives))
    if position < len(pattern) or loops > MOST_LOOPS or quantifiers > MOST_QUANTIFIERS:
        raise ValueError(f"the regular expression {short_repr(pattern)} may take hours on one text")
