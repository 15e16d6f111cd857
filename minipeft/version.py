"""The version of minipeft."""

__version__ = "0.1.0"
