"""The metrics of the public benchmarks: each scores one answer to one item, from 0 to 1.

Sources: OpenGVLab/InternVL (`internvl_chat/eval`) and VLMEvalKit, which measured the published scores.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from ternvl.evaluation import regions
from ternvl.evaluation.items import BenchmarkItem, BrokenLineError
from ternvl.evaluation.vqa_text import normal_form
from ternvl.tasks.parsing.words import LETTERS

_NUMBER = re.compile(r"[-+]?(?:[0-9]{1,30}(?:\.[0-9]{1,30})?|\.[0-9]{1,30})")
_FLOAT = re.compile(r"[-+]?(?:[0-9]{1,30}\.?[0-9]{0,30}|\.[0-9]{1,30})(?:[eE][-+]?[0-9]{1,3})?")
_FINAL = re.compile(r"(?:final answer|answer)\s*:", re.IGNORECASE)
_LEAST_ANSWERS = 4
"""With fewer, no answer could agree with three of the others, so none could score 1."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric."""

    score: Callable[[str, BenchmarkItem], float]
    check: Callable[[BenchmarkItem], None]
    """Raises BrokenLineError for an item that cannot be scored."""
    help: str
    """One sentence for the documentation."""


def vqa(answer: str, item: BenchmarkItem) -> float:
    """Return the mean, over the annotators, of min(1, how many of the others gave this answer / 3)."""
    given, right = normal_form(answer), [normal_form(each) for each in item.answers]
    others = [sum(each == given for each in right[:i] + right[i + 1 :]) for i in range(len(right))]
    return sum(min(1.0, count / 3) for count in others) / len(others)


def anls(answer: str, item: BenchmarkItem) -> float:
    """Return the highest similarity with a right answer, 1 - edit distance / length; 0 below one half."""
    best = max(_similarity(_spaced(answer), _spaced(right)) for right in item.answers)
    return best if best >= 0.5 else 0.0


def relaxed(answer: str, item: BenchmarkItem) -> float:
    """Return 1 if a number is within 5 % of a right one, or a text equals one."""
    return float(any(_is_close(answer.strip(), right) for right in item.answers))


def exact(answer: str, item: BenchmarkItem) -> float:
    """Return 1 if the answer is a right one, apart from case and surrounding white space."""
    return float(answer.strip().lower() in [right.strip().lower() for right in item.answers])


def options(answer: str, item: BenchmarkItem) -> float:
    """Return 1 if the letter of the right option comes first, or else its text is the first of all in the answer."""
    return float(chosen_letter(answer, item) == item.answers[0].strip())


def best_option(answer: str, item: BenchmarkItem) -> float:
    """Return 1 if the first word is the right letter, with or without parentheses (MVBench)."""
    words = answer.replace("Answer: ", "").lower().split()
    first, right = (words[0] if words else ""), f"({item.answers[0].strip().lower()})"
    return float(bool(first.replace(".", "")) and (first.replace(".", "") in right or right in first))


def yes_no(answer: str, item: BenchmarkItem) -> float:
    """Return 1 if the right one of the words yes and no is in the answer, and the other is not."""
    return float(says_yes(answer) == is_yes(item))


def pope(answer: str, item: BenchmarkItem) -> float:
    """Return 1 for the right one of yes and no, where an answer without no or not in its first sentence means yes."""
    return float(says_yes_to_pope(answer) == is_yes(item))


def ocr(answer: str, item: BenchmarkItem) -> float:
    """Return 1 if a right text is contained in the answer; of formulas, without spaces."""
    is_formula = item.category == "Handwritten Mathematical Expression Recognition"
    given = _packed(answer) if is_formula else _line(answer)
    return float(any((_packed(right) if is_formula else _line(right)) in given for right in item.answers))


def mra(answer: str, item: BenchmarkItem) -> float:
    """Return the share of the thresholds 0.50, 0.55 ... 0.95 that the first number's relative accuracy is above."""
    found, right = _NUMBER.search(answer), Fraction(item.answers[0].strip())
    if found is None:
        return 0.0
    error = abs(Fraction(found[0]) - right) / abs(right)
    return sum(error < 1 - Fraction(threshold, 20) for threshold in range(10, 20)) / 10


def final_answer(answer: str, item: BenchmarkItem) -> float:
    """Return 1 if what follows the last "Final answer:" is a right answer: an option, the same number or text."""
    last = _FINAL.split(answer)[-1].strip().strip("*$ .")
    if item.options:
        return options(last, item)
    number = _NUMBER.search(last.replace(",", ""))
    rights = [right.strip() for right in item.answers]
    same = [Fraction(number[0]) == Fraction(right) for right in rights if number and _NUMBER.fullmatch(right)]
    return float(any(same) or last.lower() in [right.lower() for right in rights])


def chosen_letter(answer: str, item: BenchmarkItem) -> str:
    """Return what MMBench's rule takes for the chosen letter, or the answer itself."""
    text, listed = answer.strip(), item.labelled_options
    if len(text) == 1 or text[:1] in listed:
        return text[:1]
    return next((letter for letter, option in listed.items() if option in text), text)


def is_yes(item: BenchmarkItem) -> bool:
    """Whether the right answer is yes."""
    return item.answers[0].strip().lower() == "yes"


def says_yes(answer: str) -> bool | None:
    """Whether an answer says yes; None if it says neither or both."""
    words = re.sub(r"[^\w\s]", " ", answer.lower()).split()
    return None if ("yes" in words) == ("no" in words) else "yes" in words


def says_yes_to_pope(answer: str) -> bool:
    """Whether POPE's evaluation takes an answer for yes: the first sentence has neither no nor not."""
    words = answer.split(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


def _similarity(a: str, b: str) -> float:
    return 1 - _distance(a, b) / max(len(a), len(b), 1)


def _distance(a: str, b: str) -> int:
    """Return the number of characters to insert, delete or replace (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        corner, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (left != right))
    return row[-1]


def _spaced(text: str) -> str:
    return " ".join(text.lower().split())


def _line(text: str) -> str:
    return text.lower().strip().replace("\n", " ")


def _packed(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")


def _is_close(answer: str, right: str) -> bool:
    given, wanted = _as_number(answer), _as_number(right)
    if given is None or not wanted:
        return answer.lower() == right.lower()
    return abs(given - wanted) / abs(wanted) <= Fraction(5, 100)


def _as_number(text: str) -> Fraction | None:
    """Return a number, a percentage as its hundredth; None for a text."""
    digits = text.strip().removesuffix("%")
    if not _FLOAT.fullmatch(digits):
        return None
    return Fraction(digits) / (100 if text.strip().endswith("%") else 1)


def _need(condition: bool, rule: str) -> None:
    if not condition:
        raise BrokenLineError(rule)


def _has_answer(item: BenchmarkItem) -> None:
    _need(bool(item.answers) and all(each.strip() for each in item.answers), "answer must be a text that is not empty.")


def _has_annotators(item: BenchmarkItem) -> None:
    _need(
        len(item.answers) >= _LEAST_ANSWERS,
        f"answer must be a list of the annotators' answers, at least {_LEAST_ANSWERS}.",
    )


def _has_options(item: BenchmarkItem) -> None:
    _need(len(item.options) >= 2, "options must be at least two texts.")
    letters = LETTERS[: len(item.options)]
    _need(
        len(item.answers) == 1 and item.answers[0].strip() in tuple(letters),
        f"answer must be one of the letters {letters}.",
    )


def _has_yes_or_no(item: BenchmarkItem) -> None:
    is_known = len(item.answers) == 1 and item.answers[0].strip().lower() in ("yes", "no")
    _need(is_known, "answer must be yes or no.")


def _has_number(item: BenchmarkItem) -> None:
    is_number = len(item.answers) == 1 and bool(_NUMBER.fullmatch(item.answers[0].strip()))
    _need(is_number and Fraction(item.answers[0].strip()) != 0, "answer must be a number other than 0.")


def _has_box(item: BenchmarkItem) -> None:
    _need(item.box is not None and bool(item.images), "box and image are required.")


METRICS: Mapping[str, Metric] = {
    "vqa": Metric(vqa, _has_annotators, "The number of annotators who gave the same answer: three or more score 1."),
    "anls": Metric(anls, _has_answer, "The similarity with the most similar right answer, 0 below one half."),
    "relaxed": Metric(relaxed, _has_answer, "A number within 5 %, or the same text."),
    "exact": Metric(exact, _has_answer, "The same text, apart from case."),
    "options": Metric(
        options, _has_options, "The right letter at the beginning, or else the first option that the answer contains."
    ),
    "best_option": Metric(
        best_option, _has_options, "The right letter in the first word, with or without parentheses."
    ),
    "yes_no": Metric(yes_no, _has_yes_or_no, 'The right one of "yes" and "no"; also precision, recall and F1.'),
    "pope": Metric(pope, _has_yes_or_no, 'Without "no" or "not" in its first sentence, an answer means yes; also F1.'),
    "ocr": Metric(ocr, _has_answer, "A right text anywhere in the answer."),
    "iou": Metric(regions.iou, _has_box, "A box that overlaps with the true one by at least half of their union."),
    "point": Metric(regions.point, _has_box, "A click, or the middle of a box, within the true box."),
    "mra": Metric(
        mra, _has_number, "The mean relative accuracy of a number: the share of ten thresholds that it keeps."
    ),
    "final_answer": Metric(
        final_answer, _has_answer, 'What follows "Final answer:", as an option, a number or a text.'
    ),
}
"""All metrics by their names."""
