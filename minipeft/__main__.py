"""`python -m minipeft`: the same as the command `minipeft`."""

import sys

from minipeft.cli import main

sys.exit(main())
