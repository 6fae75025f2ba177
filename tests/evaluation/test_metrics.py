"""Each metric equals another computation of its definition, over two hundred made-up items."""

from __future__ import annotations

import random
import re
from decimal import Decimal
from functools import cache
from statistics import mean
from typing import Any

import pytest

from ternvl.evaluation import METRICS
from ternvl.evaluation.items import BenchmarkItem, BrokenLineError
from ternvl.evaluation.metrics import chosen_letter, says_yes
from ternvl.evaluation.regions import overlap
from ternvl.evaluation.vqa_text import normal_form
from tests.evaluation.made import COUNT, changed, item, phrase


def scores(metric: str, answers: list[str], items: list[BenchmarkItem]) -> list[float]:
    found = []
    for answer, each in zip(answers, items, strict=True):
        METRICS[metric].check(each)
        found.append(METRICS[metric].score(answer, each))
    assert len(found) == COUNT
    assert 0 < sum(found) < COUNT, "some answers are right and some are wrong"
    return found


# --- VQA score --------------------------------------------------------------------------------------------------------

MARKS = ';/[]"{}()=+\\_-><@`,?!'
CONTRACTIONS = {
    "dont": "don't",
    "couldnt": "couldn't",
    "wouldn'tve": "wouldn't've",
    "oclock": "o'clock",
    "yall'd've": "y'all'd've",
}
NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip


def vqa_form(text: str) -> str:
    """The steps of the VQA challenge one after the other, letter by letter."""
    text = "".join(" " if letter in "\n\t" else letter for letter in text).strip()
    thousands = any(text[i].isdigit() and text[i + 1] == "," and text[i + 2].isdigit() for i in range(len(text) - 2))
    kept = text
    for mark in MARKS:
        beside = (mark + " ") in text or (" " + mark) in text
        kept = (
            "".join("" if letter == mark else letter for letter in kept)
            if beside or thousands
            else kept.replace(mark, " ")
        )
    letters = [c for i, c in enumerate(kept) if c != "." or (i + 1 < len(kept) and kept[i + 1].isdigit())]
    words = [NUMBERS.get(word, word) for word in "".join(letters).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ("a", "an", "the"))


def vqa_score(answer: str, rights: list[str]) -> float:
    """The mean over all sets of the annotators but one, of min(number that agree / 3, 1)."""
    given, forms = vqa_form(answer), list(map(vqa_form, rights))
    subsets = [[form for j, form in enumerate(forms) if j != i] for i in range(len(forms))]
    return mean(min(subset.count(given) / 3, 1) for subset in subsets)


def test_vqa() -> None:
    rng = random.Random("vqa")
    items, answers = [], []
    for _ in range(COUNT):
        pool = [phrase(rng, 2) for _ in range(3)]
        rights = [rng.choice(pool) for _ in range(10)]
        items.append(item(answers=tuple(rights)))
        answers.append(rng.choice([rng.choice(pool), rng.choice(pool).upper(), f"the {pool[0]}.", phrase(rng)]))
    expected = [vqa_score(answer, list(each.answers)) for answer, each in zip(answers, items, strict=True)]
    assert scores("vqa", answers, items) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("answer", "form"),
    [("The Cat.", "cat"), ("Two dogs", "2 dogs"), ("none", "0"), ("1,000", "1000"), ("3.5", "3.5"),
     ("dont", "don't"), ("couldntve", "couldntve"), ("couldn'tve", "couldn't've"), ("couldnt've", "couldn't've"),
     ("a", ""), ("U.S.", "us"), ("red/blue", "red blue"), ("yes, it is", "yes it is"), ("shes", "shes"), ("Im", "im"),
     ("ow's'at", "'ow's'at"), ("maam", "ma'am")],
)  # fmt: skip
def test_the_normal_form_of_the_challenge(answer: str, form: str) -> None:
    assert normal_form(answer) == form


# --- ANLS -------------------------------------------------------------------------------------------------------------


def edits(a: str, b: str) -> int:
    """Levenshtein's recursion as it is defined."""

    @cache
    def distance(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return i + j
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    return distance(len(a), len(b))


def test_anls() -> None:
    rng = random.Random("anls")
    items = [item(answers=tuple(phrase(rng) for _ in range(rng.randint(1, 3)))) for _ in range(COUNT)]
    answers = [changed(rng, rng.choice([rng.choice(each.answers), phrase(rng)])).upper() for each in items]
    expected = []
    for answer, each in zip(answers, items, strict=True):
        similarities = []
        for right in each.answers:
            a, b = " ".join(answer.lower().split()), " ".join(right.lower().split())
            similarities.append(1 - edits(a, b) / max(len(a), len(b)))
        expected.append(max(similarities) if max(similarities) >= 0.5 else 0)
    assert scores("anls", answers, items) == pytest.approx(expected, abs=1e-12)


def test_anls_at_its_threshold() -> None:
    assert METRICS["anls"].score("ab", item(answers=("ax",))) == 0.5
    assert METRICS["anls"].score("abc", item(answers=("axx",))) == 0
    assert METRICS["anls"].score("", item(answers=("a",))) == 0


# --- relaxed accuracy -------------------------------------------------------------------------------------------------


def test_relaxed() -> None:
    rng = random.Random("relaxed")
    items, answers = [], []
    for _ in range(COUNT):
        value = Decimal(rng.randint(-500, 5000)) / rng.choice((1, 10, 100))
        percent = rng.choice(("", "%"))
        factor = Decimal(rng.choice((100, 95, 105, 94, 106, 104, 200))) / 100
        is_text = rng.random() < 0.3
        right = phrase(rng) if is_text else f"{value}{percent}"
        items.append(item(answers=(right, "something else")))
        near = f" {value * factor}{percent}\n"
        answers.append(rng.choice([right.upper(), right, "other"]) if is_text else rng.choice([near, right, "other"]))

    def number(text: str) -> Decimal | None:
        try:
            return Decimal(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ArithmeticError:
            return None

    def is_right(answer: str, right: str) -> bool:
        given, wanted = number(answer), number(right)
        if given is None or wanted is None or wanted == 0:
            return answer.lower() == right.lower()
        return abs((given - wanted) / wanted) <= Decimal("0.05")

    expected = [
        float(any(is_right(a.strip(), right) for right in i.answers)) for a, i in zip(answers, items, strict=True)
    ]
    assert scores("relaxed", answers, items) == expected


@pytest.mark.parametrize(
    ("answer", "right", "score"),
    [("105", "100", 1), ("94.9", "100", 0), ("0.63", "0.6", 1), ("5%", "0.05", 1), ("0", "0.0", 0), ("0", "0", 1),
     ("-3", "3", 0), ("1e2", "100", 1), ("Blue", "blue", 1), ("100 dollars", "100", 0), ("nan", "nan", 1),
     ("inf", "100", 0), ("9" * 5000, "1", 0)],
)  # fmt: skip
def test_relaxed_at_its_edges(answer: str, right: str, score: int) -> None:
    assert METRICS["relaxed"].score(answer, item(answers=(right,))) == score


# --- text -------------------------------------------------------------------------------------------------------------


def test_exact() -> None:
    rng = random.Random("exact")
    items = [item(answers=tuple(phrase(rng, 2) for _ in range(2))) for _ in range(COUNT)]
    answers = [rng.choice([f" {each.answers[1].upper()} ", changed(rng, each.answers[0])]) for each in items]
    expected = [
        float({a.strip().casefold()} <= {r.strip().casefold() for r in i.answers})
        for a, i in zip(answers, items, strict=True)
    ]
    assert scores("exact", answers, items) == expected


def test_ocr() -> None:
    rng = random.Random("ocr")
    formula = "Handwritten Mathematical Expression Recognition"
    items, answers = [], []
    for _ in range(COUNT):
        rights = tuple(phrase(rng, 3) for _ in range(2))
        category = rng.choice((formula, "Doc-oriented VQA"))
        items.append(item(answers=rights, category=category))
        text = f"{phrase(rng)} {rng.choice(rights)}{phrase(rng)}"
        answers.append(rng.choice([text, text.upper(), text.replace(" ", ""), changed(rng, text), phrase(rng)]))
    expected = []
    for answer, each in zip(answers, items, strict=True):
        hit = False
        for right in each.answers:
            if each.category == formula:
                hit |= "".join(right.strip().replace("\n", " ").split(" ")) in "".join(
                    answer.strip().replace("\n", " ").split(" ")
                )
            else:
                hit |= right.strip().lower().replace("\n", " ") in answer.strip().lower().replace("\n", " ")
        expected.append(float(hit))
    assert scores("ocr", answers, items) == expected


def test_final_answer() -> None:
    rng = random.Random("final")
    items, answers = [], []
    for number in range(COUNT):
        if number % 3 == 0:
            right, options = rng.choice("ABC"), ("one", "two", "three")
        elif number % 3 == 1:
            right, options = str(Decimal(rng.randint(-90, 90)) / rng.choice((1, 10))), ()
        else:
            right, options = rng.choice(("red", "blue")), ()
        items.append(item(answers=(right,), options=options))
        said = right if rng.random() < 0.5 else rng.choice(("A", "3.5", "green"))
        answers.append(
            rng.choice((f"I think 7, so\nFinal answer: {said}.", f"Answer: 1\n**Final Answer: {said}**", said))
        )

    def conclusion(answer: str) -> str:
        return re.split("answer:", answer, flags=re.IGNORECASE)[-1].strip("* .\n")

    expected = []
    for answer, each in zip(answers, items, strict=True):
        given, right = conclusion(answer), each.answers[0]
        try:
            expected.append(float(Decimal(given) == Decimal(right)))
        except ArithmeticError:
            expected.append(float(given.lower() == right.lower()))
    assert scores("final_answer", answers, items) == expected


# --- options, yes and no ----------------------------------------------------------------------------------------------

OPTIONS = ("red car", "blue car", "red", "none of these")


def mmbench_choice(answer: str, options: dict[str, str]) -> str:
    """MMBench's extraction (`post_process` of evaluate_mmbench.py), told again."""
    answer = answer.strip()
    if len(answer) == 1:
        return answer
    if answer and answer[0] in options:
        return answer[0]
    for letter in options:
        if options[letter] in answer:
            return letter
    return answer


def test_options() -> None:
    rng = random.Random("options")
    items = [item(answers=(rng.choice("ABCD"),), options=OPTIONS) for _ in range(COUNT)]
    forms = (
        "{0}",
        "{0}.",
        " {0}. {1}\n",
        "{0}) {1}",
        "It is the {1}.",
        "the {1}",
        "({0})",
        "E",
        "",
        "Answer: {0}",
        "{2}",
    )
    answers = []
    for each in items:
        index = "ABCD".index(each.answers[0]) if rng.random() < 0.6 else rng.randrange(4)
        answers.append(rng.choice(forms).format("ABCD"[index], OPTIONS[index], rng.choice("abcdXYZ")))
    listed = dict(zip("ABCD", OPTIONS, strict=True))
    expected = [float(mmbench_choice(a, listed) == i.answers[0]) for a, i in zip(answers, items, strict=True)]
    assert scores("options", answers, items) == expected
    assert [chosen_letter(a, i) for a, i in zip(answers, items, strict=True)] == [
        mmbench_choice(a, listed) for a in answers
    ]


def test_best_option() -> None:
    rng = random.Random("best option")
    items = [item(answers=(rng.choice("ABCD"),), options=OPTIONS) for _ in range(COUNT)]
    forms = (
        "({0}) {1}",
        "{0}",
        "{0}. {1}",
        "Answer: ({0})",
        "Answer: {0}",
        "The best is ({0})",
        "",
        ".",
        "({0}).",
        "a car",
    )
    answers = [rng.choice(forms).format(rng.choice([i.answers[0], rng.choice("ABCD")]), "red") for i in items]
    expected = []
    for answer, each in zip(answers, items, strict=True):
        first = answer.replace("Answer: ", "").lower().split(" ")[0]
        label = f"({each.answers[0].lower()})"
        expected.append(float((first.replace(".", "") != "" and first.replace(".", "") in label) or label in first))
    assert scores("best_option", answers, items) == expected


YES_NO = (
    "Yes", "No", "yes.", "No.", "Yes, there is a car.", "No, there is not.", "There is not", "not at all. Yes",
    "maybe", "",
    "yes and no", "It's a no", "nope", "I know.", "no,thanks", "Yes! No?", "NO", "YES",
)  # fmt: skip


def test_yes_no_and_pope() -> None:
    rng = random.Random("yes or no")
    items = [item(answers=(rng.choice(("yes", "no", "Yes", "No")),)) for _ in range(COUNT)]
    answers = [rng.choice(YES_NO) for _ in items]
    truths = [each.answers[0].lower() for each in items]
    words = [set(re.findall(r"[a-z0-9_]+", answer.lower())) & {"yes", "no"} for answer in answers]
    expected = [float(found == {truth}) for found, truth in zip(words, truths, strict=True)]
    assert scores("yes_no", answers, items) == expected
    said = []
    for answer in answers:
        sentence = answer[: answer.index(".")] if "." in answer else answer
        said.append(
            "no" if any(word in ("No", "no", "not") for word in sentence.replace(",", "").split(" ")) else "yes"
        )
    assert scores("pope", answers, items) == [float(a == b) for a, b in zip(said, truths, strict=True)]
    assert [says_yes(text) for text in ("Yes.", "no", "", "yes or no")] == [True, False, None, None]


# --- places and numbers -----------------------------------------------------------------------------------------------


def random_box(rng: random.Random, width: int, height: int) -> tuple[float, float, float, float]:
    x1, y1 = rng.randrange(width - 1), rng.randrange(height - 1)
    return float(x1), float(y1), float(rng.randint(x1 + 1, width)), float(rng.randint(y1 + 1, height))


def counted_overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection over union by lengths of intervals."""

    def shared(low: float, high: float, other_low: float, other_high: float) -> float:
        points = sorted([(low, 0), (high, 0), (other_low, 1), (other_high, 1)])
        inside = points[0][1] != points[1][1] and points[0][0] <= points[1][0]
        return points[2][0] - points[1][0] if inside else 0.0

    both = shared(a[0], a[2], b[0], b[2]) * shared(a[1], a[3], b[1], b[3])
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return both / (areas - both)


def test_iou() -> None:
    rng = random.Random("iou")
    items, answers, expected = [], [], []
    for _ in range(COUNT):
        size = (rng.randint(20, 900), rng.randint(20, 900))
        true = random_box(rng, *size)
        near = [round(edge / length * 1000 + rng.randint(-60, 60)) for edge, length in zip(true, size * 2, strict=True)]
        given = near if rng.random() < 0.8 else [round(1000 * rng.random()) for _ in range(4)]
        x1, x2, y1, y2 = *sorted((given[0], given[2])), *sorted((given[1], given[3]))
        x2, y2 = max(x2, x1 + 1), max(y2, y1 + 1)
        items.append(item(box=true, size=size))
        text = rng.choice(
            ("<ref>it</ref><box>[[{}, {}, {}, {}]]</box>", "[{},{},{},{}]", "At [[{}, {}, {}, {}]] or [[0, 0, 1, 1]].")
        )
        answers.append(text.format(x1, y1, x2, y2))
        pixels = (x1 * size[0] / 1000, y1 * size[1] / 1000, x2 * size[0] / 1000, y2 * size[1] / 1000)
        expected.append(float(counted_overlap(pixels, true) >= 0.5))
    assert scores("iou", answers, items) == expected


@pytest.mark.parametrize(
    "answer", ["", "none", "[1, 2, 3]", "[[a, b, c, d]]", "[[5, 5, 1, 1]]", "[[1e999, 2, 3, 4]]", "[[,,,]]"]
)
def test_no_box(answer: str) -> None:
    assert METRICS["iou"].score(answer, item(box=(0.0, 0.0, 50.0, 50.0), size=(100, 100))) == 0
    assert METRICS["point"].score("none", item(box=(0.0, 0.0, 50.0, 50.0), size=(100, 100))) == 0


def test_a_box_in_fractions() -> None:
    assert METRICS["iou"].score("[[0.0, 0.0, 0.5, 0.5]]", item(box=(0.0, 0.0, 50.0, 50.0), size=(100, 100))) == 1


@pytest.mark.parametrize(
    ("a", "b", "share"),
    [((0, 0, 10, 10), (0, 0, 10, 10), 1.0), ((0, 0, 10, 10), (5, 0, 15, 10), 1 / 3), ((0, 0, 1, 1), (2, 2, 3, 3), 0.0)],
)
def test_overlap(a: Any, b: Any, share: float) -> None:
    assert overlap(a, b) == pytest.approx(share)
    assert overlap((0, 0, 0, 0), b) == 0.0


def test_point() -> None:
    rng = random.Random("point")
    items, answers, expected = [], [], []
    for _ in range(COUNT):
        size = (rng.randint(20, 900), rng.randint(20, 900))
        box = random_box(rng, *size)
        items.append(item(box=box, size=size))
        x, y = rng.choice(
            [((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), (rng.uniform(0, size[0]), rng.uniform(0, size[1]))]
        )
        match rng.randrange(3):
            case 0:
                fx, fy = round(x / size[0], 4), round(y / size[1], 4)
                answers.append(f"pyautogui.click(x={fx}, y={fy})")
                x, y = fx * size[0], fy * size[1]
            case 1:
                x, y = max(2, round(x)), max(2, round(y))
                answers.append(f"pyautogui.click(x={x}, y={y})")
            case _:
                corners = [round(1000 * x / size[0]), round(1000 * y / size[1])]
                answers.append(f"[[{corners[0] - 2}, {corners[1] - 2}, {corners[0] + 2}, {corners[1] + 2}]]")
                x, y = corners[0] * size[0] / 1000, corners[1] * size[1] / 1000
        expected.append(float(box[0] - 1e-9 <= x <= box[2] + 1e-9 and box[1] - 1e-9 <= y <= box[3] + 1e-9))
    assert scores("point", answers, items) == expected


def test_mra() -> None:
    rng = random.Random("mra")
    items, answers, expected = [], [], []
    for _ in range(COUNT):
        right = Decimal(rng.randint(1, 400)) / 10
        given = right * Decimal(rng.choice((100, 97, 95, 105, 90, 80, 75, 60, 51, 50, 49, 10, 150, 300))) / 100
        text = rng.choice((f"{given}", f"About {given} meters.", f"{given}.", "many"))
        items.append(item(answers=(str(right),)))
        answers.append(text)
        error = abs(given - right) / right
        thresholds = [Decimal(50 + 5 * step) / 100 for step in range(10)]
        expected.append(0.0 if text == "many" else sum(error < 1 - each for each in thresholds) / 10)
    assert scores("mra", answers, items) == pytest.approx(expected, abs=1e-12)


# --- items that cannot be scored --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "fields"),
    [
        ("vqa", {"answers": ("a", "b", "c")}),
        ("anls", {}),
        ("anls", {"answers": ("a", " ")}),
        ("relaxed", {}),
        ("exact", {}),
        ("options", {"answers": ("A",)}),
        ("options", {"answers": ("C",), "options": ("a", "b")}),
        ("options", {"answers": ("a",), "options": ("a", "b")}),
        ("options", {"options": ("a", "b")}),
        ("best_option", {"answers": ("A", "B"), "options": ("a", "b")}),
        ("yes_no", {"answers": ("maybe",)}),
        ("pope", {"answers": ()}),
        ("ocr", {}),
        ("iou", {"answers": ("a",)}),
        ("point", {}),
        ("mra", {"answers": ("many",)}),
        ("mra", {"answers": ("0",)}),
        ("final_answer", {}),
    ],
)
def test_items_that_a_metric_cannot_score(metric: str, fields: dict[str, object]) -> None:
    with pytest.raises(BrokenLineError):
        METRICS[metric].check(item(**fields))


@pytest.mark.parametrize("metric", METRICS)
def test_no_answer_makes_a_metric_fail(metric: str) -> None:
    full = item(
        answers=("7",) * 4 if metric not in ("options", "best_option", "yes_no", "pope") else ("A",),
        options=("a", "b"), box=(0.0, 0.0, 1.0, 1.0), size=(9, 9),
    )  # fmt: skip
    for answer in (
        "",
        "\0",
        "9" * 5000,
        "[" * 5000,
        "1/0",
        "x=1e999999999, y=2",
        "Final answer:",
        "💥",
        "[[1/0, 1e9, 2, 3]]",
        "-.",
        ".",
    ):
        assert 0 <= METRICS[metric].score(answer, full) <= 1
