"""Many requests over several engines with Ray Data, for a caller that writes the answers down."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from typing import Any

from ternvl.cluster.local import ray_here
from ternvl.cluster.settings import ClusterSettings
from ternvl.errors import TernvlError

_MOST_BLOCKS = 4096
"""The most pieces that Ray Data cuts the requests into; each is handed to a replica, and again if the replica dies."""
_CAUSE = re.compile(r"ternvl\.errors\.\w+: ([^\n]+)")


def answered(
    worker: type, arguments: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], settings: ClusterSettings, size: int
) -> Iterator[dict[str, Any]]:
    """Yield the rows that workers make of `rows`, in the order in which they come.

    Each replica makes one `worker(**arguments)` and calls it with columns of up to `size` rows; it returns columns. The
    rows of a replica that dies are given to another one, so a row may be computed twice, but comes once. Raises
    TernvlError if a worker fails.
    """
    with ray_here(settings):
        from ray import data
        from ray.exceptions import RayError

        context = data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        context.raise_original_map_exception = True
        for name in ("ray.data", "ray.data.exceptions"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # an error is raised here, in one sentence
        blocks = min(ceil(len(rows) / size), _MOST_BLOCKS)
        dataset = data.from_items([dict(each) for each in rows], override_num_blocks=blocks).map_batches(
            worker,
            fn_constructor_kwargs=dict(arguments),
            batch_size=size,
            compute=data.ActorPoolStrategy(size=settings.cluster.replicas),
            num_cpus=settings.cluster.replica_cpus,
        )
        try:
            yield from dataset.iter_rows()
        except RayError as error:
            found = _CAUSE.search(str(error))
            reason = found[1] if found else " ".join(str(error).split())[-300:]
            raise TernvlError(f"A replica cannot answer the batch: {reason}") from None
