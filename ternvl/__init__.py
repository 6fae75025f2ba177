"""InternVL3 in PyTorch: an engine that serves it, an offline API and an OpenAI-compatible server."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from ternvl.params import SamplingParams
from ternvl.version import __version__

if TYPE_CHECKING:
    from ternvl.llm import LLM

__all__ = ["LLM", "SamplingParams", "__version__"]

# libgomp, torch's OpenMP library on Linux, reads these once, when torch is loaded. By itself it lets a thread that
# waits for others spin for 11 ms, in which it keeps a processor from the thread that it waits for if other processes
# run. 10,000 turns are 0.3 ms: as fast on idle processors, where waits are shorter.
if "torch" not in sys.modules and not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "10000"


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
