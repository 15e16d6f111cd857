"""Text → token ids: byte-level BPE (or WordPiece) through the `tokenizers` library, with the family's template.

roberta, xlm-roberta, camembert    <s> A </s>    and    <s> A </s></s> B </s>
bert                               [CLS] A [SEP] and    [CLS] A [SEP] B [SEP], token types 0 … 0 1 … 1
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tokenizers import AddedToken, Encoding, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as _Tokenizer

from minipeft.errors import MinipeftError, first_line, is_unicode, shown
from minipeft.files import read_small

ROBERTA_SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


class TokenIds(list[int]):
    """A list of token ids that carries bert's token types along, in `type_ids`."""

    def __init__(self, ids: Iterable[int], type_ids: list[int]) -> None:
        super().__init__(ids)
        self.type_ids = type_ids


class Tokenizer:
    """A checkpoint's tokenizer, with its special tokens, template and truncation; `load_tokenizer` makes one.

    tokenizer   the library's own
    folder      where it was read from, for messages
    `truncated` counts the examples that `encode` has cut to `max_length` so far.
    """

    def __init__(self, tokenizer: _Tokenizer, folder: Path) -> None:
        self.tokenizer = tokenizer
        self.folder = folder
        self.truncated = 0

    @property
    def vocab_size(self) -> int:
        """The number of ids, added tokens included."""
        return self.tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def special_token_ids(self) -> frozenset[int]:
        """Ids of the special tokens that the vocabulary holds."""
        ids = self.tokenizer.get_added_tokens_decoder()
        return frozenset(number for number, token in ids.items() if token.special)

    @property
    def mask_token_id(self) -> int:
        """The id that masked-language-model pretraining puts in a token's place. Raises MinipeftError without one."""
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
        """Like `encode`, but with the library's Encoding objects: .ids and .type_ids (bert's token types).

        texts, pairs, max_length and what raises are `encode`'s.
        """
        special = self.tokenizer.num_special_tokens_to_add(pairs is not None)
        if max_length <= special:
            raise MinipeftError(
                f"max_length {max_length} leaves no room beside the {special} special tokens; "
                f"take {special + 1} or more"
            )
        for what, sentences in (("texts", texts), ("pairs", [] if pairs is None else pairs)):
            if isinstance(sentences, str):
                raise MinipeftError(f"{what} is one string, {sentences[:40]!r}; give a list of strings")
            for number, sentence in enumerate(sentences):
                if not isinstance(sentence, str) or not is_unicode(sentence):
                    raise MinipeftError(f"{what}[{number}] is {shown(sentence)}, no valid text; mend or remove it")
        if pairs is not None and len(pairs) != len(texts):
            raise MinipeftError(f"{len(texts)} texts but {len(pairs)} pairs; every text needs one pair")
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(max_length, strategy="longest_first")
        inputs = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        with _rust_errors(f"{self.folder}: the tokenizer cannot encode the texts"):
            encodings = self.tokenizer.encode_batch(inputs)
        self.truncated += sum(1 for encoding in encodings if encoding.overflowing)
        return encodings

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None, max_length: int = 512) -> list[TokenIds]:
        """Token ids of each text, or of each (text, pair), special tokens included: lists of int, ready for `pack`.

        texts, pairs   lists of str, equally long; a pair is the second sentence of a text
        max_length     tokens
        Longest-first truncation cuts to `max_length` ids, special tokens counted.
        Raises MinipeftError for what is no text, when `max_length` leaves no room or the two lists differ in length.
        """
        return [TokenIds(encoding.ids, encoding.type_ids) for encoding in self.encode_full(texts, pairs, max_length)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        return self.tokenizer.decode(list(ids))

    def save(self, folder: Path) -> None:
        """Write `folder`/tokenizer.json, without truncation or padding settings."""
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.save(str(folder / "tokenizer.json"))


def load_tokenizer(name_or_dir: str | Path) -> Tokenizer:
    """Load tokenizer.json, or vocab.json + merges.txt, of a checkpoint.

    name_or_dir   as in `load_pretrained`
    Raises MinipeftError for a name that cannot be found or fetched, and for files that are missing or damaged.
    """
    from minipeft.hub.hub import resolve_model

    folder, _ = resolve_model(str(name_or_dir))
    whole, vocab, merges = folder / "tokenizer.json", folder / "vocab.json", folder / "merges.txt"
    with _rust_errors(f"{folder}: the tokenizer files cannot be read"):
        if whole.is_file():
            return Tokenizer(_Tokenizer.from_buffer(read_small(whole)), folder)
        if vocab.is_file() and merges.is_file():
            for path in (vocab, merges):
                read_small(path)  # refuses what is too large
            pieces = _byte_level_bpe(models.BPE.from_file(str(vocab), str(merges)))
            if pieces.token_to_id("<s>") is None:
                raise ValueError("vocab.json has no <s>")
            return Tokenizer(pieces, folder)
    raise MinipeftError(
        f"{folder}: no tokenizer.json and no vocab.json + merges.txt; put the checkpoint's tokenizer files there"
    )


@contextmanager
def _rust_errors(message: str) -> Iterator[None]:
    """The tokenizers library raises plain Exception for a bad file, and a BaseException where its Rust code panics."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise MinipeftError(f"{message} ({first_line(error)}); fetch the checkpoint again") from None


def train_tokenizer(lines: Iterable[str], vocab_size: int, folder: Path) -> Tokenizer:
    """Learn a byte-level BPE (Sennrich et al. 2016; over bytes as in Radford et al. 2019) and save it in `folder`.

    Text is lower-cased: a small vocabulary then spends no entry on a word's second spelling.
    """
    tokenizer = _byte_level_bpe(models.BPE(), lowercase=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=ROBERTA_SPECIALS,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(lines, trainer)
    _set_roberta_template(tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    learnt = Tokenizer(tokenizer, folder)
    learnt.save(folder)
    # This class takes tokenizer.json as it is; transformers 5 builds RobertaTokenizer anew, without the lower-casing.
    names = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 512,
        "model_input_names": ["input_ids", "attention_mask"],
        **{f"{role}_token": token for role, token in names.items()},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return learnt


def _byte_level_bpe(model: models.BPE, lowercase: bool = False) -> _Tokenizer:
    """RoBERTa's pipeline around a BPE model: GPT-2's byte-level split, its special tokens, its template."""
    tokenizer = _Tokenizer(model)
    if lowercase:
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=lowercase)
    tokenizer.decoder = decoders.ByteLevel()
    if tokenizer.token_to_id("<s>") is not None:
        mask = AddedToken("<mask>", lstrip=True)  # it takes the space before it, as in roberta-base's tokenizer.json
        tokenizer.add_special_tokens([*ROBERTA_SPECIALS[:-1], mask])
        _set_roberta_template(tokenizer)
    return tokenizer


def _set_roberta_template(tokenizer: _Tokenizer) -> None:
    start, end = tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")
    assert start is not None and end is not None
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", end), ("<s>", start), trim_offsets=True, add_prefix_space=False
    )
