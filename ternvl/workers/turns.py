"""Slots that are given out in turn, so that nobody waits for everything that one client has asked for."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Lock

from ternvl.errors import OverloadedError, UnavailableError

PATIENCE = 300.0
"""The most seconds that an image or a video waits for a slot."""


class _Ticket:
    """A place in the queue. `called` is set when it has become a slot."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.called = Event()


class Turns:
    """A number of slots, and a queue for them. It is thread-safe.

    Who asks gives names: first the client's, then that of a request or a host. A free slot goes to the client that has
    the fewest slots; of several, to the one whose latest turn is the longest ago. The same rule then chooses among the
    client's requests or hosts.
    """

    def __init__(self, slots: int, *most: int) -> None:
        """`most[i]` is the most slots at a time that belong to the same i-th name."""
        self._num_free = slots
        self._most = most
        self._lock = Lock()
        self._waiting: list[_Ticket] = []
        self._held: Counter[tuple[int, str]] = Counter()
        self._latest: dict[tuple[int, str], int] = {}  # numbers of turns, of names that hold or want a slot
        self._num_turns = 0
        self.is_closed = False

    def close(self) -> None:
        """Refuse everybody who waits, and who comes later."""
        with self._lock:
            self.is_closed = True
            for ticket in self._waiting:
                ticket.called.set()

    @property
    def num_waiting(self) -> int:
        """The number of those who wait for a slot."""
        return len(self._waiting)

    @contextmanager
    def turn(self, name: str, *names: str) -> Iterator[None]:
        """Hold a slot in this context. `name` is what errors call what wants it. Raises what `Slot.take` raises."""
        with Slot(self, name) as slot:
            slot.take(*names)
            yield

    def _enter(self, names: tuple[str, ...]) -> _Ticket:
        ticket = _Ticket(names)
        with self._lock:
            self._waiting.append(ticket)
            self._give_out()
        return ticket

    def _leave(self, ticket: _Ticket) -> None:
        """Give a slot back, or a place in the queue."""
        with self._lock:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
            else:
                self._num_free += 1
                self._held.subtract(enumerate(ticket.names))
            self._forget(ticket.names)
            self._give_out()

    def _forget(self, names: tuple[str, ...]) -> None:
        """Drop what is noted of names that hold and want nothing any more."""
        self._held = +self._held
        wanted = {key for ticket in self._waiting for key in enumerate(ticket.names)}
        for key in enumerate(names):
            if not self._held[key] and key not in wanted:
                self._latest.pop(key, None)

    def _give_out(self) -> None:
        while self._num_free and (fitting := [each for each in self._waiting if self._fits(each)]):
            ticket = min(fitting, key=self._rank)  # the first of equal rank, that is the one who has waited longest
            self._waiting.remove(ticket)
            self._num_free -= 1
            self._num_turns += 1
            self._held.update(enumerate(ticket.names))
            self._latest |= dict.fromkeys(enumerate(ticket.names), self._num_turns)
            ticket.called.set()

    def _fits(self, ticket: _Ticket) -> bool:
        return all(
            self._held[place, name] < most
            for place, (name, most) in enumerate(zip(ticket.names, self._most, strict=False))
        )

    def _rank(self, ticket: _Ticket) -> list[tuple[int, int]]:
        return [(self._held[key], self._latest.get(key, 0)) for key in enumerate(ticket.names)]


class Slot:
    """One slot, or none, of `Turns`. At the end of the `with` block it is given back."""

    def __init__(self, turns: Turns, name: str) -> None:
        """`name` is what errors call the image or video that wants the slot."""
        self._turns = turns
        self._name = name
        self._ticket: _Ticket | None = None
        self._deadline = time.monotonic() + PATIENCE

    def take(self, *names: str) -> None:
        """Wait for a slot, after giving back the one that is held.

        Raises OverloadedError if none is free for long, and UnavailableError if there are none any more.
        """
        self._give_back()
        self._check()
        self._ticket = self._turns._enter(names)
        if not self._ticket.called.wait(max(0.0, self._deadline - time.monotonic())):
            raise OverloadedError(
                f"{self._name} has waited {PATIENCE:g} seconds for its turn, the longest that it may; the server is "
                "busy with other images and videos."
            )
        self._check()

    def _check(self) -> None:
        if self._turns.is_closed:
            raise UnavailableError("The server is stopping and handles no more images.")

    def __enter__(self) -> Slot:
        return self

    def __exit__(self, *_: object) -> None:
        self._give_back()

    def _give_back(self) -> None:
        if self._ticket is not None:
            self._turns._leave(self._ticket)
            self._ticket = None
