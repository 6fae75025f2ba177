"""`ternvl task` and `ternvl eval`, from their arguments to what they print, over a server and in this process."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.calling import run
from tests.tasks.scripted_server import ScriptedServer

EXAMPLE = str(Path(__file__).resolve().parents[2] / "docs" / "example.png")
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


BOX = "<ref>it</ref><box>[[0, 0, 500, 250]]</box>"
CLICK = "pyautogui.click(x=0.5, y=0.25)"


@pytest.mark.parametrize(
    ("arguments", "answer", "printed"),
    [
        (["ground", EXAMPLE, "the circle"], BOX, "0 0 56 28  it"),
        (["detect", EXAMPLE, "a", "b"], BOX, "0 0 56 28  a\n0 0 56 28  b"),
        (["detect", EXAMPLE], BOX, "0 0 56 28  it"),
        (["point", EXAMPLE, "the circle"], BOX, "28 14"),
        (["click", EXAMPLE, "open it"], CLICK, f"{CLICK}  56 28"),
        (
            ["agent-step", EXAMPLE, "go", "--platform", "mobile", "--history", "mobile.back()"],
            "mobile.home()",
            "mobile.home()",
        ),
        (["text", EXAMPLE], "EXIT", "EXIT"),
        (["caption", EXAMPLE], "A circle.", "A circle."),
        (["count", EXAMPLE, "circles"], "Two", "2"),
        (["choose", EXAMPLE, "What is it?", "circle", "square"], "B", "square"),
        (["yes-no", EXAMPLE, "Is it?"], "No.", "no"),
        (["compare", EXAMPLE, EXAMPLE], "None.", "None."),
        (["views", EXAMPLE, EXAMPLE, "--question", "What?"], "A circle.", "A circle."),
        (["inspect", EXAMPLE, "Is it?", "--reference", EXAMPLE], "A", "pass  Is it?"),
    ],
)
def test_every_command(
    capsys: Capture, server: ScriptedServer, arguments: list[str], answer: str, printed: str
) -> None:
    server.say(answer)
    assert run(capsys, "task", *arguments, "--url", server.url) == (0, printed + "\n", "")


def test_images_in_turn_with_texts(capsys: Capture, server: ScriptedServer) -> None:
    server.say("None.")
    assert run(capsys, "task", "compare", EXAMPLE, EXAMPLE, "--url", server.url, "--image-token", "")[0] == 0
    kinds = [part["type"] for part in server.bodies[0]["messages"][0]["content"]]
    assert kinds == ["text", "image_url", "text", "text", "image_url", "text", "text"]


def test_a_schema_file(capsys: Capture, server: ScriptedServer, tmp_path: Path) -> None:
    server.say('{"total": 3}')
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "required": ["total"]}')
    asked = ["task", "read", EXAMPLE, schema, "--url", server.url, "--question", "Read it."]
    code, out, _ = run(capsys, *asked, "--output", "json")
    assert (code, json.loads(out)) == (0, {"total": 3})
    schema.write_text("{")
    assert run(capsys, *asked)[0] == 1


def test_a_video(capsys: Capture, server: ScriptedServer, tmp_path: Path) -> None:
    server.say("It moves.")
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:])
    code, out, _ = run(capsys, "task", "video", tmp_path / "clip.gif", "What?", "--frames", "2", "--url", server.url)
    assert (code, out) == (0, "It moves.\n")
    assert "Frame-2: <image>" in server.bodies[0]["messages"][0]["content"][-1]["text"]


def test_a_failed_inspection_ends_with_status_1(capsys: Capture, server: ScriptedServer) -> None:
    server.say("B")
    code, out, _ = run(capsys, "task", "inspect", EXAMPLE, "Is it?", "--no-locate", "--url", server.url)
    assert (code, out) == (1, "FAIL  Is it?  B\n")


def test_json_tiles_keys_and_drawings(capsys: Capture, server: ScriptedServer, tmp_path: Path) -> None:
    server.say(BOX)
    drawing = tmp_path / "found.png"
    options = [
        "--output",
        "json",
        "--draw",
        drawing,
        "--max-tiles",
        "2",
        "--max-tokens",
        "50",
        "--model",
        "mine",
        "--api-key",
        "k",
    ]
    code, out, _ = run(capsys, "task", "ground", EXAMPLE, "it", "--url", server.url, *options)
    assert (code, json.loads(out)) == (0, [{"x1": 0, "y1": 0, "x2": 56, "y2": 28, "label": "it"}])
    with Image.open(drawing) as drawn:
        assert drawn.size == (112, 112)
    (body,) = server.bodies
    assert (body["model"], body["max_tokens"]) == ("mine", 50)
    assert body["messages"][0]["content"][0]["image_url"]["max_dynamic_patch"] == 2
    assert server.headers[0]["Authorization"] == "Bearer k"


def test_an_answer_that_is_refused_is_one_line(capsys: Capture, server: ScriptedServer) -> None:
    server.say("I cannot see it.")
    code, out, err = run(capsys, "task", "ground", EXAMPLE, "it", "--url", server.url)
    assert (code, out) == (1, "")
    assert err == "ternvl: The answer 'I cannot see it.' has no box of the form [[x1, y1, x2, y2]].\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ground", "no such file.png", "it"], "cannot be read"),
        (["ground", EXAMPLE, "it", "--output", "xml"], "--output"),
        (["ground", EXAMPLE, "it", "--prompts", "mine"], "--prompts"),
        (["ground", EXAMPLE, "it", "--url", "no url"], "http"),
        (["ground", EXAMPLE, "it", "--url", "http://127.0.0.1:9/v1"], "could not be reached"),
        (["ground", EXAMPLE, "it", "--url", "http://127.0.0.1:9/v1", "--lora", "french"], "--lora"),
        (["compare", EXAMPLE, EXAMPLE, "--image-token", "x"], "--image-token"),
        (["compare", EXAMPLE, EXAMPLE, "--url", "http://127.0.0.1:9/v1", "--draw", "x.png"], "--draw"),
    ],
)
def test_wrong_usage_is_one_line(capsys: Capture, arguments: list[str], words: str) -> None:
    code, out, err = run(
        capsys,
        "task",
        *arguments,
        *([] if {"--url", "--image-token"} & set(arguments) else ["--url", "http://127.0.0.1:9/v1"]),
    )
    assert (code, out) == (1, "")
    assert err.startswith("ternvl: ")
    assert words in err
    assert err.count("\n") == 1


def test_the_embedded_model_and_an_adapter_answer_in_this_process(capsys: Capture) -> None:
    assert run(capsys, "task", "count", EXAMPLE, "objects")[1] == "2\n"
    assert run(capsys, "task", "caption", EXAMPLE, "--lora", "french")[1] == "Un cercle rouge et un carré bleu.\n"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [
        json.dumps({"question": f"say {number}", "answer": str(number % 2), "category": "ab"[number % 2]})
        for number in range(6)
    ]
    (folder / "items.jsonl").write_text("\n".join(["{", *rows]))
    return folder


def test_an_evaluation(capsys: Capture, server: ScriptedServer, data: Path) -> None:
    server.say("1")
    out_folder = data.parent / "out"
    command = ["eval", data, "--benchmark", "ai2d", "--output", out_folder, "--url", server.url, "--concurrency", "2"]
    code, out, err = run(capsys, *command)
    assert code == 0
    assert err.startswith(f"{data / 'items.jsonl'}:1: It is not JSON: ")
    assert err.count("\n") == 1
    rows = [line.split() for line in out.splitlines()]
    assert rows[:4] == [
        ["items", "score", "published"],
        ["ai2d", "6", "50.00", "69.4"],
        ["a", "3", "0.00"],
        ["b", "3", "100.00"],
    ]
    assert len(server.bodies) == 6
    code, out, _ = run(capsys, *command, "--json")
    assert json.loads(out) == json.loads((out_folder / "results.json").read_text())
    assert len(server.bodies) == 6
    code, _, err = run(capsys, *command, "--max-tokens", "20")
    assert (code, "other settings (max_tokens)" in err) == (1, True)
    code, _, err = run(capsys, *command[:4], "--output", data.parent / "none", "--url", "http://127.0.0.1:9/v1")
    assert (code, err.splitlines()[-1].endswith("The same command goes on after the answers so far.")) == (1, True)


def test_an_evaluation_of_ones_own(capsys: Capture, server: ScriptedServer, data: Path) -> None:
    server.say("1.")
    options = ["--metric", "anls", "--prompt", "{question}!", "--max-tiles", "2", "--max-tokens", "3", "--limit", "2"]
    code, out, _ = run(
        capsys, "eval", data, "--output", data.parent / "o", "--url", server.url, "--model", "m", *options
    )
    assert code == 0
    assert "custom" in out
    asked = sorted(body["messages"][0]["content"][-1]["text"] for body in server.bodies)  # they are asked at once
    assert asked == ["say 0!", "say 1!"]
    assert {(body["max_tokens"], body["model"]) for body in server.bodies} == {(3, "m")}


def test_the_list_of_benchmarks(capsys: Capture) -> None:
    code, out, _ = run(capsys, "eval", "--list")
    assert code == 0
    assert ["docvqa", "anls", "18", "100", "81.9"] in [line.split()[:5] for line in out.splitlines()]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "--output"),
        (["none", "--output", "o"], 1, "--benchmark nor --metric"),
        (["none", "--output", "o", "--benchmark", "none"], 1, "docvqa"),
        (["none", "--output", "o", "--metric", "none"], 1, "metric"),
        (["none", "--output", "o", "--metric", "anls"], 1, "cannot be read"),
        (["none", "--output", "o", "--metric", "anls", "--prompt", "{x}"], 1, "prompt"),
        (["none", "--output", "o", "--metric", "anls", "--concurrency", "0"], 1, "concurrency"),
    ],
)
def test_a_wrong_evaluation_is_one_line(capsys: Capture, arguments: list[str], code: int, words: str) -> None:
    found, out, err = run(capsys, "eval", *arguments)
    assert (found, out) == (code, "")
    assert words in err
    assert err.count("\n") == 1
