"""What the machine can do at most, and what share of it a measurement reached."""

from ternvl.bench.limits import Limits, measure, share

__all__ = ["Limits", "measure", "share"]
