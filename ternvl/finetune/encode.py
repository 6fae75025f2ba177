"""Encodes conversations as the model sees them, and marks the tokens that it learns.

Shapes: T tokens, N tiles, S side of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ternvl.finetune.data import TrainingConversation
from ternvl.prompt.build import PromptBuilder
from ternvl.prompt.template import IM_END, IM_START, Control, Piece, render


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """The tokens of a conversation. Its pixels are computed again when they are needed."""

    token_ids: Tensor
    """[T] int64."""
    is_target: Tensor
    """[T] bool: whether the token belongs to an answer that the model learns."""
    image_starts: tuple[int, ...]
    """Index of each image's first context token."""
    image_tokens: tuple[int, ...]
    """Number of context tokens of each image."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_targets(self) -> int:
        return int(self.is_target.sum())


def encode(builder: PromptBuilder, conversation: TrainingConversation) -> tuple[Example, Tensor | None]:
    """Return the example and its tiles [N, 3, S, S]. Raises RequestError.

    The tokens before an answer equal the prompt that the server builds for it. The answer is encoded separately from
    its header, as it is when the model generates it. The token that ends an answer is learned, too.
    """
    messages, tools = conversation.messages, conversation.tools
    prompt = builder.build(messages, tools=tools, add_generation_prompt=False)
    pieces = render(
        messages, system_message=builder.config.system_message, tools=tools, add_generation_prompt=False
    )  # fmt: skip
    counts = iter([image.num_tokens for image in prompt.images])
    token_ids: list[int] = []
    is_target: list[bool] = []
    for run, learned in _split_answers(pieces, _learned_answers(conversation)):
        ids = builder.tokenizer.encode(run, counts)
        token_ids += ids
        is_target += [learned] * len(ids)
    starts = tuple(i + 1 for i, token_id in enumerate(token_ids) if token_id == builder.tokenizer.img_id)
    example = Example(
        torch.tensor(token_ids), torch.tensor(is_target), starts, tuple(image.num_tokens for image in prompt.images)
    )
    return example, prompt.pixel_values


def _learned_answers(conversation: TrainingConversation) -> Iterator[bool]:
    """Whether each assistant message, in order, is learned."""
    pairs = zip(conversation.messages, conversation.is_learned, strict=True)
    return iter([learned for message, learned in pairs if message.role == "assistant"])


def _split_answers(pieces: list[Piece], learned: Iterator[bool]) -> Iterator[tuple[list[Piece], bool]]:
    """Splits the pieces before and after each answer; yields each run and whether it is an answer that is learned."""
    run: list[Piece] = []
    in_answer = False
    for piece in pieces:
        begins = run[-1:] == [Control(IM_START)] and piece == "assistant\n"
        run.append(piece)
        if begins or (in_answer and piece == Control(IM_END)):
            yield run, in_answer and next(learned)
            run, in_answer = [], begins
    yield run, False
