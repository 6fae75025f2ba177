"""The examples of a data file: all are checked before training, and their pixels are read when they are needed."""

from __future__ import annotations

import random

from torch import Tensor

from ternvl.errors import ConfigError, DataError, RequestError
from ternvl.finetune.data import DataFile
from ternvl.finetune.encode import Example, encode
from ternvl.prompt.build import PromptBuilder
from ternvl.types import Progress


class Dataset:
    """The examples of one file, or of some of its lines."""

    def __init__(self, file: DataFile, builder: PromptBuilder, examples: dict[int, Example]) -> None:
        """`examples` maps the index of a line in `file` to its example."""
        self.file, self.builder = file, builder
        self._examples = examples
        self._indices = list(examples)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        return self._examples[self._indices[index]]

    def pixels(self, index: int) -> Tensor | None:
        """Return the tiles [N, 3, S, S] of an example's images, None without images.

        Raises DataError if the images have changed since the file was read.
        """
        line = self._indices[index]
        try:
            example, pixel_values = encode(self.builder, self.file[line])
            if example.image_tokens != self._examples[line].image_tokens:
                raise RequestError("Its images have changed since training began.")
        except RequestError as error:
            raise data_error(self.file, {line: str(error)}) from error
        return pixel_values

    def split(self, share: float, seed: int) -> tuple[Dataset, Dataset]:
        """Return the rest, and a randomly drawn `share` of at least one example.

        Raises ConfigError if no example is left to learn from.
        """
        held_out = set(random.Random(f"split {seed}").sample(self._indices, max(1, round(share * len(self)))))
        if len(held_out) == len(self):
            raise ConfigError(
                f"{self.file.path} has only one line, so no share of it can be held out; set eval-share to 0."
            )
        rest = {line: example for line, example in self._examples.items() if line not in held_out}
        kept = {line: example for line, example in self._examples.items() if line in held_out}
        return Dataset(self.file, self.builder, rest), Dataset(self.file, self.builder, kept)


def read(file: DataFile, builder: PromptBuilder, max_length: int, progress: Progress | None = None) -> Dataset:
    """Return all examples of a file, each of at most `max_length` tokens. Raises DataError that names each bad line."""
    examples: dict[int, Example] = {}
    problems: dict[int, str] = {}
    for index in range(len(file)):
        try:
            examples[index] = _checked(encode(builder, file[index])[0], max_length)
        except RequestError as error:
            problems[index] = str(error)
        if progress is not None:
            progress(index + 1, len(file))
    if problems:
        raise data_error(file, problems)
    return Dataset(file, builder, examples)


def _checked(example: Example, max_length: int) -> Example:
    if example.num_tokens > max_length:
        images = sum(example.image_tokens)
        raise RequestError(
            f"It has {example.num_tokens} tokens ({images} of images), but at most {max_length} are allowed."
        )
    return example


def data_error(file: DataFile, problems: dict[int, str]) -> DataError:
    """Return the error for bad lines. `problems` maps the index of a line in the file to what is wrong with it."""
    found = tuple((file.line_numbers[index], text) for index, text in problems.items())
    number, text = found[0]
    if len(found) == 1:
        return DataError(f"{file.path} has a bad line, line {number}: {text}", found)
    return DataError(f"{file.path} has {len(found)} bad lines, the first of them line {number}: {text}", found)
