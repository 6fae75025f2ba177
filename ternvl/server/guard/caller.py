"""Who sent the request that is being answered: its key, with what the key may use."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_network
from math import ceil

from ternvl.server.errors import HTTPError
from ternvl.server.guard.keys import Key
from ternvl.server.guard.quota import Budget, Reservation


@dataclass(frozen=True)
class Caller:
    """The key of a request. It stays what it was when the request began, also if the keys are read again."""

    key: Key
    budget: Budget

    def may_use(self, adapter: str) -> bool:
        """Whether the key may use an adapter of this name."""
        return self.key.adapters is None or adapter in self.key.adapters

    def check_requests(self) -> None:
        """Raise HTTPError 429 if the key may not send a request now."""
        if (limit := self.key.requests_per_minute) is not None:
            window = self.budget.requests
            self._check(window.seconds_until(window.used + 1 - limit), f"requests a minute ({limit})")

    def check_tokens(self, wanted: int) -> None:
        """Raise HTTPError 429 if the key may not use so many more tokens now."""
        if (limit := self.key.tokens_per_minute) is not None:
            missing = wanted - self.budget.tokens_left(limit)
            self._check(self.budget.tokens.seconds_until(missing), f"tokens a minute ({limit})")

    def reserve(self, num_prompt_tokens: int, most_answer_tokens: int) -> Reservation | None:
        """Count the tokens of a prompt and reserve those of its answers; None if the key has no limit of tokens.

        Raises HTTPError 429 if the key may not use them now, 400 if it never may.
        """
        limit = self.key.tokens_per_minute
        if limit is None:
            return None
        if num_prompt_tokens >= limit:
            message = f"The prompt has {num_prompt_tokens} tokens, but this key may use {limit} tokens a minute."
            raise HTTPError(400, message, code="token_budget_exceeded")
        self.check_tokens(num_prompt_tokens + 1)
        return self.budget.reserve(limit, num_prompt_tokens, most_answer_tokens)

    def _check(self, seconds: float, limit: str) -> None:
        if seconds > 0:
            wait = ceil(seconds)
            message = f"The key {self.key.name} has too little left of its {limit}; try again in {wait} s."
            raise HTTPError(429, message, code="rate_limit_exceeded", headers={"Retry-After": str(wait)})


current: ContextVar[Caller | None] = ContextVar("caller", default=None)
"""The sender of the request that is being answered; None if the server asks for no key."""


address: ContextVar[str] = ContextVar("address", default="")
"""The address that the request that is being answered came from."""


def client() -> str:
    """Return who sent the current request: the name of its key or, without one, the network that it came from.

    A network is an IPv4 address or the 64 bits of an IPv6 address that one customer of a provider has.
    """
    caller = current.get()
    if caller is not None:
        return f"key {caller.key.name}"
    try:
        ip = IPv6Address(address.get())
    except ValueError:
        return address.get()
    return str(ip.ipv4_mapped or ip_network((ip, 64), strict=False))


def may_use(adapter: str) -> bool:
    """Whether the sender of the current request may use an adapter of this name."""
    caller = current.get()
    return caller is None or caller.may_use(adapter)
