"""Every public name and its members say in their docstrings what their kind requires."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest
from torch import nn

import minipeft
from minipeft.methods import METHODS

CONFIGS = {row.config.__name__ for row in METHODS.values()}
SHAPE = re.compile(r"\((tokens|total_tokens|num_sequences|out_features)\b[^()]*,[^()]*\)")


def docstring(thing: Any) -> str:
    """A thing's own docstring, not one that it inherits."""
    return inspect.cleandoc(thing.__doc__ or "")


def mentioned(name: str, text: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", text) is not None


def own_fields(thing: type) -> list[str]:
    """The fields that a dataclass adds to those of its bases."""
    return [
        name for name in vars(thing).get("__annotations__", {}) if name in {f.name for f in dataclasses.fields(thing)}
    ]


def parameters(thing: Any) -> list[str]:
    return [name for name in inspect.signature(thing).parameters if name != "self"]


def public_members(thing: type) -> Iterator[tuple[str, Any]]:
    """What a class itself defines for its users."""
    for name, value in vars(thing).items():
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
            yield name, value


@pytest.mark.parametrize("name", minipeft.__all__)
def test_a_docstring_says_what_its_kind_requires(name: str) -> None:
    """Settings, arguments and fields by name; shapes where tensors go in or out; errors; a method's paper and count."""
    thing = getattr(minipeft, name)
    text = docstring(thing)
    assert text and not text.startswith(f"{name}("), "a dataclass without a docstring gets its signature for one"
    if name in CONFIGS:
        for setting in own_fields(thing):
            assert mentioned(setting, text), f"{setting} is not explained"
        assert "Parameters: " in text and ("Raises:" in text or not own_fields(thing))
        assert re.search(r"\([A-Z].+ (19|20)\d\d[,);]", text) or "baseline" in text, "no source"
    elif inspect.isfunction(thing):
        for argument in parameters(thing):
            assert mentioned(argument, text), f"{argument} is not explained"
        assert re.search(r"Raises:|count_parameters|unmerge", text + name), "no errors"
    elif issubclass(thing, nn.Module):
        for argument in parameters(thing):
            assert mentioned(argument, text), f"{argument} is not explained"
        assert re.search(r"\([A-Z].+ (19|20)\d\d[,)]", text), "no source"
        assert SHAPE.search(text + docstring(thing.forward)), "no shapes"
    elif name in ("Classifier", "Regressor"):  # its settings are those of `train`, which explains them
        assert mentioned("settings", text) and parameters(thing)
    elif not issubclass(thing, Exception):
        for field in own_fields(thing) if dataclasses.is_dataclass(thing) else parameters(thing):
            assert mentioned(field, text), f"{field} is not explained"


MEMBERS = [
    (name, member)
    for name in minipeft.__all__
    if inspect.isclass(getattr(minipeft, name))
    for member, _ in public_members(getattr(minipeft, name))
]


@pytest.mark.parametrize(("name", "member"), MEMBERS, ids=lambda part: part)
def test_a_member_of_a_public_class_has_a_docstring_with_its_arguments_and_shapes(name: str, member: str) -> None:
    value = vars(getattr(minipeft, name))[member]
    text = docstring(value)
    assert text
    if not isinstance(value, property):
        for argument in parameters(value):
            assert mentioned(argument, text), f"{argument} is not explained"
        if "Tensor" in str(value.__annotations__.get("return")):
            assert SHAPE.search(text), "no shapes"
