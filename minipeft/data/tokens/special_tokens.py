"""The special tokens and the other settings that tokenizer_config.json holds."""

from typing import Any

from tokenizers import AddedToken

from minipeft.errors import short_repr

Settings = dict[str, Any]  # the content of tokenizer_config.json
ROLES = tuple(f"{role}_token" for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
ROBERTA_TOKENS = dict(zip(ROLES, ("<s>", "</s>", "<unk>", "</s>", "<pad>", "<s>", "<mask>"), strict=True))


def special_tokens(settings: Settings) -> list[AddedToken]:
    """Return the special tokens that the settings name, those of the seven roles first."""
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    roles = [*ROLES, *(key for key in settings if key.endswith("_token") and key not in ROLES)]
    values = [settings.get(role) for role in roles] + list(extra.values() if isinstance(extra, dict) else extra)
    return [special_token(value) for value in values if isinstance(value, (str, dict)) and value]


def special_token(value: Any) -> AddedToken:
    """Return a special token that a file gives as text, or with how it is matched."""
    if isinstance(value, dict):
        return AddedToken(**{"special": True, **{key: item for key, item in value.items() if key != "__type"}})
    return AddedToken(value, special=True)


def read_flag(settings: Settings, name: str, default: bool | None) -> Any:
    """Return a setting that is true or false, or null if that is the default."""
    value = settings.get(name, default)
    if not isinstance(value, bool) and not (value is None and default is None):
        raise ValueError(f"{name} {short_repr(value)} is not true or false")
    return value
