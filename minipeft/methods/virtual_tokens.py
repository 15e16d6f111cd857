"""What prompt and prefix tuning share: virtual tokens before each sequence, which take positions of the table."""

from collections.abc import Collection
from typing import Any

from minipeft.data.batches.packing import PackedBatch
from minipeft.errors import MinipeftError, check_int
from minipeft.methods.peft_reading import check_fields
from minipeft.model.config import EncoderConfig


def check_number(num_virtual_tokens: int, config: EncoderConfig) -> None:
    """Refuse so many virtual tokens that no position is left."""
    if num_virtual_tokens >= config.max_length:
        raise MinipeftError(
            f"num_virtual_tokens {num_virtual_tokens} leaves none of the model's {config.max_length} positions to the "
            "text; take fewer"
        )


def check_length(batch: PackedBatch, num_virtual_tokens: int, config: EncoderConfig) -> None:
    """Refuse a batch with a sequence that does not fit the position table behind the virtual tokens."""
    room = config.max_length - num_virtual_tokens
    if batch.max_seqlen > room:
        raise MinipeftError(
            f"sequence {batch.lengths.index(batch.max_seqlen)} has {batch.max_seqlen} tokens, but {num_virtual_tokens} "
            f"virtual ones stand before it and the model takes {config.max_length} in all: set max_length to {room}"
        )


def write_fields(num_virtual_tokens: int, config: EncoderConfig) -> dict[str, Any]:
    """The fields that all of peft's methods with virtual tokens have."""
    return {
        "num_virtual_tokens": num_virtual_tokens,
        "token_dim": config.hidden_size,
        "num_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_transformer_submodules": 1,
    }


def read_fields(content: dict[str, Any], config: EncoderConfig, known: Collection[str]) -> int:
    """num_virtual_tokens; a shape other than the model's, and a field that is not among `known`, is refused."""
    number = check_int("num_virtual_tokens", content.get("num_virtual_tokens"))
    expected = write_fields(number, config)
    check_fields(content, {*expected, *known})
    for name, value in expected.items():
        if content.get(name, value) not in (None, value):
            raise MinipeftError(f"{name} {content[name]!r} is not the model's {value}; load the adapter's own base")
    return number
