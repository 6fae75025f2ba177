"""The normal form of a short answer: that of the VQA challenge (https://visualqa.org/evaluation.html).

Lower case, without articles and punctuation, numbers in digits, contractions with their apostrophe.
"""

from __future__ import annotations

import re

_ARTICLES = ("a", "an", "the")
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBER_WORDS)} | {"none": "0"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_WITH_APOSTROPHES = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _without_one_apostrophe(word: str) -> list[str]:
    places = (index for index, letter in enumerate(word) if letter == "'")
    return [word[:index] + word[index + 1 :] for index in places]


_CONTRACTIONS = {short: word for word in _WITH_APOSTROPHES.split() for short in _without_one_apostrophe(word)}
"""Contractions by their spellings in which one apostrophe is missing."""


def normal_form(answer: str) -> str:
    """Return an answer in its normal form, in which answers are compared."""
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    words = [_DIGITS.get(word, word) for word in _without_punctuation(text).lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    """Remove the marks that stand beside a space, or all of them beside a number like 1,000; make others spaces."""
    has_number, result = bool(_COMMA_IN_NUMBER.search(text)), text
    for mark in _PUNCTUATION:
        is_dropped = has_number or f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if is_dropped else " ")
    return _PERIOD.sub("", result)
