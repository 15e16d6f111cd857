"""The readers of files that other people make: bytes → files in a folder → a result or a MinipeftError."""

from __future__ import annotations

import base64
import functools
import json
import struct
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

SEPARATOR = b"\0\0"  # between the files of one input
CORPUS = Path(__file__).parent / "corpus"


def read_tokenizer(data: bytes, folder: Path) -> None:
    """The first byte chooses the kind; tokenizer_config.json or a second file follows the separator."""
    from minipeft.data.tokens.tokenizer import load_tokenizer

    names = {
        b"j": ("tokenizer.json", "tokenizer_config.json"),
        b"b": ("vocab.json", "merges.txt"),
        b"w": ("vocab.txt", "tokenizer_config.json"),
        b"s": ("spm.model", "tokenizer_config.json"),
    }.get(data[:1], ("tokenizer.json", "added_tokens.json"))
    _write(data[1:], folder, *names)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    load_tokenizer(folder).encode(["Some text, with a\tfew odd çharacters 😀", ""], max_length=16)


def read_adapter(data: bytes, folder: Path) -> None:
    """adapter_config.json, then the header of the weights, then their bytes."""
    from minipeft import EncoderConfig, SequenceClassifier, load_adapter

    config, header, tensors = [*data.split(SEPARATOR, 2), b"", b""][:3]
    (folder / "adapter_config.json").write_bytes(config)
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + tensors)
    shape = EncoderConfig("bert", 30, 8, 2, 2, 8, max_position_embeddings=12, type_vocab_size=2, pad_token_id=0)
    load_adapter(SequenceClassifier(shape), folder)


def read_config(data: bytes, folder: Path) -> None:
    """A checkpoint's config.json."""
    from minipeft.model.families import load_config

    _write(data, folder, "config.json")
    load_config(folder).to_dict()


def read_csv(data: bytes, folder: Path) -> None:
    _read_table(data, folder, "a.csv")


def read_jsonl(data: bytes, folder: Path) -> None:
    _read_table(data, folder, "a.jsonl")


def read_parquet(data: bytes, folder: Path) -> None:
    _read_table(data, folder, "a.parquet")


def _read_table(data: bytes, folder: Path, name: str) -> None:
    from minipeft import MinipeftError
    from minipeft.data.tables.open_table import open_table
    from minipeft.data.tasks.custom import inspect_custom_data

    _write(data, folder, name)
    columns = dict.fromkeys(("text_column", "pair_column", "label_column", "validation"))
    for kind in ("auto", "multilabel"):
        with suppress(MinipeftError):
            inspect_custom_data("auto", str(folder / name), label_type=kind, **columns)
    for _ in open_table(folder / name).read(["text"]):
        pass


def read_run(data: bytes, folder: Path) -> None:
    """config.json of a run, whose adapter is whole."""
    from minipeft import load_run

    whole = _run()
    _write(data, folder, "config.json")
    (folder / "adapter").symlink_to(whole / "adapter")
    (folder / "result.json").symlink_to(whole / "result.json")
    load_run(folder, "cpu").predict(["a text"])


@functools.cache
def _run() -> Path:
    """Train a tiny run, which stays for the life of the process."""
    from minipeft import train
    from minipeft.model.config import EncoderConfig
    from minipeft.model.language_model import MaskedLanguageModel
    from minipeft.model.saved_checkpoint import save_checkpoint
    from minipeft.pretraining.corpus import train_tokenizer

    folder = Path(tempfile.mkdtemp())
    train_tokenizer(["some text of a few words", "another text"], 300, folder / "base")
    save_checkpoint(
        MaskedLanguageModel(EncoderConfig("roberta", 300, 8, 1, 2, 8, max_position_embeddings=40)), folder / "base"
    )
    rows = [{"text": f"text {number}", "label": "ab"[number % 2]} for number in range(20)]
    train(data=rows, model=str(folder / "base"), output=str(folder / "run"), epochs=1, device="cpu", quiet=True)
    return folder / "run"


def _write(data: bytes, folder: Path, *names: str) -> None:
    for name, content in zip(names, data.split(SEPARATOR, len(names) - 1), strict=False):
        (folder / name).write_bytes(content)


TARGETS: dict[str, Callable[[bytes, Path], None]] = {
    "tokenizer": read_tokenizer,
    "adapter": read_adapter,
    "config": read_config,
    "csv": read_csv,
    "jsonl": read_jsonl,
    "parquet": read_parquet,
    "run": read_run,
}


def check(target: str, data: bytes) -> None:
    """Run a target; raise unless it ends in a result or in a MinipeftError of one line."""
    from minipeft import MinipeftError

    with tempfile.TemporaryDirectory() as folder:
        try:
            TARGETS[target](data, Path(folder))
        except MinipeftError as error:
            if len(str(error).splitlines()) != 1 or len(str(error)) > 2000:
                raise AssertionError(f"the message has several lines, or is long: {str(error)[:200]!r}") from None


def read_corpus(target: str) -> list[bytes]:
    """Return the saved inputs of a target: one base64 text a line, in JSON."""
    path = CORPUS / f"{target}.jsonl"
    return [base64.b64decode(json.loads(line)) for line in path.read_text().splitlines()] if path.is_file() else []


def write_corpus(target: str, inputs: list[bytes]) -> None:
    CORPUS.mkdir(exist_ok=True)
    lines = [
        json.dumps(base64.b64encode(data).decode()) + "\n"
        for data in sorted(inputs, key=lambda data: (len(data), data))
    ]
    (CORPUS / f"{target}.jsonl").write_text("".join(lines))
