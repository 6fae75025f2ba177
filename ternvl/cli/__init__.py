"""The command line: `ternvl serve | chat | run | finetune | lora | models`."""

from ternvl.cli.app import app, main

__all__ = ["app", "main"]
