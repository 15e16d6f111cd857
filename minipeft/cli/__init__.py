"""The command line: `minipeft COMMAND …` and train.py."""

from minipeft.cli.cli import main, main_train

__all__ = ["main", "main_train"]
