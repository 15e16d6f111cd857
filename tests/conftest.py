"""What the tests share: small random checkpoints in Hugging Face's format, real data and a real tokenizer."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub.constants  # noqa: F401 - it looks once whether it is offline: before `offline`, for test_hub
import pytest
import torch
from hypothesis import settings
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from minipeft.training.threads import count_cores

# The same examples in every run; --hypothesis-profile=default looks for others.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")

REPOSITORY = Path(__file__).resolve().parent.parent
LONGEST = ("training/test_cuda_steps", "compare/test_ray", "faults", "model/families", "test_walk", "test_bench", "hub")
SHARED = Path(os.environ.get("MINIPEFT_SHARED", REPOSITORY.parent / "shared"))


@pytest.fixture(autouse=True)
def messages_name_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors as the command line prints them; test_python_interface.py has those of Python, which name keywords."""
    monkeypatch.setattr("minipeft.errors.names_flags", True)


# A small shape a family; hidden sizes and head counts are odd on purpose.
SMALL: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 80,
    "max_position_embeddings": 514,
    "layer_norm_eps": 1e-5,
}
# Fields of DistilBertConfig that have other names.
DISTILBERT_FIELDS = {
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "classifier_dropout": "seq_classif_dropout",
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
}
MODERNBERT_FIELDS = {
    "hidden_act": "hidden_activation",
    "layer_norm_eps": "norm_eps",
    "hidden_dropout_prob": "mlp_dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}
OTHER_NAMES = {"distilbert": DISTILBERT_FIELDS, "modernbert": MODERNBERT_FIELDS}
# What the config.json of every published DeBERTa-v3 says.
DEBERTA_V3: dict[str, Any] = {
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
    "max_relative_positions": -1,
    "max_position_embeddings": 512,
    "layer_norm_eps": 1e-7,
    "type_vocab_size": 0,
    "pad_token_id": 0,
}
# A small window, so that short texts reach beyond it; the special tokens of the small vocabulary.
SMALL_MODERNBERT = {"local_attention": 32, **dict.fromkeys((f"{name}_token_id" for name in ("bos", "cls")), 1)}
SMALL_MODERNBERT |= dict.fromkeys((f"{name}_token_id" for name in ("eos", "sep")), 2)
FAMILY_FIELDS: dict[str, dict[str, Any]] = {"deberta-v2": DEBERTA_V3, "modernbert": SMALL_MODERNBERT}


def shared(*parts: str) -> Path:
    """A file of the data that comes beside a checkout; the test is skipped where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{'/'.join(parts)} is not here: set MINIPEFT_SHARED to a folder that holds it")
    return path


def reference_model(
    model_type: str = "roberta", num_labels: int = 2, seed: int = 0, kind: str = "classification", **shape: Any
) -> Any:
    """A transformers model with random weights; larger ones than its own initialisation's, so that logits differ."""
    import transformers

    torch.manual_seed(seed)
    roberta = model_type in ("roberta", "xlm-roberta", "camembert")
    fields = {
        **SMALL,
        "num_labels": num_labels,
        "pad_token_id": 1 if roberta else 0,
        "type_vocab_size": 1 if roberta else 2,
        **({} if roberta else {"max_position_embeddings": 512}),
        **FAMILY_FIELDS.get(model_type, {}),
        **shape,
    }
    fields = {OTHER_NAMES.get(model_type, {}).get(name, name): value for name, value in fields.items()}
    config = transformers.AutoConfig.for_model(model_type, **fields)
    names = {"classification": "SequenceClassification", "tokens": "TokenClassification"}
    auto = getattr(transformers, f"AutoModelFor{names.get(kind, 'MaskedLM')}")
    model = auto.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif "embeddings" not in name:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
    return model


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return how many processes run the tests: one more than cores, up to four; none for files named one by one.

    One more, because many tests wait for processes and servers. A file's tests stay in one process, so that they share
    its fixtures.
    """
    named = config.args_source is not pytest.Config.ArgsSource.TESTPATHS
    return 0 if named else min(4, count_cores() + 1)


if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run the tests marked `full` too: the slow ones")
    parser.addoption(
        "--faults-full", action="store_true", help="tests/faults: 50 kills of each kind and the long cases, not a few"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--full"):
        slow = [item for item in items if item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not item.get_closest_marker("full")]
    # The files that take longest begin first, so that no process ends long after the others.
    items.sort(key=lambda item: not str(item.path.relative_to(REPOSITORY / "tests")).startswith(LONGEST))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A small random roberta classifier in a folder; it has no tokenizer."""
    folder = tmp_path / "checkpoint"
    reference_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny roberta with random weights, a language-model head and a tokenizer of its own of 500 entries."""
    from minipeft.data.tasks.synthetic import generate
    from minipeft.model.config import EncoderConfig
    from minipeft.model.language_model import MaskedLanguageModel
    from minipeft.model.layers import init_weights
    from minipeft.model.saved_checkpoint import save_checkpoint
    from minipeft.pretraining.corpus import train_tokenizer

    folder = tmp_path_factory.mktemp("weights") / "tiny"
    train_tokenizer([*generate("rte", "train")["sentence1"], *generate("sst2", "train")["sentence"]], 500, folder)
    config = EncoderConfig(
        vocab_size=500,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=130,
    )
    torch.manual_seed(0)
    model = MaskedLanguageModel(config)
    init_weights(model, 0.2)
    save_checkpoint(model, folder)
    return folder


@pytest.fixture(scope="session")
def no_dropout(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint, without dropout in the encoder: runs with the same seed differ in nothing but LoRA's."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("weights") / "no-dropout")
    content = json.loads((folder / "config.json").read_text())
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "config.json").write_text(json.dumps(content | no_dropout))
    return folder


@pytest.fixture
def model(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint in a copy of one's own, to damage."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "model")


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The start of the generated rte (jsonl) and sst2 (parquet), as a --data folder: 96 and 32 rows a split."""
    from datasets import Dataset

    from minipeft.data.tasks.synthetic import generate

    folder = tmp_path_factory.mktemp("data")
    for task, split, rows in (
        ("rte", "train", 96),
        ("rte", "validation", 32),
        ("sst2", "train", 96),
        ("sst2", "validation", 32),
    ):
        (folder / task).mkdir(exist_ok=True)
        columns = Dataset.from_dict({name: column[:rows] for name, column in generate(task, split).items()})
        if task == "rte":
            columns.to_json(folder / task / f"{split}.jsonl")
        else:
            columns.to_parquet(folder / task / f"{split}.parquet")
    return folder


@pytest.fixture(scope="session")
def small_runs(
    tiny_checkpoint: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Path]]:
    """A finished run of a task on single texts and of one on pairs, to be read; what damages one takes a copy."""
    import minipeft

    folder = tmp_path_factory.mktemp("runs")
    for task in ("sst2", "rte"):
        minipeft.train(
            task=task,
            model=str(tiny_checkpoint),
            data=str(small_data),
            epochs=1,
            batch_size=8,
            grad_accum=1,
            device="cpu",
            precision="fp32",
            quiet=True,
            output=str(folder / task),
        )
    before = contents(folder)
    yield {task: folder / task for task in ("sst2", "rte")}
    assert contents(folder) == before, "a test changed what all of them read"


@pytest.fixture(scope="session")
def unbroken_run(tiny_checkpoint: Path, small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What faults/runs.py's training comes to where nothing disturbs it."""
    from runs import finish, training

    folder = tmp_path_factory.mktemp("unbroken")
    finish(training(tiny_checkpoint, small_data, folder / "run"))
    return folder / "run"


def ragged(lengths: Sequence[int], vocab_size: int = 300, seed: int = 0) -> list[list[int]]:
    """Random token ids, one list a length, without the special ones (of which one is padding to transformers)."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, vocab_size, (length,), generator=generator).tolist() for length in lengths]


def padded(
    token_ids: Sequence[Sequence[int]], pad_token_id: int = 1, token_types: Sequence[Sequence[int]] | None = None
) -> dict[str, Tensor]:
    """The same sequences as transformers takes them."""

    def table(rows: Sequence[Sequence[int]], padding: int) -> Tensor:
        return pad_sequence(
            [torch.tensor(row, dtype=torch.int64) for row in rows], batch_first=True, padding_value=padding
        )

    inputs = {
        "input_ids": table(token_ids, pad_token_id),
        "attention_mask": table([[1] * len(row) for row in token_ids], 0),
    }
    return inputs if token_types is None else inputs | {"token_type_ids": table(token_types, 0)}


def largest(a: Tensor, b: Tensor) -> float:
    """The largest absolute difference of two tensors of the same shape and dtype."""
    assert a.shape == b.shape and a.dtype == b.dtype
    return float((a - b).detach().abs().max())


def evaluate(model: Any, examples: Any, max_tokens: int) -> dict[str, float]:
    """Return the loss and metrics of a model on an encoded split."""
    from minipeft.training.evaluate import predict_logits

    task = examples.split.task
    return task.problem.score(predict_logits(model, examples, max_tokens), examples.split.labels, task.metrics)


def environment(**extra: str) -> dict[str, str]:
    """The environment of a child process: no network, this checkout's package."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY), **extra}


def details_of(adapter: Path) -> dict[str, Any]:
    """What travels with an adapter's tensors: labels, task, score, epoch."""
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        details: dict[str, Any] = json.loads(file.metadata()["minipeft"])
        return details


def forget_details(adapter: Path) -> None:
    """Leave an adapter's tensors alone, as peft writes them: without the config that minipeft compares."""
    save_file(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.safetensors")


@pytest.fixture(scope="session", autouse=True)
def offline() -> Iterator[None]:
    """No test asks the network; those of a hub set this aside for a server of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


@pytest.fixture(scope="session", autouse=True)
def no_plots() -> Iterator[None]:
    """Runs in this process draw no curves, as without the extra `plot`: it takes as long as a small run does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "minipeft.training.reporting.curves", None)
        yield


@pytest.fixture(autouse=True)
def usual_warnings() -> Iterator[None]:
    """--quiet silences the logger of its process, which in the tests is the process of all."""
    logging.getLogger("minipeft").setLevel(logging.NOTSET)
    yield
    logging.getLogger("minipeft").setLevel(logging.NOTSET)


def run_command(*arguments: object, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run Python with `arguments` in the repository, in a fresh process and without a network."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=REPOSITORY,
        env=environment(**extra),
        text=True,
        capture_output=True,
        timeout=300,
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path: what "nothing is overwritten" is checked with."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(arguments: Sequence[object], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a refused command leaves; nothing below `folder` has changed."""
    from minipeft.cli.cli import main

    before, directories = contents(folder), sorted(path for path in folder.rglob("*") if path.is_dir())
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    out, error = capsys.readouterr()
    assert status == 2, (status, out, error)
    assert out == "" and len(error.splitlines()) == 1 and error.startswith("minipeft: "), error
    assert contents(folder) == before
    assert sorted(path for path in folder.rglob("*") if path.is_dir()) == directories
    return error
