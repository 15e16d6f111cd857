"""A split's tokens in a mapped file: the same batches as from the tokenizer's own objects, at a bounded cost."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import run_command
from hypothesis import given, settings
from hypothesis import strategies as st

from minipeft.data.batches.packing import pack
from minipeft.data.batches.sampling import epoch_order, pack_examples
from minipeft.data.tasks.splits import CHUNK_ROWS
from minipeft.data.tasks.task import Split, get_task
from minipeft.data.tokens.examples import encode_split
from minipeft.data.tokens.token_table import TokenTable
from minipeft.data.tokens.tokenizer import Tokenizer, load_tokenizer
from minipeft.model.families import load_config

WORDS = st.lists(st.text(max_size=20), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def bert(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer with bert's template: token type 0 for the first text, 1 for the second."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("bert") / "tokenizer")
    content = json.loads((folder / "tokenizer.json").read_text())

    def part(kind: str, name: str, type_id: int) -> dict[str, dict[str, object]]:
        return {kind: {"id": name, "type_id": type_id}}

    first = [part("SpecialToken", "<s>", 0), part("Sequence", "A", 0), part("SpecialToken", "</s>", 0)]
    specials = {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in (("<s>", 0), ("</s>", 2))}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": first,
        "pair": [*first, part("Sequence", "B", 1), part("SpecialToken", "</s>", 1)],
        "special_tokens": specials,
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return load_tokenizer(folder)


@given(texts=WORDS, pairs=WORDS, share=st.integers(1, 5))
@settings(max_examples=50, deadline=None)
def test_the_batches_are_those_of_the_tokenizers_own_objects(
    texts: list[str], pairs: list[str], share: int, bert: Tokenizer, tiny_checkpoint: Path
) -> None:
    """Types, labels and order too, and however the rows are shared out into chunks."""
    count = min(len(texts), len(pairs))
    texts, pairs, labels = texts[:count], pairs[:count], [row % 2 for row in range(count)]
    config = replace(load_config(tiny_checkpoint), model_type="bert", type_vocab_size=2)
    task = get_task("rte")
    chunks = (
        Split(task, texts[i : i + share], pairs[i : i + share], labels[i : i + share]) for i in range(0, count, share)
    )
    examples = encode_split(task, chunks, bert, 40, config)
    encodings = bert.encode_full(texts, pairs, 40)
    expected = pack(encodings, labels, config)
    batch = pack_examples(examples, list(range(count)), config)
    assert list(examples.lengths) == list(expected.lengths) == list(batch.lengths)
    assert expected.token_type_ids is not None and batch.token_type_ids is not None
    for name in ("input_ids", "token_type_ids", "position_ids", "labels"):
        torch.testing.assert_close(getattr(batch, name), getattr(expected, name), atol=0, rtol=0)
    last = pack_examples(examples, [count - 1], config)
    assert last.input_ids.tolist() == encodings[-1].ids


def test_a_table_is_a_sequence(bert: Tokenizer) -> None:
    encodings = bert.encode_full(["a", "b c"])
    table = TokenTable.from_chunks([TokenTable.from_sequences([one]) for one in encodings], with_types=False)
    assert len(table) == 2 and table[-1].tolist() == table[1].tolist() == encodings[1].ids
    assert [row.tolist() for row in table] == [encoding.ids for encoding in encodings]
    backwards = table.take([1, 0])
    assert backwards.lengths.tolist() == [len(encodings[1].ids), len(encodings[0].ids)]
    assert backwards.concatenate()[0].tolist() == encodings[1].ids + encodings[0].ids
    with pytest.raises(IndexError):
        table[2]


def test_regression_keeps_its_labels_to_the_bit(bert: Tokenizer, tiny_checkpoint: Path) -> None:
    task, labels = get_task("stsb"), [0.1, 3.8, 5.0]
    config = load_config(tiny_checkpoint).with_labels(["score"])
    split = Split(task, ["a", "b", "c"], ["d", "e", "f"], labels)
    batch = pack_examples(encode_split(task, [split], bert, 40, config), [2, 0, 1], config)
    assert batch.labels is not None
    torch.testing.assert_close(batch.labels, torch.tensor([5.0, 0.1, 3.8]), atol=0, rtol=0)


def test_a_folder_for_temporary_files_that_is_full_is_named(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """A limit on the size of a file stands for the full disk."""
    script = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
from minipeft import MinipeftError, load_tokenizer
from minipeft.data.tokens.token_table import TokenTable
try:
    encodings = load_tokenizer({str(tiny_checkpoint)!r}).encode_full(["a b c"] * 1000)
    TokenTable.from_chunks([TokenTable.from_sequences(encodings)], with_types=False)
except MinipeftError as error:
    print(error)
"""
    done = run_command("-c", script, TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path}: no room for the tokens" in done.stdout and "TMPDIR" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.full
def test_an_example_costs_bytes_and_not_kilobytes(tiny_checkpoint: Path) -> None:
    """Memory of the process itself; the tokens lie in a file that the system may drop."""
    script = f"""
from minipeft import load_tokenizer
from minipeft.data.tasks.splits import chunk_examples
from minipeft.data.tasks.task import get_task
from minipeft.model.families import load_config
from minipeft.data.tokens.examples import encode_split
from pathlib import Path

def own_bytes():
    fields = dict(line.split(":") for line in open("/proc/self/status"))
    return int(fields["RssAnon"].split()[0]) * 1024

folder = Path({str(tiny_checkpoint)!r})
task, tokenizer, config = get_task("sst2"), load_tokenizer(folder), load_config(folder)
def encode(count):
    rows = (("a quiet film, not a bad one", None, row % 2) for row in range(count))
    return encode_split(task, chunk_examples(task, rows), tokenizer, 128, config)
first = encode({2 * CHUNK_ROWS})  # what a chunk takes is taken now
before = own_bytes()
kept = encode({20 * CHUNK_ROWS})
print((own_bytes() - before) / len(kept))
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is read from Linux's /proc")
    done = run_command("-c", script, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 100


def test_an_order_is_a_permutation_in_eight_bytes_an_example() -> None:
    order = epoch_order(1000, 7, 3)
    generator = torch.Generator().manual_seed(7 * 1_000_003 + 3)
    assert list(order) == torch.randperm(1000, generator=generator).tolist()
    assert memoryview(order).nbytes == 8000  # type: ignore[arg-type]
