"""The output of the frozen layers for every sequence, computed once and read in every epoch (--train-layers, and head).

The embeddings and the layers below the top N do not train and have no dropout, so their output for a sequence never
changes. It is computed before the first step and written to a file of rows, in the precision of the run, which batches
read through a memory map: a step then computes the top layers only. Where the head alone trains, the rows are what the
head reads. The processes of a node write a part of one file each. The file has no name, so that a kill leaves nothing.

The runs of a comparison have a folder in SHARED_CACHE, where one of them writes the file for all with the same model,
data and layers. A resumed run computes its cache again, to the same bits. Without room on the disk every step computes
the frozen layers: the figures are the same within rounding.
"""

import hashlib
import os
import shutil
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from minipeft.data.batches.buckets import pad_to_bucket
from minipeft.data.batches.sampling import pack_sequences, split_by_tokens
from minipeft.data.tokens.examples import Encoded, Examples
from minipeft.data.tokens.token_table import Array, ranges, starts_of
from minipeft.errors import logger
from minipeft.files import SHARED_CACHE, make_folder
from minipeft.model.classifier import SequenceClassifier
from minipeft.problems import problem_row
from minipeft.progress_bar import show_progress
from minipeft.training.distributed import Processes
from minipeft.training.settings.job import Job


@dataclass(frozen=True)
class LayerCache:
    """Rows of the sequences of a split; those of sequence i are starts[i] to starts[i] + counts[i].

    Attributes:
        rows: (num_rows, hidden_size), memory-mapped; bfloat16 as int16, because NumPy does not have it.
        starts, counts: (num_sequences,), int64.
        dtype: Of the rows.
        field: Of PackedBatch: "hidden_states", a row per token, or "features", what the head reads.
    """

    rows: Array
    starts: Array
    counts: Array
    dtype: torch.dtype
    field: str

    def take(self, indices: list[int]) -> dict[str, Tensor]:
        """Return the field of a packed batch of these sequences, in their order."""
        rows = self.rows[ranges(self.starts[indices], self.counts[indices])]
        return {self.field: torch.from_numpy(rows).view(self.dtype)}


def cache_frozen_layers(job: Job, examples: Examples, model: SequenceClassifier) -> Examples:
    """Return the examples with the caches of the splits that are read more than once."""
    start_time, processes, epochs = time.perf_counter(), job.processes, job.schedule.epochs
    if processes.on_rank_zero(lambda: (job.output / "result.json").is_file()):  # the run is finished
        return examples
    shared = os.environ.get(SHARED_CACHE) if processes.size == 1 else None
    splits = {"train": examples.train, "": examples.validation, **examples.others}
    for name, split in splits.items():
        if shared or epochs > 1 or (name != "train" and job.schedule.eval_every):
            splits[name] = _cache_split(job, split, model, shared)
    seconds = time.perf_counter() - start_time
    size = sum(split.layer_cache.rows.nbytes for split in splits.values() if split.layer_cache)
    if size and processes.is_main_process and not job.settings.quiet:
        print(f"cache   {size / 1e6:,.0f} MB: the output of the frozen layers, in {seconds:.1f} s", file=sys.stderr)
    train, validation = splits.pop("train"), splits.pop("")
    return replace(examples, train=train, validation=validation, others=splits, cache_seconds=seconds)


def _cache_split(job: Job, examples: Encoded, model: SequenceClassifier, shared: str | None) -> Encoded:
    """Return a split with its cache, or as it is where the disk has no room."""
    encoder, config, processes = model.encoder.eval(), model.config, job.processes
    field = "features" if encoder.frozen_layers == len(encoder.layers) else "hidden_states"
    per_token = field == "hidden_states" or problem_row(config.problem_type, config.num_labels).per_token
    counts = examples.lengths if per_token else np.ones_like(examples.lengths)
    dtype = encoder.dtype if per_token else torch.float32  # that of a mean over the tokens
    rows = np.zeros((0, config.hidden_size), np.int16 if dtype == torch.bfloat16 else np.float32)
    cache = LayerCache(rows, starts_of(counts), counts, dtype, field)
    folder, size = shared or tempfile.gettempdir(), int(counts.sum()) * rows.itemsize * config.hidden_size
    with ExitStack() as stack:
        path = name = ""
        if shared:
            from filelock import FileLock

            make_folder(Path(shared))
            path = str(Path(shared) / _key(model, examples, field))
            stack.enter_context(FileLock(f"{path}.lock"))  # the other runs wait for the first one
        if not Path(path).is_file():
            name = processes.once_per_node(lambda: _new_file(folder, size))
            file: IO[bytes] | None = stack.enter_context(open(name, "r+b")) if name else None
            # After this exchange every process has opened the file, which then needs no name. Windows keeps it.
            nodes = processes.all_gather(processes.node_rank_zero)
            if not path:
                with suppress(OSError):
                    os.unlink(name)
            ranks = [rank for rank, node in enumerate(nodes) if node == processes.node_rank_zero]
            of_node = replace(processes, rank=ranks.index(processes.rank), size=len(ranks))
            failed = file is None or not _fill(file, cache, examples, model, job, of_node)
            if processes.all_reduce_max(int(failed)):
                with suppress(OSError):
                    os.unlink(name)
                with suppress(OSError):  # what is left in its buffer has no room either
                    stack.close()
                if processes.is_main_process:
                    need = f"no room for {size / 1e6:,.1f} MB of hidden states: every step computes the frozen layers."
                    logger.warning("%s: %s Free space, or let TMPDIR name another folder.", folder, need)
                return examples
            if path:
                os.replace(name, path)
        else:
            file = stack.enter_context(open(path, "rb"))
        assert file is not None
        mapped = np.memmap(file, rows.dtype, "r", shape=(int(counts.sum()), config.hidden_size))
    return replace(examples, layer_cache=replace(cache, rows=np.asarray(mapped)))


def _new_file(folder: str, size: int) -> str:
    """Return the path of a new empty file; "" where the disk has no room for `size` bytes."""
    try:
        if size > shutil.disk_usage(folder).free:
            return ""
        descriptor, name = tempfile.mkstemp(".layers", "minipeft-", folder)
    except OSError:
        return ""
    os.close(descriptor)
    return name


@torch.inference_mode()
def _fill(
    file: IO[bytes], cache: LayerCache, examples: Encoded, model: SequenceClassifier, job: Job, processes: Processes
) -> bool:
    """Compute and write the rows of this process's part of the sequences; return False where the disk is full."""
    indices = processes.share(range(len(cache.counts)), examples.lengths)
    row_size = cache.rows.itemsize * cache.rows.shape[1]
    quiet = job.settings.quiet or not job.processes.is_main_process
    batches = split_by_tokens(indices, examples.lengths, job.schedule.max_tokens)
    with suppress(OSError):
        for chosen in show_progress(batches, "frozen layers", quiet, len(indices)):
            batch = pad_to_bucket(pack_sequences(examples, chosen, model.config), model.config).to(job.settings.device)
            output = model.features(batch) if cache.field == "features" else model.encoder.frozen_output(batch)
            counts = cache.counts[chosen].tolist()
            rows = output[: sum(counts)].to("cpu", cache.dtype)  # without those of the bucket's padding
            for sequence, part in zip(chosen, rows.split(counts), strict=True):
                file.seek(int(cache.starts[sequence]) * row_size)
                file.write(part.contiguous().view(torch.uint8).numpy())
        file.flush()
        return True
    return False


def _key(model: SequenceClassifier, examples: Encoded, field: str) -> str:
    """Return a name that is the same for equal frozen weights, sequences and precision."""
    digest = hashlib.sha256(f"{field} {model.encoder.frozen_layers} {examples.fingerprint}".encode())
    for path, parameter in model.encoder.named_parameters():
        if not model.encoder.may_train(path) or field == "features":
            digest.update(str(parameter.dtype).encode())
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
