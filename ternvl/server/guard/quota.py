"""What a key has used within the last minute, and what its answers in progress may still use.

Limits are those of a sliding window: of any 60 seconds, none holds more than a key may use, except for what one answer
generates beyond the budget that was left when it began, because answers are not cut.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

WINDOW = 60.0
"""The seconds for which uses count."""

_MERGED = 0.05
"""Seconds within which uses become one, so that a window holds at most 1,200 of them."""


@dataclass(slots=True, eq=False)
class Use:
    """An amount that was used at about one time."""

    began: float
    seconds: float
    """The time of the latest part; the amount counts for a minute from then on."""
    amount: int


class Window:
    """What was used within the last minute. All methods belong to one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds."""
        self._clock = clock
        self._uses: deque[Use] = deque()
        self._used = 0

    @property
    def used(self) -> int:
        """The amount of the last minute."""
        oldest = self._clock() - WINDOW
        while self._uses and self._uses[0].seconds <= oldest:
            self._used -= self._uses[0].amount
            self._uses.popleft().amount = 0
        return self._used

    def add(self, amount: int) -> Use:
        """Count an amount now. The result can be given to `take_back`."""
        used, now = self.used, self._clock()
        if not self._uses or now - self._uses[-1].began >= _MERGED:
            self._uses.append(Use(now, now, 0))
        use = self._uses[-1]
        use.seconds, use.amount = now, use.amount + amount
        self._used = used + amount
        return use

    def take_back(self, use: Use, amount: int) -> None:
        """Count an amount no longer that `add` has counted."""
        amount = min(amount, use.amount)  # nothing is left of a use that is older than the window
        use.amount -= amount
        self._used -= amount

    def seconds_until(self, excess: int) -> float:
        """Return in how many seconds at least `excess` of what was used counts no longer; WINDOW if that is unknown."""
        if excess <= 0:
            return 0.0
        now, freed = self._clock(), 0
        for use in self._uses:
            freed += use.amount
            if freed >= excess:
                return max(0.0, use.seconds + WINDOW - now)
        return WINDOW

    @property
    def seconds_until_empty(self) -> float:
        """The seconds until nothing that was used counts any longer."""
        return self.seconds_until(self.used)


class Budget:
    """The requests and tokens that one key has used, and the tokens that are reserved for its answers in progress."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` returns seconds."""
        self.requests = Window(clock)
        self.tokens = Window(clock)
        self.reserved = 0

    def tokens_left(self, limit: int) -> int:
        """Return how many tokens of a limit are neither used nor reserved."""
        return limit - self.tokens.used - self.reserved

    def reserve(self, limit: int, num_prompt_tokens: int, most_answer_tokens: int) -> Reservation:
        """Count the tokens of a prompt, and reserve what is left for its answers, as far as they may need it."""
        most = min(most_answer_tokens, self.tokens_left(limit) - num_prompt_tokens)
        return Reservation(self, num_prompt_tokens, max(0, most))


class Reservation:
    """The tokens of one request: those of its prompt, which count, and those that its answers may still use."""

    def __init__(self, budget: Budget, num_prompt_tokens: int, num_reserved: int) -> None:
        self._budget = budget
        self._num_prompt_tokens = num_prompt_tokens
        self._prompt = budget.tokens.add(num_prompt_tokens)
        self._left = num_reserved
        self._has_spent = False
        budget.reserved += num_reserved

    def spend(self, num_tokens: int) -> None:
        """Count tokens that were generated, first those that were reserved."""
        self._has_spent = True
        self._budget.tokens.add(num_tokens)
        self._release(min(num_tokens, self._left))

    def cancel(self) -> None:
        """Count nothing of the prompt, unless something was generated: the request was refused."""
        if not self._has_spent:
            self._budget.tokens.take_back(self._prompt, self._num_prompt_tokens)

    def end(self) -> None:
        """Give back what is still reserved."""
        self._release(self._left)

    def _release(self, num_tokens: int) -> None:
        self._left -= num_tokens
        self._budget.reserved -= num_tokens
