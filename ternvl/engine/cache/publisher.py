"""Sends the events of the prefix cache over ZeroMQ, as vLLM does (vllm/distributed/kv_events.py, Apache-2.0).

A message has three frames: the topic, the number of the batch (8 bytes, big-endian, from 0), and
`[time, events, rank]` in msgpack. A subscriber that finds a gap in the numbers asks at the second address with the
number of the first batch that it lacks (one frame of 8 bytes from a REQ socket, or behind an empty frame). It gets
these batches, number and payload each, and at the end the number -1.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from ternvl.engine.cache.events import EventBatch, EventRecorder, EventsConfig
from ternvl.engine.engine import Engine
from ternvl.errors import ConfigError

if TYPE_CHECKING:
    from ternvl.engine.reference import ReferenceEngine

logger = logging.getLogger(__name__)

_END = (-1).to_bytes(8, "big", signed=True)
_RANK = 0
"""The rank among the replicas of one data-parallel server, of which there is one here."""


class Publisher:
    """Publishes batches from a thread of its own, which owns the sockets."""

    def __init__(self, config: EventsConfig) -> None:
        """Raises ConfigError if an address cannot be used, or if pyzmq or msgpack is not installed."""
        try:
            import msgpack
            import zmq
        except ImportError as error:
            raise ConfigError(
                f"kv_events needs the package {error.name}; install it with pip install 'ternvl[kv-events]'."
            ) from error
        self._zmq, self._pack = zmq, msgpack.packb
        self._context = zmq.Context()
        self._topic = config.kv_events_topic.encode()
        self._sent: deque[tuple[bytes, bytes]] = deque(maxlen=config.kv_events_buffer)
        self._number = 0
        self._batches: SimpleQueue[EventBatch | None] = SimpleQueue()
        self._bell, self._ringer = socket.socketpair()
        self._ringer.setblocking(False)
        with ExitStack() as failed:
            failed.callback(self._close)
            self._events, self.address = self._socket(zmq.PUB, "kv_events", config.kv_events)
            self._replay, self.replay_address = self._socket(zmq.ROUTER, "kv_events_replay", config.kv_events_replay)
            failed.pop_all()
        self._thread = threading.Thread(target=self._work, name="ternvl-kv-events", daemon=True)
        self._thread.start()

    def _socket(self, kind: int, name: str, address: str | None) -> tuple[Any, str]:
        """Return a socket and its address; None and an empty text without an address. Raises ConfigError.

        As with vLLM, an address with a `*` or `::` is listened to, and another one is connected to.
        """
        if address is None:
            return None, ""
        opened = self._context.socket(kind)
        opened.setsockopt(self._zmq.LINGER, 0)
        opened.setsockopt(self._zmq.SNDHWM, 100_000)
        listens = kind == self._zmq.ROUTER or "*" in address or "::" in address or address.startswith("ipc://")
        try:
            (opened.bind if listens else opened.connect)(address)
        except self._zmq.ZMQError as error:
            opened.close()
            raise ConfigError(f"{name} is {address!r}, which cannot be used: {error}.") from error
        return opened, opened.getsockopt_string(self._zmq.LAST_ENDPOINT)

    def publish(self, batch: EventBatch) -> None:
        """Send a batch soon. Any thread may call it, and none waits."""
        self._batches.put(batch)
        self._ring()

    def close(self) -> None:
        """Send what is left, and close the sockets."""
        self._batches.put(None)
        self._ring()
        self._thread.join()

    def _ring(self) -> None:
        with suppress(BlockingIOError):  # it has been rung often enough
            self._ringer.send(b"\0")

    def _work(self) -> None:
        try:
            while self._send_waiting():
                self._wait()
        except Exception:
            logger.exception("The events of the KV cache are not published any more.")
        finally:
            self._close()

    def _wait(self) -> None:
        """Wait for batches or for somebody who asks for earlier ones."""
        poller = self._zmq.Poller()
        poller.register(self._bell, self._zmq.POLLIN)
        if self._replay is not None:
            poller.register(self._replay, self._zmq.POLLIN)
        ready = dict(poller.poll())
        if self._bell.fileno() in ready:
            self._bell.recv(4096)
        if self._replay in ready:
            self._send_waiting()  # so that the answer has all that happened before the question
            self._answer(*self._replay.recv_multipart())

    def _send_waiting(self) -> bool:
        """Send the batches that wait. Return False once the publisher is closed."""
        with suppress(Empty):
            while (batch := self._batches.get_nowait()) is not None:
                number = self._number.to_bytes(8, "big")
                payload = self._pack([*batch, _RANK])
                self._events.send_multipart((self._topic, number, payload))
                self._sent.append((number, payload))
                self._number += 1
            self._batches.put(None)  # for a call from `_wait`
            return False
        return True

    def _answer(self, client: bytes, *frames: bytes) -> None:
        """Send earlier batches again. A question that is none gets no answer."""
        if not frames or len(frames[-1]) != 8:
            return
        first = int.from_bytes(frames[-1], "big")
        delimiter = frames[:-1]
        for number, payload in self._sent:
            if int.from_bytes(number, "big") >= first:
                self._replay.send_multipart((client, *delimiter, number, payload))
        self._replay.send_multipart((client, *delimiter, _END, b""))

    def _close(self) -> None:
        self._bell.close()
        self._ringer.close()
        self._context.destroy(linger=1000)


@contextmanager
def publishing(config: EventsConfig) -> Iterator[Publisher | None]:
    """Keep the sockets of a configuration open while the context is; None without an address. Raises ConfigError."""
    if config.kv_events_buffer < 1:
        raise ConfigError(f"kv_events_buffer is {config.kv_events_buffer}, but must be at least 1.")
    if config.kv_events is None:
        if config.kv_events_replay is not None:
            raise ConfigError("kv_events_replay is set, but kv_events is not, so there are no events to send again.")
        yield None
        return
    publisher = Publisher(config)
    try:
        yield publisher
    finally:
        publisher.close()


@contextmanager
def recording(engine: Engine | ReferenceEngine, publisher: Publisher | None) -> Iterator[None]:
    """Publish the events of an engine while the context is open. Raises ConfigError for one without a prefix cache.

    The engine must be idle at the beginning and at the end. Its prefix cache is empty at the beginning.
    """
    if publisher is None:
        yield
        return
    if not isinstance(engine, Engine) or not engine.config.enable_prefix_caching:
        raise ConfigError("kv_events needs the prefix cache; leave out --reference and --no-enable-prefix-caching.")
    pool = engine.scheduler.pool
    pool.forget(range(pool.num_blocks))  # so that the first event, which says that the cache is empty, is true
    medium = "CPU" if engine.runner.device.type == "cpu" else "GPU"
    pool.events = EventRecorder(pool.block_size, medium, publisher.publish)
    pool.events.flush()
    try:
        yield
    finally:
        pool.events = None
