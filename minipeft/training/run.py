"""A run from its settings to its result; `train` below is the whole program in ten lines.

    settings → job → examples → model → loop → result, in a folder with config.json, adapter/ and result.json

The stages share nothing but what they pass on: a frozen Job, the tokenized Examples, the model. There is no Trainer
object, and there are no callbacks: a run that needs another stage calls another function here.

Left out: how a setting is chosen (settings/), how a step is computed (loop.py), and what a checkpoint holds
(run_folder/). With several processes (distributed.py) every process executes this file; only rank 0 writes and prints.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minipeft.data.tasks.duplicates import Hashes, check_duplicates
from minipeft.data.tasks.splits import read_chunks, training_strata
from minipeft.data.tokens.examples import Encoded, Examples, encode_split
from minipeft.data.tokens.tokenizer import load_tokenizer
from minipeft.errors import MinipeftError, WorkerError, first_line, logger
from minipeft.files import FORMAT, PARTIAL, check_output, read_json, write_json, write_text
from minipeft.lease import Lease
from minipeft.methods import apply
from minipeft.model.classifier import SequenceClassifier
from minipeft.model.pretrained import cast_frozen, load_for_training
from minipeft.progress_bar import show_progress
from minipeft.training.loop import RunFolder, train_loop
from minipeft.training.progress import HOLDOUT, Progress, best_epoch
from minipeft.training.reporting.console import print_banner, print_result
from minipeft.training.reporting.model_card import CARD, make_card
from minipeft.training.result import Result, result_content
from minipeft.training.run_folder.checkpoint_files import has_checkpoint
from minipeft.training.settings.job import Job, resolve
from minipeft.training.settings.train_settings import TrainSettings, keywords_of, read_settings
from minipeft.training.threads import choose_threads, keep_memory


@keywords_of(TrainSettings)
def train(**settings: Any) -> Result:
    """Fine-tune a pretrained encoder and write the run's folder.

    Args:
        settings: train.py's flags by name: task="rte", epochs=3, …; method is a name or a config, such as
            LoRA(rank=2). data (and validation) may be rows in memory: a list of dicts, a dict of columns, a pandas
            DataFrame, a datasets.Dataset or a DatasetDict. What is not given, or None, is the recipe's.

    Returns:
        The result, with the best epoch's model.

    Raises:
        MinipeftError: for bad input, before anything is written; and where a loss is not finite or a file cannot be
            written, with the last checkpoint kept.
    """
    # From here on no setting is None or "auto": later stages read a job and decide nothing.
    job = resolve(read_settings(settings))
    choose_threads(job.settings.threads)
    keep_memory()
    with hold_folder(job):
        # The data come first: an invalid row raises before the weights are loaded.
        examples = load_examples(job)
        model = build_model(job, examples.train)
        folder = open_run(job, examples, model)
        # Balanced class weights depend on the labels, so the loss is made when the examples are known.
        loss = job.loss.make_loss(examples.train.split.labels, job.task.problem, job.settings.device)
        # Parts that most runs do not use are imported where they are used, here and below: a start takes less time.
        graphs = None
        if job.settings.cuda_graphs == "on":
            from minipeft.training.optimization.cuda_graphs import StepGraphs

            graphs = StepGraphs(model, loss=loss)
        with job.processes.errors_printed_once(), explain_out_of_memory(job):
            if model.encoder.frozen_layers is not None and graphs is None:
                from minipeft.training.layer_cache import cache_frozen_layers

                examples = cache_frozen_layers(job, examples, model)
            progress = train_loop(model, examples, job.schedule, folder, job.processes, graphs, loss)
        return write_result(job, examples, model, progress)


@contextmanager
def explain_out_of_memory(job: Job) -> Iterator[None]:
    """Convert torch's out-of-memory error, which may occur on one rank only; the last checkpoint is kept."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        from minipeft.training.run_folder.checkpoint_reader import describe_checkpoint

        tokens, settings = job.schedule.max_tokens, job.settings
        less = "" if settings.activation_checkpointing else " or pass --activation-checkpointing"
        raise WorkerError(
            f"{settings.device}: out of memory with --max-tokens {tokens} ({first_line(error)}). "
            f"Pass --max-tokens {max(1, tokens // 2)}{less}, with --resume ({describe_checkpoint(job.output)})."
        ) from None


@contextmanager
def hold_folder(job: Job) -> Iterator[None]:
    """Take the lease of the run's folder on rank 0: a second process on the folder ends with an error."""
    with ExitStack() as stack:  # only rank 0 enters the lease, and every rank leaves the stack

        def take_lease() -> None:
            stack.enter_context(Lease(job.output))
            # Again: between `resolve` and the lease another process may have changed the folder.
            check_output(job.output, "config.json", "run", job.settings.resume)
            job.check_same_settings()

        job.processes.on_rank_zero(take_lease)
        yield


def load_examples(job: Job) -> Examples:
    """Read and tokenize the training, validation and further splits."""
    task, settings, tokenizer = job.task, job.settings, load_tokenizer(job.model.folder)
    long_texts = None  # texts over max_length are truncated
    if job.settings.long_text == "window":
        from minipeft.data.tokens.long_texts import LongTexts

        long_texts = LongTexts.of(job.config)
    encoded, hashes = {}, dict[str, Hashes]()
    # "also" are further validation splits, such as MNLI's mismatched one: evaluated, but never used to choose.
    for name, split in {"train": "train", "validation": task.validation, **dict(task.also)}.items():
        limit = settings.train_limit if name == "train" else settings.eval_limit
        hashes[name] = Hashes()
        # A stream: the texts are never all in memory.
        chunks = hashes[name].read(read_chunks(task, split, job.data.source, limit))
        quiet = settings.quiet or not job.processes.is_main_process
        chunks = show_progress(chunks, f"tokenizing {split}", quiet)
        encoded[name] = encode_split(task, chunks, tokenizer, job.max_length, job.model.config, long_texts)
    train, validation = encoded.pop("train"), encoded.pop("validation")
    if settings.weight_column is not None:
        from minipeft.data.tokens.row_weights import add_weights

        train = add_weights(train, settings.weight_column, settings.train_limit)
    kept, warnings = check_duplicates(task, job.data.source, hashes, settings.drop_duplicates)
    train = train if kept.all() else train.subset(kept)
    if settings.holdout is not None:
        from minipeft.data.tokens.holdout import hold_out

        together: Any = hashes["train"].texts
        if settings.group_column is not None:
            *_, together = training_strata(task, job.data.source, settings.train_limit)
        train, encoded[HOLDOUT] = hold_out(train, settings.holdout, settings.seed, np.asarray(together)[kept])
    return Examples(train, validation, encoded, tokenizer.truncated, warnings)


def build_model(job: Job, train: Encoded) -> SequenceClassifier:
    """Load the pretrained weights, install the method, and move the model to the job's device."""
    settings = job.settings
    # The same seed on every rank: all start from the same weights, and nothing needs to be broadcast.
    torch.manual_seed(settings.seed)  # the new head and LoRA's A are drawn from here on, in this order
    model = load_for_training(job.model.folder, job.task.problem.outputs, job.task.problem.name)
    if "head.out_proj.bias" in model.new_tensors:
        bias = job.task.problem.initial_bias(train.split.labels, train.weights)
        torch.nn.init.constant_(model.get_parameter("head.out_proj.bias"), bias)
    apply(model, job.method)  # freezes the encoder; the method's parameters and the head are trainable
    if job.initial_adapter is not None:
        from minipeft.adapters.adapter import initialize_from_adapter

        message = initialize_from_adapter(model, job.initial_adapter)
        if job.processes.is_main_process and not settings.quiet:
            print(message, file=sys.stderr)
    # bf16 is for the frozen weights and the activations: trainable parameters stay float32, because AdamW's small
    # updates would be rounded away.
    cast_frozen(model, torch.bfloat16 if settings.precision == "bf16" else torch.float32).to(settings.device)
    model.encoder.activation_checkpointing = settings.activation_checkpointing
    if settings.compile:
        model.encoder.compile_layers()
    return model


def open_run(job: Job, examples: Examples, model: SequenceClassifier) -> RunFolder:
    """Check that all processes agree, print the banner, and write config.json."""
    settings, processes = job.settings, job.processes
    if processes.size > 1:
        from minipeft.training.check_ranks import check_ranks

        with processes.errors_printed_once():
            check_ranks(job, examples, model)
    if processes.is_main_process:
        print_banner(job, examples, model)
    if examples.truncated and processes.is_main_process:
        total = sum(map(len, (examples.train, examples.validation, *examples.others.values())))
        counts = examples.truncated, total, job.max_length
        logger.warning("%d of %d examples were truncated to %d tokens; --long-text window reads them whole", *counts)
    processes.on_rank_zero(lambda: _write_config(job, examples))
    minutes, copy = settings.checkpoint_minutes, settings.checkpoint_copy
    return RunFolder(job.output, minutes, settings.quiet, settings.report_to, copy)


def _write_config(job: Job, examples: Examples) -> None:
    """Write config.json, and remove the temporary files of a killed run and the result of a run that is extended."""
    folder, quiet, extension = job.output, job.settings.quiet, job.check_same_settings()
    # The data may have moved since the run was started, but the examples must be the same.
    fingerprints = {"training": examples.train.fingerprint, "validation": examples.validation.fingerprint}
    recorded = read_json(folder / "config.json") if has_checkpoint(folder) else {}
    for name, value in recorded.get("examples", {}).items():
        if fingerprints.get(name) != value:
            raise MinipeftError(
                f"{folder}: the run has other {name} examples. Pass the same data, or choose another --output."
            )
    # Files are written under a temporary name and renamed; a killed run leaves such names behind.
    for path in folder.rglob(PARTIAL):
        with suppress(OSError):  # a folder: of another process that is trying to take the lease
            path.unlink()
    if not has_checkpoint(folder):
        (folder / "result.json").unlink(missing_ok=True)
        if (folder / "config.json").is_file() and not quiet:
            print(f"{folder} has no checkpoint yet: the run starts from scratch", file=sys.stderr)
    if extension:  # more epochs of a finished run, whose result no longer holds
        (folder / "result.json").unlink(missing_ok=True)
        if not quiet:
            print(extension, file=sys.stderr)
    write_json(folder / "config.json", {"format": FORMAT, **job.config, "examples": fingerprints})


def write_result(job: Job, examples: Examples, model: SequenceClassifier, progress: Progress) -> Result:
    """Load the best epoch's adapter into the model, unless it is the last epoch's; write result.json and curves.png.

    A run that was finished before keeps its result.json.
    """
    folder, quiet = job.output, job.settings.quiet
    model.eval()
    # The loop ends with the last epoch's weights; the file in adapter/ is the best epoch's.
    if best_epoch(progress.history, job.schedule.select_by) is not progress.history[-1]:
        from minipeft.adapters.adapter import reload_adapter
        from minipeft.adapters.adapter_file import read_adapter

        # Only rank 0 has the file; the others get its tensors, so that every process returns the same model.
        reload_adapter(model, job.processes.on_rank_zero(lambda: read_adapter(folder / "adapter", model.config)))
    content = result_content(job, examples, model, progress)
    if job.settings.fold is not None:
        from minipeft.training.fold_predictions import write_fold_predictions

        problem = job.task.problem.with_details(best_epoch(progress.history, job.schedule.select_by))
        write_fold_predictions(job, model, examples.validation, problem)

    def write() -> dict[str, Any]:
        if (folder / "result.json").is_file():
            if not quiet:
                print(f"{folder}: the run is already finished", file=sys.stderr)
            return read_json(folder / "result.json")
        write_text(folder / "adapter" / CARD, make_card(job, content))
        write_json(folder / "result.json", content)
        _draw_curves(folder)
        return content

    content = job.processes.on_rank_zero(write)
    if job.processes.is_main_process and not quiet:
        print_result(content, folder)
    return Result(content, model, folder, job)


def _draw_curves(folder: Path) -> None:
    """Draw curves.png, where the extra `plot` is installed."""
    try:
        from minipeft.training.reporting.curves import draw
    except ImportError:  # matplotlib is an extra: a run without it has every file but the picture
        return
    draw(folder)
