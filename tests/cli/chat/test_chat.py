"""`ternvl chat`, from its input to what it prints."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from PIL import Image

from ternvl.cli.chat.attachments import pasted_path
from ternvl.cli.chat.conversation import ConsoleChat
from ternvl.cli.chat.session import show
from ternvl.llm import LLM
from tests.cli.calling import GREEDY, expected, run, user
from tests.prompt.videos import animation, picture
from tests.server.fakes import scripted_llm


def test_chat_keeps_the_conversation(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, offline: LLM, image: Path
) -> None:
    lines = ["a", f"/image {image}", "b", "", "/nothing", "/image none.png", "/reset", "c", "/help", "/quit", "never"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    code, out, err = run(capsys, "chat", str(folder), *GREEDY)
    first = expected(offline, user("a"))
    said = {"role": "assistant", "content": first}
    second = expected(offline, user("a"), said, user("b", Image.open(image)))
    third = expected(offline, user("c"))
    assert code == 0
    assert out.startswith(f"{first}\n{second}\n{third}\n/image PATH")
    assert [line.partition(":")[0] for line in err.splitlines()] == ["ternvl", "ternvl"]
    assert "/nothing" in err
    assert "none.png" in err


def test_a_video_is_attached_to_the_next_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, offline: LLM, tmp_path: Path
) -> None:
    path = tmp_path / "a clip.gif"
    path.write_bytes(animation([picture(number) for number in range(12)]))
    lines = [f"/video '{path}'", "hi", "/video none.mp4"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    turn = {"role": "user", "content": [{"type": "video", "video": path}, {"type": "text", "text": "hi"}]}
    code, out, err = run(capsys, "chat", str(folder), *GREEDY)
    assert (code, out) == (0, expected(offline, turn) + "\n")
    assert err == "ternvl: The video none.mp4 cannot be read: No such file or directory.\n"


@pytest.mark.parametrize("form", ["{}", "  {} ", "'{}'", '"{}" ', "file://{url}", "{escaped}"])
def test_a_path_may_be_pasted(tmp_path: Path, form: str) -> None:
    path = tmp_path / "a red one.png"
    path.touch()
    text, url = str(path), str(path).replace(" ", "%20")
    assert pasted_path(form.format(text, url=url, escaped=text.replace(" ", "\\ "))) == path


def test_exit_ends_the_program(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("/exit\nnever"))
    assert run(capsys, "chat", str(folder)) == (0, "", "")


def test_chat_ends_with_its_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, offline: LLM, image: Path
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("what?"))
    code, out, _ = run(capsys, "chat", str(folder), "--image", str(image), *GREEDY)
    assert (code, out) == (0, expected(offline, user("what?", Image.open(image))) + "\n")


def test_reasoning_is_shown_before_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    show(ConsoleChat(scripted_llm("<think>Hm.\n</think>\n\nYes."), {"max_tokens": 99}).ask("hi"))
    assert capsys.readouterr().out == "Hm.\n\nYes.\n"
    show(ConsoleChat(scripted_llm("Yes."), {"max_tokens": 99}).ask("hi"))
    assert capsys.readouterr().out == "Yes.\n"


def test_no_history_keeps_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    kept: list[Path | None] = []
    monkeypatch.setattr("ternvl.cli.chat.session.talk", lambda chat, history: kept.append(history))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for flags in ([], ["--no-history"]):
        assert run(capsys, "chat", folder, *flags)[0] == 0
    assert kept == [tmp_path / "ternvl" / "chat_history", None]
