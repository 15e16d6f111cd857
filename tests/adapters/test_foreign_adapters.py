"""Adapters as peft and others write them: each opens with peft's logits, or the message names the field."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAMILY_FIELDS, OTHER_NAMES, REPOSITORY, SMALL, environment, largest, padded, ragged
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from minipeft import AdapterSet, MinipeftError, load_adapter, load_pretrained, load_run, merge, pack, train
from minipeft.adapters.adapter_file import read_adapter
from minipeft.cli.cli import main
from minipeft.methods.peft_format.reading import matching

LENGTHS = (7, 1, 20, 3)
QUERY = {"distilbert": "q_lin", "deberta-v2": "query_proj", "modernbert": "Wqkv"}
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def made(model_type: str, folder: Path, kind: str = "SequenceClassification") -> Any:
    """Save a random transformers model with 2 layers of width 16 and 3 labels; return it."""
    import transformers

    torch.manual_seed(3)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    shape = {**SMALL, **small, **FAMILY_FIELDS.get(model_type, {}), "num_labels": 3, "max_position_embeddings": 64}
    shape |= {"deberta-v2": {"position_buckets": 32}, "modernbert": {"pad_token_id": 0}}.get(model_type, {})
    shape = {OTHER_NAMES.get(model_type, {}).get(name, name): value for name, value in shape.items()}
    config = transformers.AutoConfig.for_model(model_type, **shape)
    model = getattr(transformers, f"AutoModelFor{kind}").from_config(config).eval()
    model.save_pretrained(folder)
    return model


def saved(model: Any, config: Any, folder: Path) -> Any:
    """Save an adapter of peft's whose values have moved at random; return the wrapped model."""
    from peft import get_peft_model

    wrapped = get_peft_model(model, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    wrapped.eval().save_pretrained(folder)
    return wrapped


def edit(folder: Path, **fields: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def write_details(folder: Path, text: str) -> None:
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, metadata={"format": "pt", "minipeft": text})


# ---------------------------------------------------------------------------------------------- every field of peft's


FIELDS: list[dict[str, Any]] = [
    {"target_modules": "all-linear"},
    {"target_modules": "all-linear", "use_rslora": True, "alpha_pattern": {"dense": 7}},
    {"target_modules": "all-linear", "use_dora": True, "bias": "all"},
    {"target_modules": "all-linear", "init_lora_weights": "pissa", "exclude_modules": r".*layers?\.0\..*"},
    {"target_modules": "all-linear", "task_type": None, "rank_pattern": {"dense": 2}},
    {"exclude_modules": ["layer.0.attention.self.query"]},
    {"layers_to_transform": [1], "layers_pattern": "layer"},
    {"layers_to_transform": 1},
    {"rank_pattern": {r".*\.0\..*": 2}, "alpha_pattern": {r"layers?\.\d+\..*": 7}},
    {"target_modules": r".*\.1\..*(query|query_proj|q_lin|Wqkv)"},
    {"target_modules": r"(?!.*\.0\.).*(query|query_proj|q_lin|Wqkv)"},
    {"modules_to_save": ["classifier", "word_embeddings"]},
    {"modules_to_save": ["classifier", "layer.0"]},
    {"target_parameters": ["classifier.weight"]},
    {"trainable_token_indices": [3, 4]},
    {"lora_bias": True},
    {"bias": "lora_only", "use_dora": True},
    {"init_lora_weights": "olora"},
    {"init_lora_weights": "orthogonal", "r": 4},
    {"use_qalora": True, "qalora_group_size": 4},
    {"alora_invocation_tokens": [1]},
]


@pytest.mark.parametrize("fields", FIELDS, ids=str)
@pytest.mark.parametrize("model_type", ["roberta", "bert", "deberta-v2", "modernbert"])
def test_a_lora_of_pefts_opens_with_its_logits_or_the_field_is_named(
    model_type: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    from peft import LoraConfig

    common = {"r": 3, "lora_alpha": 5, "task_type": "SEQ_CLS", "target_modules": [QUERY.get(model_type, "query")]}
    reference = made(model_type, tmp_path / "base")
    try:
        wrapped = saved(reference, LoraConfig(**(common | fields)), tmp_path / "adapter")
    except (ValueError, TypeError):
        pytest.skip("peft cannot make this one")
    try:
        model = load_adapter(load_pretrained(tmp_path / "base", 3), tmp_path / "adapter").eval()
    except MinipeftError as error:
        assert any(name in str(error) for name in fields) and "\n" not in str(error)
        return
    ids = ragged(LENGTHS)
    with torch.no_grad():
        theirs = wrapped(**padded(ids, reference.config.pad_token_id)).logits
        assert largest(model(pack(ids, config=model.config)), theirs) < 1e-5


@pytest.mark.parametrize("kind", ["VeraConfig", "AdaLoraConfig"])
def test_another_method_on_the_head_is_refused_by_the_field(kind: str, tmp_path: Path) -> None:
    import peft

    config = getattr(peft, kind)(
        target_modules="all-linear", task_type="SEQ_CLS", **{"total_step": 9} if "A" in kind else {}
    )
    saved(made("bert", tmp_path / "base"), config, tmp_path / "adapter")
    with pytest.raises(MinipeftError, match=r"target_modules names bert\.pooler\.dense, a layer of the head"):
        load_adapter(load_pretrained(tmp_path / "base", 3), tmp_path / "adapter")


@pytest.mark.parametrize("with_safetensors", [True, False])
def test_a_pickled_adapter_is_read_as_tensors_alone(with_safetensors: bool, tmp_path: Path) -> None:
    from peft import LoraConfig

    adapter = tmp_path / "adapter"
    wrapped = saved(made("roberta", tmp_path / "base"), LoraConfig(task_type="SEQ_CLS"), adapter)
    state: dict[str, Any] = load_file(adapter / WEIGHTS)
    if not with_safetensors:
        (adapter / WEIGHTS).unlink()
    torch.save(state, adapter / "adapter_model.bin")
    ids = ragged(LENGTHS)
    model = load_adapter(load_pretrained(tmp_path / "base", 3), adapter).eval()
    with torch.no_grad():
        assert largest(model(pack(ids, config=model.config)), wrapped(**padded(ids, 1)).logits) < 1e-5
    torch.save(state | {"x": os.getcwd}, adapter / "adapter_model.bin")
    if not with_safetensors:
        with pytest.raises(MinipeftError, match=r"adapter_model\.bin: not readable as tensors alone"):
            load_adapter(load_pretrained(tmp_path / "base", 3), adapter)


# ------------------------------------------------------------------------------------------- a part of a head only


@pytest.fixture(params=["deberta-v2", "bert"])
def headless(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, str]:
    """A language model, an adapter with a classifier but without what stands before it, and the missing module."""
    from peft import LoraConfig

    base, adapter = tmp_path / "base", tmp_path / "adapter"
    made(request.param, base, "MaskedLM")
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(base)
    target = QUERY.get(request.param, "query")
    saved(
        model,
        LoraConfig(task_type="SEQ_CLS", target_modules=[target], modules_to_save=["classifier", "score"]),
        adapter,
    )
    edit(adapter, base_model_name_or_path=str(base))
    return base, adapter, "pooler.dense.weight"


ENTRY_POINTS: dict[str, Callable[[Path, Path, Path], Any]] = {
    "load_adapter": lambda base, adapter, out: load_adapter(load_pretrained(base, 3), adapter),
    "load_run": lambda base, adapter, out: load_run(adapter, "cpu"),
    "AdapterSet": lambda base, adapter, out: AdapterSet(load_pretrained(base, 2)).load("a", adapter),
    "AdapterSet of as many labels": lambda base, adapter, out: AdapterSet(load_pretrained(base, 3)).load("a", adapter),
    "init_adapter": lambda base, adapter, out: train(
        data=[{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(20)],
        model=str(base), init_adapter=str(adapter), method=read_adapter(adapter, load_pretrained(base).config).method,
        device="cpu", epochs=1, output=str(out), quiet=True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("entry", ENTRY_POINTS)
def test_a_tensor_of_the_head_that_nothing_has_is_an_error_everywhere(
    entry: str, headless: tuple[Path, Path, str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    base, adapter, missing = headless
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).write_bytes((tiny_checkpoint / name).read_bytes())
    with pytest.raises(MinipeftError, match=f"{missing} of the head is neither in the adapter nor in the base"):
        ENTRY_POINTS[entry](base, adapter, tmp_path / "run")


def test_the_commands_name_it_too(headless: tuple[Path, Path, str], tmp_path: Path, capsys: Any) -> None:
    _, adapter, missing = headless
    for command in (["merge", adapter, tmp_path / "out"], ["predict", adapter, "--text", "a"]):
        capsys.readouterr()
        assert main([str(word) for word in command]) == 2
        error = capsys.readouterr().err
        assert missing in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_base_may_have_what_the_adapter_lacks(tmp_path: Path) -> None:
    from peft import LoraConfig

    config = LoraConfig(task_type="SEQ_CLS", target_modules=["query_proj"], modules_to_save=["classifier"])
    wrapped = saved(made("deberta-v2", tmp_path / "base"), config, tmp_path / "adapter")
    ids = ragged(LENGTHS)
    with torch.no_grad():
        expected = wrapped(**padded(ids, 0)).logits
        model = load_adapter(load_pretrained(tmp_path / "base", 3), tmp_path / "adapter").eval()
        assert largest(model(pack(ids, config=model.config)), expected) < 1e-5
        assert largest(merge(model)(pack(ids, config=model.config)), expected) < 1e-5
        adapters = AdapterSet(load_pretrained(tmp_path / "base", 3))
        alone = adapters(pack(ids, config=model.config))
        adapters.load("a", tmp_path / "adapter")
        mixed = adapters(pack(ids, config=model.config), [None, "a", None, "a"])
        assert largest(adapters(pack(ids, config=model.config), ["a"] * len(ids)), expected) < 1e-5
        assert largest(mixed[1::2], expected[1::2]) < 1e-5 and largest(mixed[::2], alone[::2]) < 1e-5


# ------------------------------------------------------------------------------------------------ hostile metadata


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base, and an adapter of peft's for it."""
    from peft import LoraConfig

    folder = tmp_path_factory.mktemp("plain")
    saved(made("roberta", folder / "base"), LoraConfig(task_type="SEQ_CLS", r=2), folder / "adapter")
    edit(folder / "adapter", base_model_name_or_path=str(folder / "base"))
    return folder / "base", folder / "adapter"


@pytest.fixture
def adapter(plain: tuple[Path, Path], tmp_path: Path) -> Path:
    import shutil

    return shutil.copytree(plain[1], tmp_path / "adapter")


def refused(base: Path, adapter: Path) -> str:
    """The one line with which every entry point refuses an adapter."""
    lines = []
    for load in (lambda: load_adapter(load_pretrained(base, 3), adapter), lambda: load_run(adapter, "cpu")):
        with pytest.raises(MinipeftError) as caught:
            load()
        lines.append(str(caught.value))
    assert all(str(adapter) in line and "\n" not in line and len(line) < 800 for line in lines), lines
    return lines[1]


DETAILS: dict[str, Any] = {
    "labels": [7, "ab", {}, [], [1, 2, 3], ["a", "b", ""], ["a", "a", "b"], ["a", "b"], [["a"], "b", "c"],
               ["x" * 2000, "b", "c"]],
    "thresholds": ["x", [1], [10**400], [float("nan")], [float("inf")], [-1.0], [2.0], True, {}, [0.5] * 7],
    "columns": [7, "text", [], [1], ["a", "b", "c"], [None]],
    "task": [7, [], {}, "", "t" * 5000],
    "problem_type": [7, "ranking", [], {"a": 1}],
    "label_separator": [7, [","], ""],
    "base": [{"model_type": "x" * 10**5}, {"hidden_size": 10**400}, {"vocab_size": [1] * 1000},
             {"num_hidden_layers": "a\nb"}],
    "config": [{"peft_type": "x\n" * 1000}, {"peft_type": "LORA"}, {"peft_type": ["LORA"]}],
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in DETAILS for value in DETAILS[name]], ids=str)
def test_hostile_details_are_refused_in_one_line(
    name: str, value: Any, plain: tuple[Path, Path], adapter: Path
) -> None:
    write_details(adapter, json.dumps({name: value}))
    assert name in refused(plain[0], adapter) or name in ("labels", "base", "config")


HOSTILE_FIELDS: dict[str, Any] = {
    "base_model_name_or_path": ["x" * 100_000, "/x" * 50_000, "a\0b", "a\nb", "~nobody/x", "..", 7, "", ["a"], None],
    "target_modules": [r"(a+)+$", r"(.*)*(.*)*x", "(a|a)*b", "(" * 1000, "a{1000}{1000}{1000}",
                       "x" * 10**5, r"(\w+)\1", 7, [7], {}, "{,"],
    "exclude_modules": [7, [7], {"a": 1}, "(("],
    "layers_to_transform": ["one", [1.5], [True], {"a": 1}, [[1]]],
    "rank_pattern": [{"((": 4}, [4], {f"name{n}": 1 for n in range(20_000)}, {"query": [1]}],
    "alpha_pattern": [{"query": "x"}, {"query": 10**400}, {"query": float("nan")}, "query"],
    "modules_to_save": [7, [7], [["a"]], ["(("], ["classifier", "x" * 10**5]],
    "r": [10**9, "2", 0, -1, 1.5, [1], None],
    "lora_alpha": ["x", 10**400, float("nan"), [1]],
    "bias": ["some", 7, ["all"]],
    "peft_type": ["LORA\n", 7, ["LORA"], "x" * 10**5],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name in HOSTILE_FIELDS for value in HOSTILE_FIELDS[name]],
    ids=lambda value: str(value)[:30],
)
def test_hostile_fields_are_refused_in_one_line(name: str, value: Any, plain: tuple[Path, Path], adapter: Path) -> None:
    edit(adapter, **{name: value})
    if name == "base_model_name_or_path":
        with pytest.raises(MinipeftError, match="base_model_name_or_path") as caught:
            load_run(adapter, "cpu")
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 2000
    else:
        refused(plain[0], adapter)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("query"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    field=st.sampled_from(sorted({*HOSTILE_FIELDS, *DETAILS, "use_dora", "use_rslora", "init_lora_weights"})),
    value=JSON,
)
def test_no_value_of_a_field_gives_a_traceback(field: str, value: Any, plain: tuple[Path, Path], adapter: Path) -> None:
    if field in DETAILS:
        write_details(adapter, json.dumps({field: value}))
    else:
        edit(adapter, **(json.loads((plain[1] / CONFIG).read_text()) | {field: value}))
    try:
        load_run(adapter, "cpu")
    except MinipeftError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000


MANY_LABELS = """
import sys
from minipeft import MinipeftError, load_run
try:
    load_run(sys.argv[1], "cpu")
except MinipeftError as error:
    print(error)
"""


@pytest.mark.parametrize("labels", ["ten million", "a shape without columns"])
def test_more_labels_than_the_head_has_take_no_memory(labels: str, plain: tuple[Path, Path], adapter: Path) -> None:
    if labels == "a shape without columns":
        state = load_file(adapter / WEIGHTS) | {
            "base_model.model.classifier.out_proj.weight": torch.zeros(10**7, 0),
            "base_model.model.classifier.out_proj.bias": torch.zeros(10**7),
        }
        save_file(state, adapter / WEIGHTS)
    else:
        write_details(adapter, '{"labels": ["a"' + 10**7 * ',"a"' + "]}")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))  # torch alone maps about 4 GiB

    done = subprocess.run(
        [sys.executable, "-c", MANY_LABELS, str(adapter)],
        cwd=REPOSITORY, env=environment(), text=True, capture_output=True, timeout=120, preexec_fn=limit,
    )  # fmt: skip
    assert done.returncode == 0 and str(adapter) in done.stdout and len(done.stdout.splitlines()) == 1, done.stderr


@pytest.mark.parametrize("pattern", [r"(a+)+\.$", r"([a-z.]+)+0", r"(x|a|ab|.)*\d\d", r"((a{0,9}){0,9}){0,9}$"])
def test_a_regular_expression_takes_linear_time(pattern: str) -> None:
    """Python's `re` would take longer than the universe is old."""
    assert matching(pattern, ("a" * 200 + "b.", "layer." * 30 + "x"), "target_modules") == set()


@settings(max_examples=200, deadline=None)
@given(
    pattern=st.lists(st.sampled_from([*"ab.1()|*+?$^", r"\.", r"\d", "[ab]", "{2}"])).map("".join),
    paths=st.lists(st.text("ab.1", max_size=6), min_size=1, max_size=4),
)
def test_a_regular_expression_means_what_it_means_to_python(pattern: str, paths: list[str]) -> None:
    import re

    try:
        expected = {path for path in paths if re.fullmatch(pattern, path)}
    except re.error:
        expected = None
    try:
        assert matching(pattern, tuple(paths), "target_modules") == expected
    except MinipeftError:
        assert expected is None or "**" in pattern or "*+" in pattern or "+" in pattern or "{2}" in pattern
