"""`ternvl run` for scripts and pipes."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from ternvl.llm import LLM
from tests.cli.calling import GREEDY, expected, run, user


def piped(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


def test_images_are_files_or_the_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, offline: LLM, image: Path
) -> None:
    seen = Image.open(image)
    asked = ["--model", folder, *GREEDY]
    assert run(capsys, "run", "hi", image, *asked) == (0, expected(offline, user("hi", seen)) + "\n", "")
    piped(monkeypatch, image.read_bytes())
    both = expected(offline, user("hi", seen, seen)) + "\n"
    assert run(capsys, "run", "hi", "-", *asked, "--image", image) == (0, both, "")


def test_forms_of_the_answer(capsys: pytest.CaptureFixture[str], folder: Path, offline: LLM) -> None:
    asked = ["run", "hi", "--model", folder, *GREEDY]
    text = expected(offline, user("hi"))
    assert run(capsys, *asked, "--no-stream") == (0, text + "\n", "")
    code, out, _ = run(capsys, *asked, "--output", "json")
    assert (code, json.loads(out)["text"]) == (0, text)
    code, out, _ = run(capsys, *asked, "--output", "json", "--stream")
    *deltas, last = map(json.loads, out.splitlines())
    assert (code, "".join(each["delta"] for each in deltas)) == (0, text)
    assert (len(deltas) > 1, last["text"]) == (True, text)


def test_an_answer_that_is_cut_is_not_whole_json(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "array", "minItems": 50}')
    code, out, err = run(capsys, "run", "hi", "--model", folder, "--json-schema", schema, *GREEDY)
    assert (code, out.startswith("[")) == (1, True)
    assert err == "ternvl: The answer was cut after 8 tokens and is not whole JSON; raise --max-tokens.\n"


@pytest.mark.parametrize(
    ("arguments", "stdin", "says"),
    [
        (["-", "-"], b"hi", "either the question or one image"),
        (["-"], b" \n", "The question is empty"),
        ([""], b"", "The question is empty"),
        (["-"], b"\xff", "not UTF-8"),
        (["hi", "-"], b"no image", "The standard input is not an image"),
        (["hi", "-"], b"", "The standard input is empty"),
        (["hi", "none.png"], b"", "The image none.png cannot be read"),
        (["hi", "{tmp}/text"], b"", "text is not an image in a supported format"),
        (["hi", "--json-schema", "{tmp}/text"], b"", "text is not JSON"),
        (["hi", "--output", "xml"], b"", "--output is 'xml'"),
    ],
)
def test_what_cannot_be_asked_is_said_before_the_model_loads(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    stdin: bytes,
    says: str,
) -> None:
    (tmp_path / "text").write_text("neither")
    piped(monkeypatch, stdin)
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    code, out, err = run(capsys, "run", *given, "--model", "no/such/model")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert says in err
