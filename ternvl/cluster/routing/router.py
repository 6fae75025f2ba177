"""Chooses the replica for a request: Ray Serve's public extension for that, over the hashing of this folder.

Serve sends this class to the processes that route, by value; everything else of ternvl is imported there by name.
"""

from __future__ import annotations

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from ternvl.cluster.exchange import ForwardedRequest
from ternvl.cluster.routing.hashing import by_load, chosen


class AffinityRouter(RequestRouter):  # type: ignore[misc]
    """Routes requests with the same key to the same replica, as long as it has not much more to do than the others."""

    def initialize_state(self, *, is_on: bool, load_factor: float) -> None:
        """Take the settings of `request_router_kwargs`. Without `is_on`, the replica with the least load is chosen."""
        self._is_on, self._load_factor = is_on, load_factor

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the candidates in the order in which they are asked; a replica that is full passes it on."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True  # a pause before all are asked again
        found = {each.replica_id.unique_id: each for each in candidate_replicas}
        request = next((each for each in pending_request.args if isinstance(each, ForwardedRequest)), None)
        avoided = request.avoid if request is not None else frozenset()
        lengths = self.replica_queue_len_cache  # Serve counts what it sends, and corrects it by what replicas say
        loads = {name: lengths.get(each.replica_id) or 0 for name, each in found.items() if name not in avoided}
        loads = loads or dict.fromkeys(found, 0)
        key = request.key if request is not None and self._is_on else b""
        order = chosen(key, loads, self._load_factor) if key else by_load(loads)
        return [[found[name]] for name in order]
