"""Every public name says what its kind requires, and stands on the page that is made from the docstrings."""

from __future__ import annotations

import ast
import dataclasses
import html
import importlib.util
import inspect
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from conftest import REPOSITORY
from torch import nn

import minipeft
from minipeft.methods import METHODS
from minipeft.training.settings import TrainSettings

API = REPOSITORY / "walkthroughs" / "api.py"
CONFIGS = {row.config.__name__ for row in METHODS.values()}
SHAPE = re.compile(r"\((tokens|total_tokens|num_sequences|out_features)\b[^()]*,[^()]*\)")


@pytest.fixture(scope="module")
def api() -> ModuleType:
    """The page's generator, which is a script and no part of the package."""
    spec = importlib.util.spec_from_file_location("walkthroughs_api", API)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_page_says_what_the_code_says(api: ModuleType) -> None:
    page = api.PAGE.read_text(encoding="utf-8")
    assert api.body() in page, "the docstrings have changed: run python walkthroughs/api.py"


def test_every_public_name_has_a_place_on_the_page_and_no_other_has(api: ModuleType) -> None:
    page = api.PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r'<section id="(\w+)">', page)) == set(minipeft.__all__)
    words = " ".join(html.unescape(re.sub("<[^>]+>", "", page)).split())
    for name in minipeft.__all__:
        assert " ".join(api.docstring(getattr(minipeft, name)).replace("`", "").split()) in words, name


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_a_signature_on_the_page_shows_the_real_defaults(name: str, api: ModuleType) -> None:
    kind = getattr(minipeft, name)
    (function,) = ast.parse(f"def {api.signature(name, kind)}: ...").body
    assert isinstance(function, ast.FunctionDef)
    shown = [ast.literal_eval(default) for default in function.args.defaults]
    made = dataclasses.MISSING
    fields = dataclasses.fields(kind)
    assert shown == [f.default if f.default_factory is made else f.default_factory() for f in fields]


def test_every_link_of_the_page_leads_somewhere(api: ModuleType) -> None:
    page = api.PAGE.read_text(encoding="utf-8")
    anchors = set(re.findall(r' id="([^"]+)"', page))
    links = set(re.findall(r'<a [^>]*href="([^"]+)"', page))
    assert {link for link in links if link.startswith("#")} <= {f"#{anchor}" for anchor in anchors}
    for link in links:
        assert link.startswith("#") or link == "index.html" or (api.PAGE.parent / link).is_file(), link


def test_the_page_holds_every_setting_and_every_method_by_name(api: ModuleType) -> None:
    page = api.PAGE.read_text(encoding="utf-8")
    for field in dataclasses.fields(TrainSettings):
        assert f"<code>--{field.name.replace('_', '-')}</code>" in page, field.name
    for name in METHODS:
        assert f"<code>{name}</code>" in page, name


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
def test_a_docstring_says_what_its_kind_requires(name: str, api: ModuleType) -> None:
    """Settings, arguments and fields by name; shapes where tensors go in or out; errors; a method's paper and count."""
    thing = getattr(minipeft, name)
    text = api.docstring(thing)
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
        assert SHAPE.search(text + api.docstring(thing.forward)), "no shapes"
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
def test_a_member_of_a_public_class_has_a_docstring_with_its_arguments_and_shapes(
    name: str, member: str, api: ModuleType
) -> None:
    value = vars(getattr(minipeft, name))[member]
    text = api.docstring(value)
    assert text
    if not isinstance(value, property):
        for argument in parameters(value):
            assert mentioned(argument, text), f"{argument} is not explained"
        if "Tensor" in str(value.__annotations__.get("return")):
            assert SHAPE.search(text), "no shapes"
