"""What the configs of the methods have in common: unknown options are named, and settings are checked."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from minipeft.errors import MinipeftError, nearest

PEFT_OPTIONS = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "target_modules": "targets"}  # → ours


class MethodConfig:
    """The base of the frozen dataclasses that are methods' configs.

    Raises:
        MinipeftError: for an option that the method does not have; the message names the one that was probably meant.
    """

    def __new__(cls, *values: Any, **options: Any) -> Any:
        known = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        for name in options:
            if name not in known:
                meant = nearest(PEFT_OPTIONS.get(name, name), known)
                its = ", ".join(known) or "none"
                raise MinipeftError(f"{cls.__name__} has no option {name!r}{meant}. Its options are: {its}.")
        return super().__new__(cls)

    def __init_subclass__(cls) -> None:
        cls.__repr__ = MethodConfig.__repr__  # type: ignore[method-assign]  # before @dataclass, which keeps it

    def __repr__(self) -> str:
        by_place = sorted(fields(self), key=lambda field: bool(field.kw_only))  # type: ignore[arg-type]
        values = {field.name: getattr(self, field.name) for field in by_place}
        return f"{type(self).__name__}({', '.join(f'{n}={v!r}' for n, v in values.items() if v is not None)})"


@dataclass(frozen=True)
class LayerMethodConfig(MethodConfig):
    """The base of the methods that can be restricted to the top layers.

    Args:
        train_layers: How many layers at the top get the method; None for all. Those below and the embeddings are then
            frozen and compute without dropout.
    """

    train_layers: int | None = field(default=None, kw_only=True)


def check_settings(method: Any, **checks: Callable[[str, Any], Any]) -> None:
    """Set the fields of a frozen config to what their checks, (name, value) → value, return."""
    for name, check in checks.items():
        object.__setattr__(method, name, check(name, getattr(method, name)))
