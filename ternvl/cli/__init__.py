"""The command line: `ternvl serve | chat | run | models`."""

from ternvl.cli.app import app, main

__all__ = ["app", "main"]
