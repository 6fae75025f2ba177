from __future__ import annotations

import pytest

from ternvl.cli.chat.markdown import Markdown

NAMES = {"\x1b[1m": "<b>", "\x1b[22m": "</b>", "\x1b[36m": "<c>", "\x1b[39m": "</c>", "\x1b[0m": "<>"}

SHOWN = {
    "plain": "plain",
    "# Head\nbody": "<b>Head<>\nbody",
    "a **bold** word": "a <b>bold</b> word",
    "2 ** 3 * 4": "2 ** 3 * 4",
    "`x ** y` z": "<c>x ** y</c> z",
    "- one\n  * two\n+ three": "• one\n  • two\n• three",
    "**bold** first": "<b>bold</b> first",
    "**never ends\nnext": "<b>never ends<>\nnext",
    "```py\na = '**'\n# no heading\n```\n**b**": "<c>```py\na = '**'\n# no heading\n```</c>\n<b>b</b>",
    "~~~\n```\n~~~\n": "<c>~~~\n```\n~~~</c>\n",
    "```\nopen": "<c>```\nopen<>",
    "#no\n####### seven": "#no\n####### seven",
    "  ": "  ",
    "*": "*",
    "-": "-",
    "``": "<c></c>",
    "a\x1b[2Jb\x07\x9bc\r\n": "a[2Jbc\n",
    "tab\there": "tab\there",
    "# a **b** c\n": "<b>a <b>b c<>\n",
}


def named(text: str) -> str:
    for code, name in NAMES.items():
        text = text.replace(code, name)
    return text


@pytest.mark.parametrize("text", SHOWN)
@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_markdown_looks_like_what_it_means_however_it_is_cut(text: str, size: int) -> None:
    markdown = Markdown()
    pieces = [markdown.feed(text[start : start + size]) for start in range(0, len(text), size)]
    assert named("".join(pieces) + markdown.close()) == SHOWN[text]


def test_text_is_not_held_back() -> None:
    markdown = Markdown()
    assert markdown.feed("Hel") == "Hel"
    assert markdown.feed("lo *") == "lo "
    assert markdown.feed(" you") == "* you"
