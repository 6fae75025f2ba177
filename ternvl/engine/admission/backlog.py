"""The work that is before a further request: prompts and tiles to compute, and answers that must end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ternvl.engine.scheduler import Scheduler
from ternvl.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Backlog:
    """The work that an engine has before a further request, at one moment."""

    running: tuple[tuple[int, int], ...]
    """Of each answer that runs, the tokens that it has and the most that it may have."""
    waiting: tuple[int, ...]
    """The most tokens of each answer that waits, in order."""
    num_slots: int
    """The answers that can run at a time: fewer than `max_num_seqs` if the KV cache has no room for the next one."""
    num_tokens: int = 0
    """Tokens of prompts that are computed before, without those that were in the prefix cache when they were added."""
    num_tiles: int = 0
    """Tiles that are encoded before. Equal tiles count once."""
    num_steps: int = 0
    """The fewest whole steps that these tokens and tiles take."""


def backlog(scheduler: Scheduler, *, has_images: bool) -> Backlog:
    """Return the work before a further request, which has images or not. Any thread may call it."""
    running, waiting = tuple(scheduler.running), tuple(scheduler.waiting)
    config, sequences = scheduler.config, running + waiting
    most_tokens, most_tiles = config.max_num_batched_tokens or 1, config.max_num_batched_tiles or 1
    num_slots = len(running) if _is_full(scheduler, waiting) else config.max_num_seqs
    tiles = _num_tiles(scheduler, sequences)
    if len(sequences) < num_slots and not has_images:  # a text runs beside images whose tiles are not encoded yet
        ready = [each for each in sequences if not any(scheduler.missing_tiles([each]))]
        num_steps = sum(map(_num_prompt_tokens, ready)) // most_tokens
        tokens, tiles = num_steps * most_tokens, min(tiles, num_steps * most_tiles)
    else:
        tokens = sum(map(_num_prompt_tokens, sequences))
        num_steps = max(tokens // most_tokens, tiles // most_tiles)
    answers = tuple((each.num_output_tokens, _most(each)) for each in running)
    return Backlog(answers, tuple(map(_most, waiting)), num_slots, tokens, tiles, num_steps)


def _most(sequence: Sequence) -> int:
    return sequence.max_num_tokens - sequence.request.prompt.num_tokens


def _is_full(scheduler: Scheduler, waiting: tuple[Sequence, ...]) -> bool:
    """Return whether the KV cache has no room for the sequence that is next."""
    return bool(waiting) and scheduler.pool.num_free < scheduler.pool.num_blocks_for(
        waiting[0].num_tokens - waiting[0].num_found
    )


def _num_prompt_tokens(sequence: Sequence) -> int:
    """Return how many tokens must be computed before the sequence draws; a sibling's prompt is computed once."""
    rest = sequence.num_tokens - sequence.num_known
    return rest if rest > 1 and sequence.sibling is None else 0


def _num_tiles(scheduler: Scheduler, sequences: Iterable[Sequence]) -> int:
    """Return how many tiles must be encoded for sequences; equal ones count once."""
    return len(set(scheduler.missing_tiles(sequences)))
