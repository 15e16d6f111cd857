"""A checkpoint's tokenizer files → a `tokenizers.Tokenizer`, built as the class that the folder names.

tokenizer_config.json, or config.json by its model_type, names a class of transformers. Such a class has its own
normalization, split and template, which depend on settings such as do_lower_case; from tokenizer.json it takes the
vocabulary, the merges and the added tokens: see tokenizer_classes.py. For PreTrainedTokenizerFast, or where no class is
known, tokenizer.json is used as it is. This is what transformers 5 does. Other classes are errors.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Tokenizer, models

from minipeft.data.tokens.special_tokens import Settings, read_flag, special_token, special_tokens
from minipeft.errors import MinipeftError, nearest, short_repr
from minipeft.files import read_json, read_small

if TYPE_CHECKING:
    from minipeft.data.tokens.tokenizer_classes import TokenizerClass

GENERIC = ("PreTrainedTokenizer", "TokenizersBackend")  # PreTrainedTokenizerFast in transformers 4 and 5


def read_tokenizer(folder: Path) -> tuple[Tokenizer, Settings]:
    """Return a checkpoint's tokenizer and its settings, with the special tokens that the class adds to them.

    Raises:
        MinipeftError: where a file is missing, and for an unsupported class or setting.
        Exception: whatever the readers raise for damaged files.
    """
    settings = read_json(folder / "tokenizer_config.json", {})
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
        first, last = (special_token(settings[role]).content for role in kind.ends)
        ends = [(token, tokenizer.token_to_id(token)) for token in (last, first)]
        tokenizer.post_processor = kind.template(*ends)
    tokenizer.encode_special_tokens = read_flag(settings, "split_special_tokens", False)
    return tokenizer, settings


def _read_vocabulary(folder: Path, settings: Settings) -> tuple[TokenizerClass | None, Tokenizer]:
    """Return the class, None for tokenizer.json as it is, and the tokenizer of tokenizer.json or the vocabulary's."""
    name, is_named = _class_name(folder, settings)
    if name in GENERIC and (folder / "tokenizer.json").is_file():
        return None, Tokenizer.from_buffer(read_small(folder / "tokenizer.json"))
    from minipeft.data.tokens.tokenizer_classes import CLASSES

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
    config = read_json(folder / "config.json", {})
    if config.get("model_type") == "modernbert":  # whatever is named: published checkpoints name other classes
        return GENERIC[0], False
    name = settings.get("tokenizer_class") or config.get("tokenizer_class")
    base = str(name).removesuffix("Fast")
    if base in GENERIC:
        return base, True
    from minipeft.data.tokens.tokenizer_classes import ALIASES, CLASSES, MODEL_TYPES

    if name is None:
        return MODEL_TYPES.get(str(config.get("model_type")), ""), False
    base = ALIASES.get(base, base)
    if base not in CLASSES:
        raise MinipeftError(
            f"{folder}: tokenizer_class {short_repr(name)} is unsupported"
            f"{nearest(name, (*CLASSES, *ALIASES, 'PreTrainedTokenizerFast'))}. "
            "Use a checkpoint with another, or PreTrainedTokenizerFast to use tokenizer.json as it is."
        )
    return base, True


def _read_added_tokens(folder: Path, settings: Settings, tokenizer: Tokenizer) -> dict[int, AddedToken]:
    """Return the added tokens by id; read special_tokens_map.json into the settings where these have none."""
    own = tokenizer.get_added_tokens_decoder()
    if "added_tokens_decoder" in settings:
        added = {int(number): special_token(token) for number, token in settings.pop("added_tokens_decoder").items()}
        return added if (folder / "tokenizer.json").is_file() else added | own
    settings.update(read_json(folder / "special_tokens_map.json", {}))
    special = {token.content for token in special_tokens(settings)}
    added = {
        int(number): AddedToken(content, special=content in special)
        for content, number in read_json(folder / "added_tokens.json", {}).items()
    }
    return added | own


def _add_tokens(tokenizer: Tokenizer, added: dict[int, AddedToken], settings: Settings) -> None:
    """Add the tokens of the files, then the special tokens that are not among them."""
    tokens = [token for _, token in sorted(added.items(), key=lambda item: item[0])]
    known = {token.content for token in [*tokens, *tokenizer.get_added_tokens_decoder().values()]}
    for token in special_tokens(settings):
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
