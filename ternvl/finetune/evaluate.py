"""Counts how often a model, with and without adapters, gives exactly the answers of a data file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ternvl.errors import RequestError
from ternvl.finetune.data import DataFile, TrainingConversation
from ternvl.finetune.dataset import data_error
from ternvl.limits import ImageLimits
from ternvl.llm import LLM
from ternvl.params import SamplingParams
from ternvl.prompt.messages import Message
from ternvl.prompt.template import turn_text
from ternvl.types import Prompt

_BATCH = 64
"""Number of prompts whose pixels are in memory at the same time."""
_ANY_RANK = 2**16


@dataclass(frozen=True, slots=True)
class Question:
    """One answer of the data, with the messages before it as its question."""

    conversation: TrainingConversation
    turn: int
    """Index of the answer in the conversation's messages."""

    @property
    def answer(self) -> str:
        return turn_text(self.conversation.messages[self.turn])


@dataclass(slots=True)
class Score:
    """The score of one model over the whole file."""

    name: str
    num_right: int = 0
    num_questions: int = 0
    wrong: list[tuple[int, str, str]] = field(default_factory=list)
    """Line number, expected answer and given answer of each wrong answer."""

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
    """Return the score of the base model, then that of each adapter.

    Each assistant message whose weight is not 0 is a question: the engine answers it greedily, given the turns before
    it in the file. An answer is right if it equals the message except for surrounding white space. `limit` restricts
    the evaluation to the first lines; `quantization` is passed to `LLM`. Raises DataError, CheckpointError,
    AdapterError, ConfigError.
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
            _score_batch(llm, questions[begin : begin + _BATCH], name, score, max_tokens, progress=progress)
    return list(scores.values())


def _questions(file: DataFile, index: int) -> list[Question]:
    try:
        conversation = file[index]
    except RequestError as error:
        raise data_error(file, {index: str(error)}) from error
    return [Question(conversation, turn) for turn, learned in enumerate(conversation.is_learned) if learned]


def _score_batch(
    llm: LLM,
    questions: Sequence[tuple[int, Question]],
    adapter: str | None,
    score: Score,
    max_tokens: int,
    *,
    progress: bool,
) -> None:
    """Answer a batch of questions, and add the result to `score`."""
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
