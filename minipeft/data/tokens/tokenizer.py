"""Text → token ids: byte-level BPE, WordPiece or Unigram with the `tokenizers` library and the family's template.

roberta, xlm-roberta, camembert    <s> A </s>    and    <s> A </s></s> B </s>
the other families                 [CLS] A [SEP] and    [CLS] A [SEP] B [SEP], token types 0 … 0 1 … 1
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Encoding, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as _Tokenizer

from minipeft.errors import MinipeftError, first_line, is_unicode, short_repr
from minipeft.files import read_small

ROBERTA_SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


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

    Attributes:
        truncated: The number of examples that `encode` has truncated so far.
    """

    def __init__(self, tokenizer: _Tokenizer, folder: Path) -> None:
        self.tokenizer = tokenizer
        self.folder = folder
        self.truncated = 0

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
        """Like `encode`, but return `tokenizers.Encoding` objects, with .ids and .type_ids (BERT's token types).

        Args:
            texts: the texts.
            pairs: their second texts, or None.
            max_length: the most tokens of a sequence, special tokens included.
        """
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
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(max_length, strategy="longest_first")
        inputs = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        with _rust_errors(f"{self.folder}: the tokenizer cannot encode the texts"):
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

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens."""
        return self.tokenizer.decode(list(ids))

    def save(self, folder: Path) -> None:
        """Write `folder`/tokenizer.json, without truncation or padding settings."""
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.save(str(folder / "tokenizer.json"))


def load_tokenizer(name_or_dir: str | Path) -> Tokenizer:
    """Load a checkpoint's tokenizer from tokenizer.json, or from vocab.json and merges.txt, vocab.txt or spm.model.

    Args:
        name_or_dir: A name or folder, as in `load_pretrained`.

    Raises:
        MinipeftError: for a name that cannot be found or downloaded, and for missing or damaged files.
    """
    from minipeft.hub.hub import resolve_model

    folder, _ = resolve_model(str(name_or_dir))
    whole, vocab, merges = folder / "tokenizer.json", folder / "vocab.json", folder / "merges.txt"
    with _rust_errors(f"{folder}: the tokenizer files cannot be read"):
        if whole.is_file():
            tokenizer = _Tokenizer.from_buffer(read_small(whole))
            _add_special_tokens(tokenizer, folder)
            return Tokenizer(tokenizer, folder)
        if vocab.is_file() and merges.is_file():
            for path in (vocab, merges):
                read_small(path)  # raises for a file that is too large
            bpe = _byte_level_bpe(models.BPE.from_file(str(vocab), str(merges)))
            if bpe.token_to_id("<s>") is None:
                raise ValueError("vocab.json has no <s>")
            return Tokenizer(bpe, folder)
        if (folder / "vocab.txt").is_file():
            return Tokenizer(_word_piece(folder), folder)
        if (folder / "spm.model").is_file():
            from minipeft.data.tokens.sentencepiece import read_spm

            return Tokenizer(read_spm(folder / "spm.model"), folder)
    for name in ("sentencepiece.bpe.model", "spiece.model"):
        if (folder / name).is_file():
            raise MinipeftError(
                f"{folder}: {name} is a SentencePiece model, which is unsupported without a tokenizer.json. "
                "Save the tokenizer with transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
            )
    raise MinipeftError(
        f"{folder}: no tokenizer.json, vocab.json + merges.txt, vocab.txt or spm.model; "
        "put the checkpoint's tokenizer files there"
    )


def _settings(folder: Path) -> dict[str, Any]:
    """Return the content of tokenizer_config.json, empty if there is none."""
    path = folder / "tokenizer_config.json"
    settings = json.loads(read_small(path)) if path.is_file() else {}
    if not isinstance(settings, dict):
        raise ValueError("tokenizer_config.json holds no JSON object")
    return settings


def _add_special_tokens(tokenizer: _Tokenizer, folder: Path) -> None:
    """Keep the special tokens that only tokenizer_config.json names whole, where the vocabulary has them."""
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for name, value in _settings(folder).items():
        token = value.get("content") if isinstance(value, dict) else value
        if not name.endswith("_token") or not isinstance(token, str) or token in known:
            continue
        if tokenizer.token_to_id(token) is not None:
            tokenizer.add_special_tokens([token])


def _word_piece(folder: Path) -> _Tokenizer:
    """Build BERT's tokenizer from vocab.txt and the settings in tokenizer_config.json, as transformers does."""
    settings = _settings(folder)
    read_small(folder / "vocab.txt")  # raises for a file that is too large
    tokenizer = _Tokenizer(models.WordPiece.from_file(str(folder / "vocab.txt"), unk_token="[UNK]"))
    tokenizer.add_special_tokens(["[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"])
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    separator, start = tokenizer.token_to_id("[SEP]"), tokenizer.token_to_id("[CLS]")
    if separator is None or start is None:
        raise ValueError("vocab.txt has no [CLS] or [SEP]")
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", separator), ("[CLS]", start))
    return tokenizer


@contextmanager
def _rust_errors(message: str) -> Iterator[None]:
    """Convert the errors of `tokenizers`: a plain Exception for a bad file, a BaseException if its Rust code panics."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise MinipeftError(f"{message} ({first_line(error)}); fetch the checkpoint again") from None


def train_tokenizer(lines: Iterable[str], vocab_size: int, folder: Path) -> Tokenizer:
    """Train a byte-level BPE tokenizer and save it in `folder`.

    Text is lower-cased, so that a small vocabulary needs one entry per word instead of two.

    Reference: Sennrich et al. 2016; on bytes, Radford et al. 2019.
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
    trained = Tokenizer(tokenizer, folder)
    trained.save(folder)
    # This class reads tokenizer.json unchanged; RobertaTokenizer of transformers 5 would drop the lower-casing.
    names = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": 512,
        "model_input_names": ["input_ids", "attention_mask"],
        **{f"{role}_token": token for role, token in names.items()},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return trained


def _byte_level_bpe(model: models.BPE, lowercase: bool = False) -> _Tokenizer:
    """RoBERTa's pipeline around a BPE model: GPT-2's byte-level split, its special tokens, its template."""
    tokenizer = _Tokenizer(model)
    if lowercase:
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=lowercase)
    tokenizer.decoder = decoders.ByteLevel()
    if tokenizer.token_to_id("<s>") is not None:
        mask = AddedToken(
            "<mask>", lstrip=True
        )  # lstrip: it includes the space before it, as in roberta-base's tokenizer.json
        tokenizer.add_special_tokens([*ROBERTA_SPECIALS[:-1], mask])
        _set_roberta_template(tokenizer)
    return tokenizer


def _set_roberta_template(tokenizer: _Tokenizer) -> None:
    start, end = tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")
    assert start is not None and end is not None
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", end), ("<s>", start), trim_offsets=True, add_prefix_space=False
    )
