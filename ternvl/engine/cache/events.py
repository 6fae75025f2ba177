"""What the prefix cache stores and removes, for routers that want to know which server has which blocks.

The events are vLLM's (vllm/distributed/kv_events.py, Apache-2.0) as arrays: `BlockStored`, `BlockRemoved` and
`AllBlocksCleared`. `publisher.py` sends them. An engine without a recorder does nothing of this.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ternvl.engine.cache.block_keys import BlockKeys, adapter_id, salt_id
from ternvl.setting import setting

Event = list[object]
"""The name of an event and its fields in order, as msgpack writes them."""
EventBatch = tuple[float, list[Event]]
"""The time in seconds, and what happened in one step, in order."""

CLEARED: Event = ["AllBlocksCleared"]
"""The cache is empty, as it is at the start of a server."""


@dataclass(frozen=True, slots=True)
class EventsConfig:
    """Where the events of the KV cache are published. The fields are flags of the command line."""

    kv_events: str | None = setting(
        None,
        "Publish what the prefix cache stores and removes at this ZeroMQ address, such as tcp://*:5557; the events "
        "hold the tokens of all prompts and answers.",
    )
    kv_events_replay: str | None = setting(
        None, "Send missed events again to those who ask at this address, such as tcp://*:5558."
    )
    kv_events_topic: str = setting("", "The topic of the events, such as kv@POD@MODEL.")
    kv_events_buffer: int = setting(10_000, "The most batches of events that are kept to be sent again.")


class EventRecorder:
    """Collects the events of one engine, and passes those of each step on together."""

    def __init__(self, block_size: int, medium: str, publish: Callable[[EventBatch], None]) -> None:
        """`medium` names the memory that holds the blocks: "CPU" or "GPU". `publish` must not block."""
        self._block_size, self._medium, self._publish = block_size, medium, publish
        self._events: list[Event] = [CLEARED]

    def stored(self, keys: BlockKeys, token_ids: Sequence[int], indices: Sequence[int]) -> None:
        """Record that blocks of a sequence have got a key, in ascending order; neighbours share an event."""
        for index in indices:
            last = self._events[-1] if self._events and index - 1 in indices else None
            if last is not None:
                self._extend(last, keys, token_ids, index)
            else:
                self._events.append(self._begin(keys, token_ids, index))

    def _begin(self, keys: BlockKeys, token_ids: Sequence[int], index: int) -> Event:
        before = keys.first(index, token_ids)
        adapter = keys.request.adapter
        event: Event = ["BlockStored", [], before[-1] if before else None, [], self._block_size]
        event += [adapter_id(adapter), self._medium, None if adapter is None else adapter.name, []]
        self._extend(event, keys, token_ids, index)
        return event

    def _extend(self, event: Event, keys: BlockKeys, token_ids: Sequence[int], index: int) -> None:
        _, hashes, _, tokens, *_, extra = event
        assert isinstance(hashes, list)
        assert isinstance(tokens, list)
        assert isinstance(extra, list)
        start = index * self._block_size
        hashes.append(keys.first(index + 1, token_ids)[-1])
        tokens += token_ids[start : start + self._block_size]
        extra.append(extra_keys(keys, start, start + self._block_size))

    def removed(self, key: bytes) -> None:
        """Record that a block has lost its key; neighbours share an event."""
        last = self._events[-1] if self._events else CLEARED
        if last[0] == "BlockRemoved" and isinstance(last[1], list):
            last[1].append(key)
        else:
            self._events.append(["BlockRemoved", [key], self._medium])

    def flush(self) -> None:
        """Publish what has happened since the last call, if anything has."""
        if self._events:
            events, self._events = self._events, []
            self._publish((time.time(), events))


def extra_keys(keys: BlockKeys, start: int, stop: int) -> list[object] | None:
    """Return what names a block beside its tokens: the adapter, each image with its place, the salt; None if nothing.

    An image's place is relative to the block's first token. The salt is that of the first block alone.
    """
    request = keys.request
    found: list[object] = [] if request.adapter is None else [request.adapter.name]
    found += [[image.digest.hex(), image.start - start] for image in keys.images_in(start, stop)]
    if start == 0 and request.cache_salt:
        found.append(salt_id(request.cache_salt))
    return found or None
