"""The command line: `ternvl serve | chat | run | quantize | verify | finetune | lora | models | bench`."""

from ternvl.cli.app import app, main

__all__ = ["app", "main"]
