"""Conversations as the model sees them, with a mark on the tokens that it is to learn.

Shapes: T tokens, N tiles, S side of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ternvl.finetune.data import Conversation
from ternvl.prompt.build import PromptBuilder
from ternvl.prompt.template import IM_END, IM_START, Control, Piece, render


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """A conversation's tokens. Its pixels are made again when they are needed."""

    token_ids: Tensor
    """[T] int64."""
    is_target: Tensor
    """[T] bool: whether the model is to learn to say the token."""
    image_starts: tuple[int, ...]
    """Index of each image's first context token."""
    image_tokens: tuple[int, ...]
    """Context tokens of each image."""

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_targets(self) -> int:
        return int(self.is_target.sum())


def encode(builder: PromptBuilder, conversation: Conversation) -> tuple[Example, Tensor | None]:
    """The example and its tiles [N, 3, S, S]. Raises RequestError and ImageError.

    Up to an answer, the tokens are those of the prompt that the server builds for it; the answer is encoded apart from
    its header, as it is drawn. The token that ends it is learned, too.
    """
    messages, tools = conversation.messages, conversation.tools
    prompt = builder.build(messages, tools=tools, add_generation_prompt=False)
    pieces = render(
        messages, system_message=builder.config.system_message, tools=tools, add_generation_prompt=False
    )  # fmt: skip
    counts = iter([image.num_tokens for image in prompt.images])
    token_ids: list[int] = []
    is_target: list[bool] = []
    for run, learned in _runs(pieces, _learned(conversation)):
        ids = builder.tokenizer.encode(run, counts)
        token_ids += ids
        is_target += [learned] * len(ids)
    starts = tuple(i + 1 for i, token_id in enumerate(token_ids) if token_id == builder.tokenizer.img_id)
    example = Example(
        torch.tensor(token_ids), torch.tensor(is_target), starts, tuple(image.num_tokens for image in prompt.images)
    )
    return example, prompt.pixel_values


def _learned(conversation: Conversation) -> Iterator[bool]:
    """Of each assistant message in order."""
    pairs = zip(conversation.messages, conversation.is_learned, strict=True)
    return iter([learned for message, learned in pairs if message.role == "assistant"])


def _runs(pieces: list[Piece], learned: Iterator[bool]) -> Iterator[tuple[list[Piece], bool]]:
    """The pieces cut before and behind each answer, and whether a run is an answer to be learned."""
    run: list[Piece] = []
    in_answer = False
    for piece in pieces:
        begins = run[-1:] == [Control(IM_START)] and piece == "assistant\n"
        run.append(piece)
        if begins or (in_answer and piece == Control(IM_END)):
            yield run, in_answer and next(learned)
            run, in_answer = [], begins
    yield run, False
