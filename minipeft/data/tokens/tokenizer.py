"""Text → token ids: byte-level BPE, WordPiece or Unigram with the `tokenizers` library and the family's template.

roberta, xlm-roberta, camembert    <s> A </s>    and    <s> A </s></s> B </s>
the other families                 [CLS] A [SEP] and    [CLS] A [SEP] B [SEP], token types 0 … 0 1 … 1

`tokenizer_files.py` reads the files, and `tokenizer_limits.py` bounds what they may cost.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from threading import Lock

from tokenizers import Encoding
from tokenizers import Tokenizer as _Tokenizer

from minipeft.data.tokens.special_tokens import Settings
from minipeft.data.tokens.tokenizer_files import read_tokenizer
from minipeft.data.tokens.tokenizer_limits import check_limits
from minipeft.errors import MinipeftError, first_line, is_unicode, short_repr
from minipeft.files import write_json

# Truncation is a state of the tokenizer, which raises if it is set while another thread encodes.
ENCODING = Lock()


class TokenIds(list[int]):
    """A list of token ids with BERT's token types in `type_ids`."""

    def __init__(self, ids: Iterable[int], type_ids: list[int]) -> None:
        super().__init__(ids)
        self.type_ids = type_ids


class Tokenizer:
    """A checkpoint's tokenizer, with its special tokens, template and truncation. See `load_tokenizer`.

    Args:
        tokenizer: The `tokenizers.Tokenizer`.
        folder: The folder that it was read from, for messages.
        settings: Its settings, as tokenizer_config.json holds them.

    Attributes:
        side: The side that truncation removes, "right" or "left".
        truncated: The number of examples that `encode` has truncated so far.
    """

    def __init__(self, tokenizer: _Tokenizer, folder: Path, settings: Settings | None = None) -> None:
        self.tokenizer = tokenizer
        self.folder = folder
        self.settings = settings or {}
        self.side = self.settings.get("truncation_side", "right")
        self.truncated = 0

    def __repr__(self) -> str:
        model = type(self.tokenizer.model).__name__
        return f"Tokenizer({str(self.folder)!r}, {model}, {self.vocab_size:,} entries, truncates the {self.side})"

    @property
    def vocab_size(self) -> int:
        """The number of ids, including added tokens."""
        return self.tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def special_token_ids(self) -> frozenset[int]:
        """Ids of the special tokens in the vocabulary."""
        ids = self.tokenizer.get_added_tokens_decoder()
        return frozenset(number for number, token in ids.items() if token.special)

    @property
    def mask_token_id(self) -> int:
        """The id of the mask token, for masked-language modeling. Raises MinipeftError if there is none."""
        for token in ("<mask>", "[MASK]"):
            number = self.tokenizer.token_to_id(token)
            if number is not None:
                return number
        raise MinipeftError(
            f"{self.folder}: the tokenizer has no mask token (<mask> or [MASK]); "
            "pretraining needs one in tokenizer.json"
        )

    def encode_full(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, max_length: int = 512
    ) -> list[Encoding]:
        """Like `encode(texts, pairs, max_length)`, but return `tokenizers.Encoding`, with .ids and .type_ids."""
        special = self.tokenizer.num_special_tokens_to_add(pairs is not None)
        if max_length <= special:
            raise MinipeftError(
                f"max_length {max_length} leaves no room for text next to the {special} special tokens; "
                f"set {special + 1} or more"
            )
        for what, sentences in (("texts", texts), ("pairs", [] if pairs is None else pairs)):
            if isinstance(sentences, str):
                raise MinipeftError(f"{what} is one string, {sentences[:40]!r}; give a list of strings")
            for number, sentence in enumerate(sentences):
                if not isinstance(sentence, str) or not is_unicode(sentence):
                    raise MinipeftError(
                        f"{what}[{number}] is {short_repr(sentence)}, not valid Unicode; fix or remove it"
                    )
        if pairs is not None and len(pairs) != len(texts):
            raise MinipeftError(f"{len(texts)} texts but {len(pairs)} pairs; every text needs one pair")
        inputs = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        with ENCODING, _rust_errors(f"{self.folder}: the tokenizer cannot encode the texts"):
            self.tokenizer.no_padding()
            self.tokenizer.enable_truncation(max_length, strategy="longest_first", direction=self.side)
            encodings = self.tokenizer.encode_batch(inputs)
            self.truncated += sum(1 for encoding in encodings if encoding.overflowing)
        return encodings

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None, max_length: int = 512) -> list[TokenIds]:
        """Return the token ids of each text, or of each (text, pair), with special tokens, ready for `pack`.

        Args:
            texts: The texts.
            pairs: The second sentence of each text, or None.
            max_length: Maximum number of ids, including special tokens; longest-first truncation.

        Returns:
            One list of int per text.

        Raises:
            MinipeftError: for a value that is not a text, if `max_length` leaves no room for text, or if the two
                lists differ in length.
        """
        return [TokenIds(encoding.ids, encoding.type_ids) for encoding in self.encode_full(texts, pairs, max_length)]

    @cached_property
    def special_tokens(self) -> tuple[list[int], list[int]]:
        """The ids of the special tokens before and after a text."""
        with ENCODING:
            self.tokenizer.no_truncation()
            encoding = self.tokenizer.encode("a")
        inside = [place for place, special in enumerate(encoding.special_tokens_mask) if not special]
        return encoding.ids[: inside[0]], encoding.ids[inside[-1] + 1 :]

    def encode_words(self, rows: Sequence[list[str]]) -> list[Encoding]:
        """Return the encodings of rows of words, without special tokens and truncation; .word_ids names their words."""
        with _rust_errors(f"{self.folder}: the tokenizer cannot encode the words"):
            return self._word_tokenizer.encode_batch(rows, is_pretokenized=True, add_special_tokens=False)

    @cached_property
    def _word_tokenizer(self) -> _Tokenizer:
        """The tokenizer with a space before every word, if it is RoBERTa's: transformers' add_prefix_space."""
        state = json.loads(self.tokenizer.to_str())
        state["truncation"] = state["padding"] = None
        if (state["post_processor"] or {}).get("type") == "RobertaProcessing":
            state["pre_tokenizer"]["add_prefix_space"] = True
        return _Tokenizer.from_str(json.dumps(state))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""
        return self.tokenizer.decode(list(ids))

    def save(self, folder: Path) -> None:
        """Write `folder`/tokenizer.json and tokenizer_config.json, from which transformers gives the same ids."""
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.save(str(folder / "tokenizer.json"))
        settings = {**self.settings, "tokenizer_class": "PreTrainedTokenizerFast"}  # no class that would build it again
        for name in ("extra_special_tokens", "additional_special_tokens"):  # they are in tokenizer.json
            settings.pop(name, None)
        for name, token in settings.items():
            if name.endswith("_token") and isinstance(token, dict):
                settings[name] = token["content"]
        write_json(folder / "tokenizer_config.json", settings)


def load_tokenizer(name_or_dir: str | Path) -> Tokenizer:
    """Load a checkpoint's tokenizer from tokenizer.json, or from vocab.json and merges.txt, vocab.txt or spm.model.

    The settings in tokenizer_config.json hold, and the added tokens there, in special_tokens_map.json and in
    added_tokens.json, as in transformers: see `tokenizer_files.py`.

    Args:
        name_or_dir: A name or folder, as in `load_pretrained`.

    Raises:
        MinipeftError: for a name that cannot be found or downloaded, for missing or damaged files, for an unsupported
            class or setting, and for a tokenizer.json that may take unbounded time or memory.
    """
    from minipeft.hub import resolve_model

    folder, _ = resolve_model(str(name_or_dir))
    with _rust_errors(f"{folder}: the tokenizer files cannot be read"):
        tokenizer, settings = read_tokenizer(folder)
    try:
        check_limits(tokenizer)
    except ValueError as error:
        raise MinipeftError(f"{folder}: the tokenizer is refused: {error}. Use another checkpoint.") from None
    return Tokenizer(tokenizer, folder, settings)


@contextmanager
def _rust_errors(message: str) -> Iterator[None]:
    """Convert the errors of `tokenizers`: a plain Exception for a bad file, a BaseException if its Rust code panics."""
    try:
        yield
    except MinipeftError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise MinipeftError(f"{message} ({first_line(error)}); fetch the checkpoint again") from None
