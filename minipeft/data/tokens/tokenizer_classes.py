"""The table of tokenizer classes: what each class of transformers makes of a vocabulary."""

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from minipeft.data.tokens.special_tokens import ROBERTA_TOKENS, ROLES, Settings, read_flag, special_token
from minipeft.data.tokens.tokenizer_limits import pipeline_steps

BERT_TOKENS = dict(zip(ROLES[2:], ("[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"), strict=True))
DEBERTA_TOKENS = {"bos_token": "[CLS]", "eos_token": "[SEP]", **BERT_TOKENS}


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


def _bert(tokenizer: Tokenizer, settings: Settings) -> None:
    model = tokenizer.model
    model.unk_token = special_token(settings["unk_token"]).content
    model.continuing_subword_prefix, model.max_input_chars_per_word = "##", 100
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=read_flag(settings, "do_lower_case", True),
        strip_accents=read_flag(settings, "strip_accents", None),
        handle_chinese_chars=read_flag(settings, "tokenize_chinese_chars", True),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()


def _roberta(tokenizer: Tokenizer, settings: Settings) -> None:
    model = tokenizer.model
    model.dropout, model.unk_token = None, None
    model.fuse_unk = model.byte_fallback = model.ignore_merges = False
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=read_flag(settings, "add_prefix_space", False))
    tokenizer.decoder = decoders.ByteLevel()


def _xlm_roberta(tokenizer: Tokenizer, settings: Settings) -> None:
    tokenizer.normalizer = _charsmap(tokenizer)
    prepend = "always" if read_flag(settings, "add_prefix_space", True) else "never"
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
    lowercase = [normalizers.Lowercase()] if read_flag(settings, "do_lower_case", False) else []
    spaces = normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " ")
    charsmap = _charsmap(tokenizer)
    cleaning = (
        [charsmap, *spm_normalizers()] if charsmap else [spaces, normalizers.NFC(), normalizers.Strip(left=False)]
    )
    tokenizer.normalizer = normalizers.Sequence([*lowercase, *cleaning])
    prepend = "always" if read_flag(settings, "add_prefix_space", True) else "first"
    split = [pre_tokenizers.Punctuation("isolated")] if read_flag(settings, "split_by_punct", False) else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, pre_tokenizers.Metaspace(prepend_scheme=prepend)])
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend)


def _set_unknown(tokenizer: Tokenizer, settings: Settings, usual: str) -> None:
    """Let a Unigram model use the unknown token of the settings, if it is not the usual one."""
    token = special_token(settings["unk_token"]).content
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
MODEL_TYPES = {
    "roberta": "RobertaTokenizer",
    "bert": "BertTokenizer",
    "electra": "BertTokenizer",
    "distilbert": "DistilBertTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "camembert": "CamembertTokenizer",
    "deberta-v2": "DebertaV2Tokenizer",
}
