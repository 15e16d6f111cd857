"""The command line: one call, one line out. A command is imported when it is called, so that --help is quick."""

import errno
import io
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from minipeft import errors
from minipeft.cli.flags import TRAIN_EXAMPLES, Parser, add_train_flags
from minipeft.errors import ErrorOnRankZero, Interrupted, MinipeftError, WorkerError, is_rank_zero
from minipeft.version import __version__

OUTPUT_ERRORS = (errno.ENOSPC, errno.EPIPE, errno.EIO, errno.EDQUOT, errno.EFBIG)


def main(arguments: Sequence[str] | None = None) -> int:
    """`minipeft COMMAND …` → the exit status: 0 done, 2 bad input, 130 or 143 interrupted after saving."""
    from minipeft.cli.command_line import command_line

    _escape_unencodable_output()
    parser = command_line()
    wanted = vars(parser.parse_args(arguments))
    if wanted["command"] is None:
        parser.print_help()
        return 0
    return run(wanted.pop("command"), wanted)


def main_train(arguments: Sequence[str] | None = None) -> int:
    """`train.py …`: the command `train` by itself."""
    _escape_unencodable_output()
    parser = Parser(
        prog="train.py",
        usage="%(prog)s [flags]",
        description="Fine-tune an encoder on a task.",
        epilog=TRAIN_EXAMPLES.format(prog="python train.py"),
        add_help=False,
    )
    add_train_flags(parser)
    parser.add_argument("--version", action="version", version=f"minipeft {__version__}")
    return run("train", vars(parser.parse_args(arguments)))


def _escape_unencodable_output() -> None:
    """Let a standard output of an encoding such as ascii or cp1252 escape what it cannot encode, as stderr does."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not in a notebook
            stream.reconfigure(errors="backslashreplace")


def run(name: str, wanted: dict[str, Any]) -> int:
    """Run a command; every error that input causes becomes one line and a status."""
    if wanted.get("quiet"):
        logging.getLogger("minipeft").setLevel(logging.ERROR)
    names_flags, errors.names_flags = errors.names_flags, True
    try:
        answer = resolve_name(COMMANDS[name])(**wanted)
        if isinstance(answer, (str, Path)):
            print(answer)
        if sys.stdout is not None:
            sys.stdout.flush()
    except MinipeftError as error:
        if is_rank_zero():
            print(f"minipeft: {error}", file=sys.stderr)
        elif isinstance(error, WorkerError):  # a main process that was killed leaves its progress bar on a line
            print(f"\nminipeft: {error}", file=sys.stderr)
        elif not isinstance(error, ErrorOnRankZero) and (_is_distributed() or os.environ["LOCAL_RANK"] == "0"):
            print(f"minipeft: rank {os.environ['RANK']}: {error}", file=sys.stderr)
        return 2
    except Interrupted as error:
        if is_rank_zero():
            print(f"minipeft: {error}", file=sys.stderr)
        return 128 + error.signal_number
    except KeyboardInterrupt:
        print("minipeft: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        if error.filename is not None or error.errno not in OUTPUT_ERRORS:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would flush it once more
        if isinstance(error, BrokenPipeError):  # who reads standard output has enough, as `head` does
            return 128 + 13
        print(f"minipeft: standard output: cannot be written ({error.strerror}). Free space.", file=sys.stderr)
        return 2
    finally:
        errors.names_flags = names_flags
    return 0


def _is_distributed() -> bool:
    """Whether this process trains with others; before that, all raise the same errors, and one of each node prints."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and bool(distributed.is_initialized())


# A command: the place of the function that takes its flags; a text or a path that it returns is printed.
COMMANDS = {
    "train": "minipeft.training.run:train",
    "compare": "minipeft.compare.compare:compare",
    "methods": "minipeft.cli.describe:describe_methods",
    "evaluate": "minipeft.cli.commands:evaluate",
    "predict": "minipeft.cli.commands:predict",
    "pretrain": "minipeft.cli.commands:pretrain",
    "export": "minipeft.cli.commands:export",
    "merge": "minipeft.cli.commands:export",
    "push": "minipeft.hub.upload:push",
    "fetch": "minipeft.hub:fetch",
}
