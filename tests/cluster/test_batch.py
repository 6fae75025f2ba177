"""`ternvl batch` with several replicas, which is killed and goes on. Needs Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray.data", reason="Ray is not installed (pip install 'ternvl[cluster]')")

pytestmark = [pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]  # Ray's own warnings are not ours
NUM_SHARDS, NUM_LINES = 3, 40


def write_shards(folder: Path) -> None:
    folder.mkdir()
    for shard in range(NUM_SHARDS):
        lines = ['{"custom_id": "same", "method": "POST", "url": "/v1/completions", "body": {"prompt": "Same"}}']
        for index in range(NUM_LINES):
            body = {"messages": [{"role": "user", "content": f"Shard {shard}, line {index}"}], "max_tokens": 48}
            values = {"custom_id": f"{shard}-{index}", "method": "POST", "url": "/v1/chat/completions"}
            lines.append(json.dumps({**values, "body": {**body, "temperature": 0, "ignore_eos": True}}))
        (folder / f"part-{shard}.jsonl").write_text("\n".join([*lines, "no JSON"]) + "\n")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "ternvl", "batch", *arguments, "--concurrency", "4", "--max-model-len", "1024"]


def answers(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def num_whole_lines(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("*.jsonl"))


def told(answer: dict[str, Any]) -> Any:
    response = answer["response"]
    return answer["error"] if response is None else _choice(response["body"]["choices"][0])


def _choice(choice: dict[str, Any]) -> Any:
    return choice.get("message") or choice["text"]


def test_a_run_that_was_killed_goes_on_and_answers_each_line_once(tmp_path: Path) -> None:
    requests, found = tmp_path / "in", tmp_path / "out"
    write_shards(requests)
    many = command(str(requests), str(found), "--replicas", "2")
    running = subprocess.Popen(many, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while num_whole_lines(found) < NUM_SHARDS + 10:
            assert running.poll() is None
            time.sleep(0.02)
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    kept = num_whole_lines(found)
    assert kept < NUM_SHARDS * (NUM_LINES + 2)
    again = subprocess.run(many, capture_output=True, text=True, timeout=300)
    assert again.returncode == 1, again.stderr  # the lines that are no JSON
    assert again.stdout == f"{found}: all lines are done, {NUM_SHARDS} failed\n"
    for file in found.glob("*.jsonl"):
        after = answers(file)
        assert Counter(each["id"] for each in after).most_common(1)[0][1] == 1
        assert len(after) == NUM_LINES + 2
    alone = tmp_path / "alone.jsonl"
    subprocess.run(command(str(requests / "part-1.jsonl"), str(alone)), capture_output=True, timeout=300)
    of_one, of_many = ({each["id"]: told(each) for each in answers(file)} for file in (alone, found / "part-1.jsonl"))
    assert of_one == of_many


def replicas() -> list[int]:
    """The ids of the processes in which Ray Data runs the engines."""
    found = []
    for each in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            if (each / "cmdline").read_bytes().startswith(b"ray::MapWorker"):
                found.append(int(each.name))
    return found


def test_the_lines_of_a_replica_that_dies_are_given_to_another_one(tmp_path: Path) -> None:
    requests, found = tmp_path / "in", tmp_path / "out"
    write_shards(requests)
    many = command(str(requests), str(found), "--replicas", "2")
    running = subprocess.Popen(many, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while num_whole_lines(found) < NUM_SHARDS + 10:
            assert running.poll() is None
            time.sleep(0.02)
        os.kill(replicas()[0], signal.SIGKILL)
        out, errors = running.communicate(timeout=300)
    finally:
        running.kill()
        running.wait()
    assert out.splitlines()[-1] == f"{found}: all lines are done, {NUM_SHARDS} failed", errors  # Ray tells of the death
    for file in found.glob("*.jsonl"):
        names = [each["custom_id"] for each in answers(file)]
        assert len(names) == NUM_LINES + 2
        assert Counter(names).most_common(1)[0][1] == 1


def test_a_replica_that_cannot_load_is_one_sentence(tmp_path: Path) -> None:
    write_shards(tmp_path / "in")
    arguments = command(str(tmp_path / "in"), str(tmp_path / "out"), "--replicas", "2", "--lora", "x=/no/such/folder")
    failed = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert failed.returncode == 1
    last = failed.stderr.strip().splitlines()[-1]
    assert last.startswith("ternvl: A replica cannot answer the batch: ")
    assert "/no/such/folder" in last
