"""The number of threads that compute."""

from __future__ import annotations

import os

import torch

from ternvl.errors import ConfigError
from ternvl.machine.cgroup import Cgroup
from ternvl.machine.processors import Processors, usable_cores


def use_threads(number: int | None, cgroup: Cgroup | None = None, processors: Processors | None = None) -> None:
    """Compute with so many threads; by default with as many as `default_threads` says.

    More threads than cores wait for each other. Raises ConfigError for a number below 1.
    """
    if number is not None and number < 1:
        raise ConfigError(f"threads is {number}, but must be at least 1.")
    torch.set_num_threads(default_threads(cgroup, processors) if number is None else number)


def default_threads(cgroup: Cgroup | None = None, processors: Processors | None = None) -> int:
    """Return the number of threads that `use_threads` takes by default: `OMP_NUM_THREADS`, if it is set.

    Otherwise there are no more than the physical cores that this process may run on, nor more than the processors of
    its container's quota.
    """
    threads = torch.get_num_threads()
    if "OMP_NUM_THREADS" in os.environ:
        return threads
    quota = (cgroup or Cgroup()).processors()
    threads = min(threads, usable_cores(processors))
    return threads if quota is None else min(threads, max(1, round(quota)))
