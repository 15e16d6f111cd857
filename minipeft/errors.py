"""What ends a command early: bad input, or a signal."""


class MinipeftError(Exception):
    """Bad input: the message names the value, the place and the remedy, in one line.

    The command line prints it on standard error and ends with status 2; nothing is overwritten.
    """


class Interrupted(Exception):
    """A signal ended a run after its state was saved; the command line ends with 128 + the signal's number."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number
