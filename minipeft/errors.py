"""The one exception that input can cause."""


class MinipeftError(Exception):
    """Bad input: the message names the value, the place and the remedy, in one line.

    The command line prints it on standard error and ends with status 2; nothing is overwritten.
    """
