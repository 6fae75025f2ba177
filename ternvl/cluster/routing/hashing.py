"""Consistent hashing with bounded loads.

Nodes are ranked for a key by rendezvous hashing (Thaler and Ravishankar, 1998): every node has a score for the key, so
a node that comes or goes moves only its own keys. The bound is that of Mirrokni, Thorup and Zadimoghaddam (2018): no
node has more than a factor of the mean load, and what would be too much goes to the next node of the key's ranking.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from math import ceil

FREE_LOAD = 4
"""The requests that a node may always have, because so few do not slow each other down as much as a cold cache."""


def ranked(key: bytes, nodes: Sequence[str]) -> list[str]:
    """Return the nodes, the one with the highest score for a key first. The order of `nodes` does not matter."""
    return sorted(nodes, key=lambda node: hashlib.blake2b(node.encode(), key=key, digest_size=8).digest(), reverse=True)


def chosen(key: bytes, loads: Mapping[str, int], factor: float) -> list[str]:
    """Return the nodes in the order in which they should be asked to take one more request.

    `loads` are the requests that each node has, `factor` is at least 1. Nodes within the bound come in the order of
    the key, and behind them the others by their load. Without a key, all nodes come by their load.
    """
    if not key:
        return by_load(loads)
    bound = max(FREE_LOAD, ceil(factor * (sum(loads.values()) + 1) / max(1, len(loads))))
    order = ranked(key, list(loads))
    return [node for node in order if loads[node] < bound] + by_load(
        {node: loads[node] for node in order if loads[node] >= bound}
    )


def by_load(loads: Mapping[str, int]) -> list[str]:
    """Return nodes, the one with the least load first; those with equal loads in random order."""
    return sorted(loads, key=lambda node: (loads[node], random.random()))
