"""The main job's front door: the same flags as `minipeft train`."""

import sys

from minipeft.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]], prog="train.py"))
