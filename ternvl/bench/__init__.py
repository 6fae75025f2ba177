"""Measures the machine's limits, and states what share of them a benchmark reached."""

from ternvl.bench.limits import Limits, measure, share

__all__ = ["Limits", "measure", "share"]
