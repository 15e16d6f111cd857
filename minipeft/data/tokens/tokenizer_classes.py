"""A checkpoint's tokenizer files → a `tokenizers.Tokenizer`, built as the class that the folder names.

tokenizer_config.json, or config.json by its model_type, names a class of transformers. Such a class has its own
normalization, split and template, which depend on settings such as do_lower_case; from tokenizer.json it takes the
vocabulary, the merges and the added tokens. For PreTrainedTokenizerFast, or where no class is known,
tokenizer.json is used as it is. This is what transformers 5 does. Other classes are errors.
"""

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from minipeft.data.tokens.tokenizer_limits import pipeline_steps
from minipeft.errors import MinipeftError, nearest, short_repr
from minipeft.files import read_json, read_small

Settings = dict[str, Any]  # the content of tokenizer_config.json
ROLES = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
ROBERTA_TOKENS = dict(zip(ROLES, ("<s>", "</s>", "<unk>", "</s>", "<pad>", "<s>", "<mask>"), strict=True))
BERT_TOKENS = dict(zip(ROLES[2:], ("[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"), strict=True))


@dataclass(frozen=True)
class TokenizerClass:
    """What a class of transformers makes of a vocabulary."""

    model: str  # its kind of model, as tokenizer.json names it
    tokens: Mapping[str, str]  # its special tokens by role, where the settings name no others
    build: Callable[[Tokenizer, Settings], None]  # sets the normalizer, the pre-tokenizer and the decoder
    template: Callable[..., Any] = processors.RobertaProcessing  # adds one token before and one after each text
    ends: tuple[str, str] = ("cls_token", "sep_token")  # the roles of these two tokens
    files: tuple[str, ...] = ()  # the vocabulary without a tokenizer.json
    input_names: tuple[str, ...] = ("input_ids", "attention_mask")  # what transformers passes to the model


def read_tokenizer(folder: Path) -> tuple[Tokenizer, Settings]:
    """Return a checkpoint's tokenizer and its settings, with the special tokens that the class adds to them.

    Raises:
        MinipeftError: where a file is missing, and for an unsupported class or setting.
        Exception: whatever the readers raise for damaged files.
    """
    settings = _read_object(folder / "tokenizer_config.json")
    if settings.get("fast_tokenizer_files"):
        raise MinipeftError(f"{folder}: fast_tokenizer_files in tokenizer_config.json is unsupported. Remove it.")
    kind, loaded = _read_vocabulary(folder, settings)
    direction = (loaded.truncation or {}).get("direction", "right")
    if settings.setdefault("truncation_side", direction) not in ("left", "right"):
        raise ValueError(f"truncation_side {short_repr(settings['truncation_side'])} is not left or right")
    added = _read_added_tokens(folder, settings, loaded)
    tokenizer = loaded
    if kind:
        known = {token.content for token in added.values()}
        for token in (kind.tokens[role] for role in kind.ends if not settings.get(role)):
            if token not in known and loaded.token_to_id(token) is None:
                raise ValueError(f"the vocabulary has no {token}")
        settings.update({role: settings.get(role) or token for role, token in kind.tokens.items()})
        settings.setdefault("model_input_names", list(kind.input_names))
        tokenizer = Tokenizer(loaded.model)  # without the added tokens, which may be others, and the post-processor
        tokenizer.normalizer = loaded.normalizer
        kind.build(tokenizer, settings)
    _add_tokens(tokenizer, added, settings)
    if kind:
        first, last = (_token(settings[role]).content for role in kind.ends)
        ends = [(token, tokenizer.token_to_id(token)) for token in (last, first)]
        tokenizer.post_processor = kind.template(*ends)
    tokenizer.encode_special_tokens = _flag(settings, "split_special_tokens", False)
    return tokenizer, settings


def _read_object(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _read_vocabulary(folder: Path, settings: Settings) -> tuple[TokenizerClass | None, Tokenizer]:
    """Return the class, None for tokenizer.json as it is, and the tokenizer of tokenizer.json or the vocabulary's."""
    name, is_named = _class_name(folder, settings)
    kind = CLASSES.get(name)
    if (folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_buffer(read_small(folder / "tokenizer.json"))
        model = type(tokenizer.model).__name__
        if kind and kind.model != model and is_named:
            raise MinipeftError(
                f"{folder}: tokenizer_class {name} needs a {kind.model} model, and tokenizer.json has {model}. "
                "Correct tokenizer_class, or remove it."
            )
        return kind if kind and kind.model == model else None, tokenizer
    for known, kind in CLASSES.items():
        paths = [folder / file for file in kind.files]
        if name in ("", known) and paths and all(path.is_file() for path in paths):
            for path in paths:
                read_small(path)  # raises for a file that is too large
            if kind.model == "Unigram":
                from minipeft.data.tokens.sentencepiece import read_spm

                return kind, read_spm(*paths)
            if not name and kind.model == "BPE":  # without any settings, as in roberta-base's tokenizer.json
                settings["mask_token"] = {"content": "<mask>", "lstrip": True}
            return kind, Tokenizer(getattr(models, kind.model).from_file(*map(str, paths)))
    for file in ("sentencepiece.bpe.model", "spiece.model"):
        if (folder / file).is_file():
            raise MinipeftError(
                f"{folder}: {file} is a SentencePiece model, which is unsupported without a tokenizer.json. "
                "Save the tokenizer with transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
            )
    needed = "tokenizer.json" if name else "tokenizer.json, vocab.json + merges.txt, vocab.txt or spm.model"
    if name in CLASSES and CLASSES[name].files:
        needed = f"tokenizer.json or {' + '.join(CLASSES[name].files)}"
    raise MinipeftError(f"{folder}: no {needed}; put the checkpoint's tokenizer files there")


def _class_name(folder: Path, settings: Settings) -> tuple[str, bool]:
    """Return the name of the class, "" if it is unknown, and whether the folder says it."""
    config = _read_object(folder / "config.json")
    if config.get("model_type") == "modernbert":  # whatever is named: published checkpoints name other classes
        return GENERIC[0], False
    name = settings.get("tokenizer_class") or config.get("tokenizer_class")
    if name is None:
        return MODEL_TYPES.get(str(config.get("model_type")), ""), False
    base = str(name).removesuffix("Fast")
    base = ALIASES.get(base, base)
    if base not in CLASSES and base not in GENERIC:
        raise MinipeftError(
            f"{folder}: tokenizer_class {short_repr(name)} is unsupported"
            f"{nearest(name, (*CLASSES, *ALIASES, 'PreTrainedTokenizerFast'))}. "
            "Use a checkpoint with another, or PreTrainedTokenizerFast to use tokenizer.json as it is."
        )
    return base, True


def _token(value: Any) -> AddedToken:
    """Return a special token that a file gives as text, or with how it is matched."""
    if isinstance(value, dict):
        return AddedToken(**{"special": True, **{key: item for key, item in value.items() if key != "__type"}})
    return AddedToken(value, special=True)


def _read_added_tokens(folder: Path, settings: Settings, tokenizer: Tokenizer) -> dict[int, AddedToken]:
    """Return the added tokens by id; read special_tokens_map.json into the settings where these have none."""
    own = tokenizer.get_added_tokens_decoder()
    if "added_tokens_decoder" in settings:
        added = {int(number): _token(token) for number, token in settings.pop("added_tokens_decoder").items()}
        return added if (folder / "tokenizer.json").is_file() else added | own
    settings.update(_read_object(folder / "special_tokens_map.json"))
    special = {token.content for token in _special_tokens(settings)}
    added = {
        int(number): AddedToken(content, special=content in special)
        for content, number in _read_object(folder / "added_tokens.json").items()
    }
    return added | own


def _special_tokens(settings: Settings) -> list[AddedToken]:
    """Return the special tokens that the settings name, those of the seven roles first."""
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    roles = [*ROLES, *(key for key in settings if key.endswith("_token") and key not in ROLES)]
    values = [settings.get(role) for role in roles] + list(extra.values() if isinstance(extra, dict) else extra)
    return [_token(value) for value in values if isinstance(value, (str, dict)) and value]


def _add_tokens(tokenizer: Tokenizer, added: dict[int, AddedToken], settings: Settings) -> None:
    """Add the tokens of the files, then the special tokens that are not among them.

    Raises:
        ValueError: for a token that has another id in the vocabulary than in the file.
    """
    tokens = [token for _, token in sorted(added.items(), key=lambda item: item[0])]
    known = {token.content for token in [*tokens, *tokenizer.get_added_tokens_decoder().values()]}
    for token in _special_tokens(settings):
        if token.content not in known:
            tokens.append(token)
            known.add(token.content)
    tokenizer.add_tokens(tokens)
    for number, token in added.items():
        if (found := tokenizer.token_to_id(token.content)) != number:
            raise ValueError(
                f"the id of the added token {short_repr(token.content)} is {number} in added_tokens_decoder or "
                f"added_tokens.json, and {found} in the vocabulary"
            )


def _flag(settings: Settings, name: str, default: bool | None) -> Any:
    """Return a setting that is true or false, or null if that is the default."""
    value = settings.get(name, default)
    if not isinstance(value, bool) and not (value is None and default is None):
        raise ValueError(f"{name} {short_repr(value)} is not true or false")
    return value


def _bert(tokenizer: Tokenizer, settings: Settings) -> None:
    model = tokenizer.model
    model.unk_token = _token(settings["unk_token"]).content
    model.continuing_subword_prefix, model.max_input_chars_per_word = "##", 100
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=_flag(settings, "do_lower_case", True),
        strip_accents=_flag(settings, "strip_accents", None),
        handle_chinese_chars=_flag(settings, "tokenize_chinese_chars", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()


def _roberta(tokenizer: Tokenizer, settings: Settings) -> None:
    model = tokenizer.model
    model.dropout, model.unk_token = None, None
    model.fuse_unk = model.byte_fallback = model.ignore_merges = False
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=_flag(settings, "add_prefix_space", False))
    tokenizer.decoder = decoders.ByteLevel()


def _xlm_roberta(tokenizer: Tokenizer, settings: Settings) -> None:
    tokenizer.normalizer = _charsmap(tokenizer)
    prepend = "always" if _flag(settings, "add_prefix_space", True) else "never"
    metaspace = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend)


def _camembert(tokenizer: Tokenizer, settings: Settings) -> None:
    if isinstance(settings["mask_token"], str):
        settings["mask_token"] = {"content": settings["mask_token"], "lstrip": True}
    _set_unknown(tokenizer, settings, "<unk>")
    _xlm_roberta(tokenizer, settings)


def _deberta(tokenizer: Tokenizer, settings: Settings) -> None:
    """With a map of characters the normalization is SentencePiece's, which DeBERTa was pretrained with."""
    from minipeft.data.tokens.sentencepiece import spm_normalizers

    _set_unknown(tokenizer, settings, "[UNK]")
    lowercase = [normalizers.Lowercase()] if _flag(settings, "do_lower_case", False) else []
    spaces = normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " ")
    charsmap = _charsmap(tokenizer)
    cleaning = (
        [charsmap, *spm_normalizers()] if charsmap else [spaces, normalizers.NFC(), normalizers.Strip(left=False)]
    )
    tokenizer.normalizer = normalizers.Sequence([*lowercase, *cleaning])
    prepend = "always" if _flag(settings, "add_prefix_space", True) else "first"
    split = [pre_tokenizers.Punctuation("isolated")] if _flag(settings, "split_by_punct", False) else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, pre_tokenizers.Metaspace(prepend_scheme=prepend)])
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend)


def _set_unknown(tokenizer: Tokenizer, settings: Settings, usual: str) -> None:
    """Let a Unigram model use the unknown token of the settings, if it is not the usual one."""
    token = _token(settings["unk_token"]).content
    if token != usual:
        vocabulary = json.loads(tokenizer.model.__getstate__())["vocab"]
        tokenizer.model = models.Unigram([(piece, score) for piece, score in vocabulary], tokenizer.token_to_id(token))


def _charsmap(tokenizer: Tokenizer) -> normalizers.Normalizer | None:
    """Return SentencePiece's map of characters in a normalizer."""
    for step in pipeline_steps(tokenizer.normalizer):
        if step["type"] == "Precompiled":
            return normalizers.Precompiled(base64.b64decode(step["precompiled_charsmap"]))
    return None


_BERT = TokenizerClass(
    "WordPiece",
    BERT_TOKENS,
    _bert,
    processors.BertProcessing,
    files=("vocab.txt",),
    input_names=("input_ids", "token_type_ids", "attention_mask"),
)
_XLM_ROBERTA = TokenizerClass("Unigram", ROBERTA_TOKENS, _xlm_roberta, ends=("bos_token", "eos_token"))
DEBERTA_TOKENS = {"bos_token": "[CLS]", "eos_token": "[SEP]", **BERT_TOKENS}
CLASSES = {
    "RobertaTokenizer": TokenizerClass("BPE", ROBERTA_TOKENS, _roberta, files=("vocab.json", "merges.txt")),
    "BertTokenizer": _BERT,
    "DistilBertTokenizer": replace(_BERT, input_names=("input_ids", "attention_mask")),
    "XLMRobertaTokenizer": _XLM_ROBERTA,
    "CamembertTokenizer": replace(_XLM_ROBERTA, build=_camembert),
    "DebertaV2Tokenizer": replace(_BERT, model="Unigram", tokens=DEBERTA_TOKENS, build=_deberta, files=("spm.model",)),
}
ALIASES = {
    "ElectraTokenizer": "BertTokenizer",
    "MobileBertTokenizer": "BertTokenizer",
    "BartTokenizer": "RobertaTokenizer",
}
GENERIC = ("PreTrainedTokenizer", "TokenizersBackend")  # PreTrainedTokenizerFast in transformers 4 and 5
MODEL_TYPES = {
    "roberta": "RobertaTokenizer",
    "bert": "BertTokenizer",
    "electra": "BertTokenizer",
    "distilbert": "DistilBertTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "camembert": "CamembertTokenizer",
    "deberta-v2": "DebertaV2Tokenizer",
}
