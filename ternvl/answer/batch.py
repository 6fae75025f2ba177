"""Many asks answered together through one service, for a caller that waits on its own thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from queue import SimpleQueue

from ternvl.answer.ask import PreparedAsk
from ternvl.answer.completion import Fold, RequestOutput
from ternvl.answer.delta import ChoiceDecoder
from ternvl.engine.loan import Loan
from ternvl.engine.request import Request
from ternvl.engine.service import Item, RequestGroup, Service
from ternvl.errors import OverloadedError, TernvlError
from ternvl.lora.pool import AdapterPool, RegisteredAdapter
from ternvl.prompt.tokenizer import Tokenizer
from ternvl.types import TokenOutput

_RETRY_SECONDS = 0.02
"""How long to wait for room in a queue that other callers have filled."""


@dataclass(eq=False, slots=True)
class _Choice:
    """One choice of one ask, waiting or running."""

    request: Request
    adapter: str | None
    decoder: ChoiceDecoder
    fold: Fold
    entry: RegisteredAdapter | None = None
    group: RequestGroup | None = None


class AskBatch:
    """One call's choices. They enter the engine's queue as it has room, in order."""

    def __init__(self, service: Service, adapters: AdapterPool, tokenizer: Tokenizer) -> None:
        self._service, self._adapters, self._tokenizer = service, adapters, tokenizer
        self._limit = service.engine.config.max_queue
        self._waiting: deque[_Choice] = deque()
        self._running: set[_Choice] = set()
        self._inbox = SimpleQueue[tuple[_Choice, Item]]()

    def run(
        self, asks: Sequence[PreparedAsk], ids: Iterable[str], *, ended: Callable[[], None] = lambda: None
    ) -> list[RequestOutput]:
        """Answer asks; `ids` are names for their requests, `ended` is called at the end of each choice.

        Raises the first error of any choice; nothing of the call is then left in the engine.
        """
        folds = [Fold(ask) for ask in asks]
        for ask, fold, answer_id in zip(asks, folds, ids, strict=False):
            self._waiting += self._choices(ask, fold, answer_id)
        with self._service.borrow() as loan:
            try:
                while self._waiting or self._running:
                    self._begin_some(loan)
                    if self._running and self._take(*loan.next(self._inbox), loan):
                        ended()
            finally:
                for choice in tuple(self._running):
                    self._end(choice, has_ended=False)
        return [fold.output() for fold in folds]

    def _choices(self, ask: PreparedAsk, fold: Fold, answer_id: str) -> list[_Choice]:
        names, split, rules = ask.ask.tools.names, ask.splits_reasoning, ask.call_rules
        return [
            _Choice(
                request,
                ask.ask.adapter,
                ChoiceDecoder(index, self._tokenizer, request.params, names, split_reasoning=split, rules=rules),
                fold,
            )
            for index, request in enumerate(ask.requests(answer_id))
        ]

    def _begin_some(self, loan: Loan) -> None:
        while self._waiting and len(self._running) < self._limit and self._begin(self._waiting[0], loan):
            self._running.add(self._waiting.popleft())

    def _begin(self, choice: _Choice, loan: Loan) -> bool:
        """Hand a choice to the engine; return False if its adapter or the queue has no room for it yet."""
        if not self._acquire_adapter(choice):
            return False
        request = choice.request if choice.entry is None else replace(choice.request, adapter=choice.entry.adapter)
        try:
            choice.group = self._service.open((request,), lambda item: self._put(choice, item))
        except OverloadedError:
            self._release(choice)
            if not self._running:
                loan.pause(_RETRY_SECONDS)
            return False
        except BaseException:
            self._release(choice)
            raise
        return True

    def _acquire_adapter(self, choice: _Choice) -> bool:
        """Return False if the adapter has to wait for a choice of this call to release another adapter."""
        if choice.adapter is None:
            return True
        try:
            choice.entry = self._adapters.acquire(choice.adapter)
        except OverloadedError:
            if not self._running:
                raise
            return False
        return True

    def _put(self, choice: _Choice, item: Item) -> bool:
        self._inbox.put((choice, item))
        return True

    def _take(self, choice: _Choice, item: Item, loan: Loan) -> bool:
        """Add an output to its choice, and return whether the choice has ended."""
        if choice not in self._running:
            return False  # a stop string had ended it
        if isinstance(item, OverloadedError):  # other callers filled the queue after `open` had looked
            self._end(choice, has_ended=True)
            self._waiting.appendleft(choice)
            loan.pause(_RETRY_SECONDS)
            return False
        if isinstance(item, TernvlError):
            raise item
        return self._add(choice, item)

    def _add(self, choice: _Choice, output: TokenOutput) -> bool:
        delta = choice.decoder.check(choice.decoder.decode(output))
        choice.fold.add(delta)
        if delta.finish_reason is None:
            return False
        self._end(choice, has_ended=output.finish_reason is not None)
        return True

    def _end(self, choice: _Choice, *, has_ended: bool) -> None:
        """Forget a running choice; unless the engine `has_ended` it, return once the engine has dropped it."""
        self._running.discard(choice)
        assert choice.group is not None
        self._service.close_group(choice.group, has_ended=has_ended)
        if not has_ended:
            self._service.wait_for_orders()
        self._release(choice)

    def _release(self, choice: _Choice) -> None:
        if choice.entry is not None:
            self._adapters.release(choice.entry)
            choice.entry = None
