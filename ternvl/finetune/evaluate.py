"""How often a model, with and without adapters, gives exactly the answers of a data file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ternvl.config import ImageLimits
from ternvl.errors import RequestError
from ternvl.finetune.data import Conversation, DataFile
from ternvl.finetune.dataset import data_error
from ternvl.llm import LLM
from ternvl.params import SamplingParams
from ternvl.prompt.messages import Message
from ternvl.prompt.template import turn_text
from ternvl.types import Prompt

_BATCH = 64
"""Prompts whose pixels are in memory at once."""
_ANY_RANK = 2**16


@dataclass(frozen=True, slots=True)
class Question:
    """An answer of the data, and all that comes before it."""

    conversation: Conversation
    turn: int

    @property
    def answer(self) -> str:
        return turn_text(self.conversation.messages[self.turn])


@dataclass(slots=True)
class Score:
    """Of one model over the whole file."""

    name: str
    num_right: int = 0
    num_questions: int = 0
    wrong: list[tuple[int, str, str]] = field(default_factory=list)
    """Line number, wanted answer and given answer of those that differ."""

    @property
    def percent(self) -> float:
        return 100 * self.num_right / self.num_questions


def evaluate(
    model: str | None,
    data: Path,
    images: Path | None,
    adapters: Sequence[Path],
    *,
    max_tokens: int = 256,
    limit: int | None = None,
    quantization: str = "none",
    progress: bool = False,
) -> list[Score]:
    """The score of the base, then of each adapter: greedy answers through the engine, equal but for outer white space.

    Each assistant message that is not of weight 0 is asked for, after the turns that the file has before it. `limit`
    takes the first lines only; `quantization` is that of `LLM`. Raises DataError, CheckpointError, AdapterError,
    ConfigError.
    """
    file = DataFile(data, images)
    lines = range(min(len(file), limit or len(file)))
    questions = [(file.line_numbers[i], question) for i in lines for question in _questions(file, i)]
    limits = ImageLimits(max_images=1024, allow_local_media=images)
    llm = LLM(model, quantization=quantization, limits=limits, max_lora_rank=_ANY_RANK)
    scores: dict[str | None, Score] = {None: Score("base")}
    for number, adapter in enumerate(adapters):
        llm.load_adapter(f"adapter-{number}", adapter)
        scores[f"adapter-{number}"] = Score(str(adapter))
    for name, score in scores.items():
        for begin in range(0, len(questions), _BATCH):
            _ask(llm, questions[begin : begin + _BATCH], name, score, max_tokens, progress=progress)
    return list(scores.values())


def _questions(file: DataFile, index: int) -> list[Question]:
    try:
        conversation = file[index]
    except RequestError as error:
        raise data_error(file, {index: str(error)}) from error
    return [Question(conversation, turn) for turn, learned in enumerate(conversation.is_learned) if learned]


def _ask(
    llm: LLM,
    questions: Sequence[tuple[int, Question]],
    adapter: str | None,
    score: Score,
    max_tokens: int,
    *,
    progress: bool,
) -> None:
    """Ask a batch, and count what is right."""
    prompts = [_prompt(llm, question) for _, question in questions]
    params = SamplingParams(temperature=0, max_tokens=max_tokens)
    outputs = llm.generate(prompts, params, adapter=adapter, progress=progress)
    for (line, question), output in zip(questions, outputs, strict=True):
        wanted, given = question.answer.strip(), output.text.strip()
        score.num_questions += 1
        if given == wanted:
            score.num_right += 1
        else:
            score.wrong.append((line, wanted, given))


def _prompt(llm: LLM, question: Question) -> Prompt:
    before: list[Message] = list(question.conversation.messages[: question.turn])
    return llm.builder.build(before, tools=question.conversation.tools)
