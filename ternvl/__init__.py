"""InternVL3 in PyTorch: an engine that serves it, an offline API and an OpenAI-compatible server."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from ternvl.params import SamplingParams

if TYPE_CHECKING:
    from ternvl.llm import LLM

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "__version__"]

# libgomp, torch's OpenMP library on Linux, reads these once, when torch is loaded. By default a waiting thread of the
# first pool spins for some 11 ms. Meanwhile it keeps a core from the thread that it waits for, if other processes run.
# 100 turns are what libgomp takes by itself for a further pool, such as that of the engine's thread.
if "torch" not in sys.modules and not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "100"


def __getattr__(name: str) -> Any:
    """Import `LLM` at its first use, because it imports torch, which takes seconds.

    The CPU kernels are compiled meanwhile, unless they are up to date.
    """
    if name == "LLM":
        from ternvl.kernels import build

        build.start()
        from ternvl.llm import LLM

        return LLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
