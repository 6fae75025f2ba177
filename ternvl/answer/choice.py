"""The choices of an answer: their deltas, merged in the order in which the engine gives their tokens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import aclosing, closing
from typing import Protocol

from ternvl.answer.ask import PreparedAsk
from ternvl.answer.delta import ChoiceDecoder, Delta
from ternvl.engine.request import Request
from ternvl.errors import EngineError
from ternvl.prompt.tokenizer import Tokenizer
from ternvl.types import TokenOutput

_AT_ONCE = 32
"""The outputs of a request that are decoded before others have their turn."""


class Submitter(Protocol):
    """What answers requests: `ternvl.engine.service.Service`. Closing an iterator aborts its requests."""

    def submit(self, *requests: Request, deadline: float | None = None) -> AsyncGenerator[TokenOutput]:
        """Outputs of requests until the end of each, on an event loop."""

    def outputs(self, *requests: Request) -> Generator[TokenOutput]:
        """The same on a thread without one."""

    def abort(self, request_id: str) -> None:
        """End one of them early."""


class Choices:
    """The choices of some requests that are answered together; request i is choice i."""

    def __init__(self, decoders: Mapping[str, ChoiceDecoder], abort: Callable[[str], None]) -> None:
        """`decoders` are by request id, in the order of the choices; `abort` ends a request that its stop string has
        ended."""
        self._decoders = dict(decoders)
        self._of_choice = list(decoders.values())
        self._abort = abort

    @classmethod
    def of(
        cls, groups: Iterable[tuple[PreparedAsk, Sequence[Request]]], tokenizer: Tokenizer, abort: Callable[[str], None]
    ) -> Choices:
        """The choices of prepared asks, each beside its requests."""
        decoders: dict[str, ChoiceDecoder] = {}
        for ask, requests in groups:
            rules = ask.call_rules
            for request in requests:
                decoders[request.id] = ChoiceDecoder(
                    len(decoders),
                    tokenizer,
                    request.params,
                    ask.ask.tools.names,
                    split_reasoning=ask.splits_reasoning,
                    rules=rules,
                )
        return cls(decoders, abort)

    @property
    def have_ended(self) -> bool:
        """Whether every choice has had its last delta."""
        return not self._decoders

    def decode(self, output: TokenOutput) -> Delta | None:
        """Return what an output adds; None if a stop string had ended its choice before."""
        decoder = self._decoders.get(output.request_id)
        if decoder is None:
            return None
        delta = decoder.decode(output)
        if delta.finish_reason:
            del self._decoders[output.request_id]
            if output.finish_reason is None:
                self._abort(output.request_id)
        return delta

    def must_check(self, delta: Delta) -> bool:
        """Whether `check` has something to add to a delta."""
        return self._of_choice[delta.index].must_check(delta)

    def check(self, delta: Delta) -> Delta:
        """Return what `ChoiceDecoder.check` of the delta's choice returns."""
        return self._of_choice[delta.index].check(delta)


async def generate(
    service: Submitter, requests: Sequence[Request], choices: Choices, *, deadline: float | None = None
) -> AsyncGenerator[Delta]:
    """Yield the deltas of all requests as they come.

    The first error of any request is raised and ends the others. Closing the generator aborts what still runs, and so
    does `deadline`, a time of the event loop's clock.
    """
    async with aclosing(service.submit(*requests, deadline=deadline)) as outputs:
        number = 0
        async for output in outputs:
            number += 1
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)  # outputs that wait already would be taken without a pause
            if (delta := choices.decode(output)) is not None:
                yield await asyncio.to_thread(choices.check, delta) if choices.must_check(delta) else delta
            if choices.have_ended:
                return
    raise EngineError("The engine ended the answer without a reason.")


def generate_on_thread(service: Submitter, requests: Sequence[Request], choices: Choices) -> Generator[Delta]:
    """`generate` for a thread without an event loop."""
    with closing(service.outputs(*requests)) as outputs:
        for output in outputs:
            if (delta := choices.decode(output)) is not None:
                yield choices.check(delta)
            if choices.have_ended:
                return
    raise EngineError("The engine ended the answer without a reason.")
