"""The main job's front door: the same flags as `minipeft train`."""

import sys

from minipeft.cli import main_train

if __name__ == "__main__":
    sys.exit(main_train())
