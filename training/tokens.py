"""The tokenizer of ternvl-nano, and the encoding of conversations as training examples.

The tokenizer is a byte-level BPE of 2,048 ids that can encode any text. Common words, numbers and the punctuation of
boxes and calls are one token each. Drawn strings are split into characters, and capitalised words have the same ids
after a space as after a quote, so that a string has one spelling wherever it is read or copied.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as FastTokenizer

from ternvl.prompt.messages import ImageInput, Message, ToolCall
from ternvl.prompt.template import render
from ternvl.prompt.tokenizer import Tokenizer
from training import nano, tasks
from training.scenes import random_scene

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TAGS = ("<tool_call>", "</tool_call>")
MULTIMODAL = ("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
QUESTION_WEIGHT = 0.05
PATTERN = "|".join(
    (
        r" ?(?<![A-Za-z0-9])\d{1,4}(?![A-Za-z0-9])",  # a number on its own
        r"\p{N}",  # a digit inside a drawn string
        r"\p{Lu}(?=[\p{Lu}\p{N}])|(?<=[\p{Lu}\p{N}])\p{Lu}",  # a letter of a drawn string
        r"\p{Lu}\p{Ll}*",  # a capitalised word, never with the space before it
        r" ?(?!\p{Lu})[\p{L}\p{M}]+",
        r" ?[^\s\p{L}\p{M}\p{N}]+",
        r"\s*[\r\n]+|\s+(?!\S)|\s+",
    )
)


def corpus(rng: random.Random, size: int) -> Iterator[str]:
    """Generate texts like those of the training."""
    for _ in range(size):
        tools, turn = tasks.tool_use(rng)
        turns = [turn, tasks.chat(rng), tasks.copy(rng)]
        turns += tasks.scene_turns(rng, random_scene(rng, rng.randint(1, 5)), 6)
        yield "\n".join([json.dumps(tool) for tool in tools[:1]] + [f"{t.question}\n{t.answer}" for t in turns])
        yield tasks.tool_result(rng) + "\nassistant\n" + " ".join(f"{n}, {n}" for n in range(0, 1001, tasks.BOX_STEP))
    pieces = render([Message("user", "x")], system_message=nano.SYSTEM_MESSAGE, tools=[{"type": "function"}])
    yield "\n".join(piece for piece in pieces if isinstance(piece, str)) * 50


def train_tokenizer(seed: int = 3) -> str:
    """Train the tokenizer; return the text of its `tokenizer.json`."""
    tokenizer = FastTokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()  # type: ignore[assignment]
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    num_added = len(SPECIAL) + len(TAGS) + len(MULTIMODAL)
    trainer = trainers.BpeTrainer(
        vocab_size=nano.VOCAB_SIZE - num_added,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(random.Random(seed), 4_000), trainer)
    for group, special in ((SPECIAL, True), (TAGS, False), (MULTIMODAL, True)):
        tokenizer.add_tokens([AddedToken(token, special=special, normalized=False) for token in group])
    return str(tokenizer.to_str())


@dataclass(slots=True)
class Example:
    """One conversation as token ids, with the weights of its tokens and the positions of its image tokens."""

    ids: list[int]
    weights: list[float]
    """Weight of predicting `ids[i]`: high for answers, low for questions, 0 for other tokens."""
    image_positions: list[int]
    """Positions of the image tokens of all tiles of all images."""
    num_tiles: int


class Encoder:
    """Encodes conversations as examples, with the template and the tokenizer that the server uses."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.answer_header = tokenizer.encode_text("assistant\n")
        self.question_header = tokenizer.encode_text("user\n")
        self.start_id, self.end_id = tokenizer.control_id("<|im_start|>"), tokenizer.control_id("<|im_end|>")

    def encode(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], num_tiles: Sequence[int]) -> Example:
        """Encode a conversation whose image i has `num_tiles[i]` tiles.

        An answer of n tokens has a total weight of sqrt(n), so that long answers do not dominate. Questions have a
        small weight, because they name objects of the image and so teach the model to look at it.
        """
        pieces = render(messages, system_message=nano.SYSTEM_MESSAGE, tools=tools, add_generation_prompt=False)
        ids = self.tokenizer.encode(pieces, [nano.CONFIG.tokens_per_tile * count for count in num_tiles])
        weights = [0.0] * len(ids)
        context = self.tokenizer.context_id
        for i in (i for i, token in enumerate(ids) if token == self.start_id):
            end = ids.index(self.end_id, i) + 1
            for header, is_answer in ((self.answer_header, True), (self.question_header, False)):
                if ids[i + 1 : i + 1 + len(header)] == header:
                    begin = i + 1 + len(header)
                    weight = (end - begin) ** -0.5 if is_answer else QUESTION_WEIGHT
                    weights[begin:end] = [weight * (token != context) for token in ids[begin:end]]
        return Example(ids, weights, [i for i, token in enumerate(ids) if token == context], sum(num_tiles))


def image_conversation(turns: Sequence[tasks.Turn], rng: random.Random) -> list[Message]:
    """Return the messages of turns about an image, which is in the first turn."""
    image = (ImageInput("scene"),)
    messages = [Message("system", "You answer questions about images.")] if rng.random() < 0.05 else []
    for i, turn in enumerate(turns):
        messages += [Message("user", turn.question, image if i == 0 else ()), Message("assistant", turn.answer)]
    return messages


def text_conversation(rng: random.Random) -> tuple[list[Message], list[dict[str, Any]]]:
    """Generate a chat, a copying task or a tool call, with its tools. Some chats have tools that are not needed."""
    kind = rng.random()
    if kind < 0.35:
        tools, turn = tasks.tool_use(rng)
        if rng.random() < 0.12:
            turn = tasks.chat(rng)
            return [Message("user", turn.question), Message("assistant", turn.answer)], tools
        messages = [Message("user", turn.question), Message("assistant", turn.answer)]
        if rng.random() < 0.3:
            call = json.loads(turn.answer.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>"))
            result = tasks.tool_result(rng)
            calls = (ToolCall("call", call["name"], json.dumps(call["arguments"])),)
            messages[1] = Message("assistant", "", (), calls)
            messages += [Message("tool", result), Message("assistant", result)]
        return messages, tools
    turns = [tasks.copy(rng) if kind < 0.85 else tasks.chat(rng) for _ in range(rng.choice((1, 1, 2, 3, 4)))]
    system = [Message("system", "")] if rng.random() < 0.03 else []
    return system + [m for t in turns for m in (Message("user", t.question), Message("assistant", t.answer))], []


def write_tokenizer(path: Path) -> None:
    """Train the tokenizer, and write it with the configuration file that transformers reads."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "tokenizer.json").write_text(train_tokenizer(), encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 16384, "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>", "bos_token": None, "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    (path / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")
