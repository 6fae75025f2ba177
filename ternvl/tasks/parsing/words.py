"""Parses short answers: yes or no, a number, one of several options."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ternvl.errors import RequestError, UnparsableAnswer

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)  # fmt: skip
_COUNTS = {word: number for number, word in enumerate(_NUMBER_WORDS)} | {"none": 0}
_COUNT = re.compile(r"(?<![\w.,-])(?<![0-9][/:])(?:[0-9]{1,9}(?![\w]|[-.,/:][0-9])|[a-z]+(?![\w-]))")
_NOTHING = re.compile(r"\bno [a-z]")
_NUMERIC = re.compile(r"[0-9]")
_YES_OR_NO = re.compile(r"\b(yes|no)\b")
_LETTER = re.compile(
    r"(?:(?:the )?(?:correct |best )?(?:answer|option)(?: is)?\s*:?\s*)?\(?([A-Z])(?:[).:]|\s*(?:\n|$))", re.IGNORECASE
)


def options_text(options: Sequence[str]) -> str:
    """Return options as lines that begin with their letters. Raises RequestError if there are too few or too many."""
    if isinstance(options, str) or not 2 <= len(options) <= len(LETTERS):
        raise RequestError(f"options must be 2 to {len(LETTERS)} texts.", param="options")
    if not all(isinstance(option, str) and option.strip() for option in options) or len(set(options)) < len(options):
        raise RequestError("options must be texts, all different and none of them empty.", param="options")
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))


def yes_or_no(text: str) -> bool:
    """Return whether an answer is yes: its first word, or the only one of both in it. Raises UnparsableAnswer."""
    found = _YES_OR_NO.findall(text.lower())
    begins = _YES_OR_NO.match(text.lower().lstrip(" \n\t\"'*("))
    if not found or (len(set(found)) > 1 and not begins):
        raise UnparsableAnswer("is neither yes nor no", text)
    return bool(found[0] == "yes")


def count(text: str) -> int:
    """Return the only whole number in an answer, in digits or in words. Raises UnparsableAnswer."""
    answer = text.lower()
    found = [word for word in _COUNT.findall(answer) if word.isdigit() or word in _COUNTS]
    if len(found) == 1 and (found[0].isdigit() or not _NUMERIC.search(answer)):
        return int(found[0]) if found[0].isdigit() else _COUNTS[found[0]]
    if not found and _NOTHING.search(answer) and not _NUMERIC.search(answer):
        return 0
    raise UnparsableAnswer("is not one whole number", text)


def choice(text: str, options: Sequence[str]) -> int:
    """Return the index of the option that an answer names.

    It may name it by its letter, or by its text, which must be the only one in the answer. Raises UnparsableAnswer.
    """
    answer = text.strip()
    letter = _LETTER.match(answer)
    if letter and (index := LETTERS.index(letter[1].upper())) < len(options):
        return index
    named = [index for index, option in enumerate(options) if _holds(answer, option)]
    named = [one for one in named if not any(_is_within(options[one], options[other]) for other in named)]
    if len(named) != 1:
        raise UnparsableAnswer(f"names {'none' if not named else 'more than one'} of the options", text)
    return named[0]


def _holds(text: str, option: str) -> bool:
    return bool(re.search(rf"(?<!\w){re.escape(option.strip())}(?!\w)", text, re.IGNORECASE))


def _is_within(part: str, whole: str) -> bool:
    """Whether one option is a part of another, as "circle" of "red circle"."""
    return part != whole and _holds(whole, part)
