"""`ternvl finetune` on a tiny model: training, the files it writes, and resuming."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from ternvl.cli import main
from ternvl.finetune import durable
from ternvl.finetune.run_log import RunLog, read_rows
from ternvl.finetune.settings import Schedule, TrainingConfig
from tests.finetune.samples import text_line, write_checkpoint, write_images, write_lines, write_training_data

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("--rank", "4", "--alpha", "8", "--lr", "1e-2", "--batch-size", "4", "--dtype", "float32")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, pictures and a file of twelve lines."""
    folder = tmp_path_factory.mktemp("train")
    write_checkpoint(folder / "tiny")
    write_images(folder / "images")
    write_training_data(folder / "train.jsonl")
    return folder


def command(home: Path, output: Path, *options: str) -> list[str]:
    data = ["--data", str(home / "train.jsonl"), "--images", str(home / "images")]
    return ["finetune", str(home / "tiny"), *data, "--output", str(output), *QUICK, *options]


def call(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def tune(home: Path, output: Path, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    code, out, err = call(command(home, output, *options), capsys)
    assert code == 0, err
    return out


def weights_of(output: Path) -> bytes:
    return (output / "adapter_model.safetensors").read_bytes()


def test_training_lowers_the_loss_and_writes_its_files(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "adapter"
    out = tune(home, output, capsys, "--epochs", "10", "--eval-share", "0.2", "--eval-every", "10")
    rows = read_rows(output / "run" / "metrics.jsonl")
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 31))  # 10 of 12 lines, 4 a step
    assert steps[-1]["loss"] < 0.75 * steps[0]["loss"]
    assert [row["step"] for row in rows if "eval_loss" in row] == [10, 20, 30]
    assert steps[0]["lr"] < steps[1]["lr"] > steps[-1]["lr"] > 0
    assert steps[2]["epoch"] == 1.0
    assert "30 steps" in out
    assert "peak memory" in out
    with Image.open(output / "run" / "loss.png") as picture:
        assert picture.size == (840, 480)
    settings = json.loads((output / "run" / "config.json").read_text())
    assert (settings["rank"], settings["target"], settings["epochs"]) == (4, ["language"], 10.0)
    summary = json.loads((output / "run" / "summary.json").read_text())
    assert summary["eval_loss"] == min(row["eval_loss"] for row in rows if "eval_loss" in row)
    assert not (output / "run" / "checkpoint.pt").exists()


def test_the_adapter_has_peft_s_form(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tune(home, tmp_path / "a", capsys, "--max-steps", "1", "--target", "language", "--target", "projector",
         "--target", "vision", "--target", "head", "--rslora", "--dropout", "0.1")  # fmt: skip
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["use_rslora"]) == ("LORA", 4, 8.0, True)
    assert config["base_model_name_or_path"] == str(home / "tiny")
    assert config["lora_dropout"] == 0.1
    with safe_open(tmp_path / "a" / "adapter_model.safetensors", "pt") as file:
        names = set(file.keys())
    modules = [f"language_model.model.layers.{i}.self_attn.{x}_proj" for i in (0, 1) for x in "qkvo"]
    modules += [f"language_model.model.layers.{i}.mlp.{x}_proj" for i in (0, 1) for x in ("gate", "up", "down")]
    modules += [f"vision_model.encoder.layers.0.{x}" for x in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]
    modules += ["mlp1.1", "mlp1.3", "language_model.lm_head"]
    assert names == {f"base_model.model.{module}.lora_{x}.weight" for module in modules for x in "AB"}


@pytest.mark.parametrize("target", ["projector", "vision"])
def test_only_the_targeted_part_is_in_the_adapter(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    tune(home, tmp_path / "a", capsys, "--max-steps", "2", "--target", target, "--eval-share", "0")
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    start = {"projector": "base_model.model.mlp1.", "vision": "base_model.model.vision_model."}[target]
    assert all(name.startswith(start) for name in tensors)
    assert any(tensor.abs().max() > 0 for name, tensor in tensors.items() if "lora_B" in name), (
        "gradients reach it through the tiles"
    )


def test_how_a_step_is_packed_does_not_matter(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for tokens in ("4096", "1"):
        tune(home, tmp_path / tokens, capsys, "--pack-tokens", tokens, "--max-steps", "3", "--eval-share", "0")
    losses = [[row["loss"] for row in read_rows(tmp_path / t / "run" / "metrics.jsonl")] for t in ("4096", "1")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_early_stopping_keeps_the_best(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The held-out data has other answers, so that learning makes its loss worse."""
    other = write_lines(tmp_path / "eval.jsonl", [text_line("say a", "ZZZZ"), text_line("say b", "QQ")])
    options = ("--epochs", "20", "--eval-every", "2", "--patience", "3", "--eval-data", str(other), "--lr", "0.05")
    out = tune(home, tmp_path / "a", capsys, *options)
    rows = [row for row in read_rows(tmp_path / "a" / "run" / "metrics.jsonl") if "eval_loss" in row]
    best = min(range(len(rows)), key=lambda i: rows[i]["eval_loss"])
    assert len(rows) == best + 4 < 30
    assert f"best, after step {rows[best]['step']}" in out


class _KilledError(BaseException):
    """Ends a run as a kill would, since nothing catches it."""


@pytest.mark.parametrize("moment", ["between checkpoints", "while a checkpoint is written"])
def test_resumed_is_uninterrupted_to_the_bit(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    options = ("--epochs", "4", "--save-every", "3", "--dropout", "0.2", "--eval-share", "0.2", "--eval-every", "2")
    tune(home, tmp_path / "whole", capsys, *options)
    with monkeypatch.context() as patch:
        if moment == "between checkpoints":
            step = RunLog.step
            patch.setattr(RunLog, "step", lambda self, row: _killed() if row["step"] == 8 else step(self, row))
        else:
            patch.setattr(durable.os, "replace", _Replace(on_call=3))
        with pytest.raises(_KilledError):
            main(command(home, tmp_path / "killed", *options))
    assert not (tmp_path / "killed" / "adapter_config.json").exists()
    capsys.readouterr()
    out = tune(home, tmp_path / "killed", capsys, *options, "--resume")
    assert f"after step {6 if moment == 'between checkpoints' else 3}" in out
    assert weights_of(tmp_path / "killed") == weights_of(tmp_path / "whole")
    rows = [read_rows(tmp_path / name / "run" / "metrics.jsonl") for name in ("killed", "whole")]
    assert [{**row, "seconds": 0} for row in rows[0]] == [{**row, "seconds": 0} for row in rows[1]]


def _killed() -> None:
    raise _KilledError


class _Replace:
    """`os.replace`, killed before its n-th call: the first writes run/config.json, the later ones checkpoints."""

    def __init__(self, on_call: int) -> None:
        self._left, self._replace = on_call, os.replace

    def __call__(self, source: Path, target: Path) -> None:
        self._left -= 1
        if not self._left:
            _killed()
        self._replace(source, target)


def test_a_real_kill(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--epochs", "6", "--save-every", "1", "--eval-share", "0")
    arguments = [sys.executable, "-m", "ternvl", *command(home, tmp_path / "killed", *options)]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        checkpoint = tmp_path / "killed" / "run" / "checkpoint.pt"
        while not checkpoint.exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert 0 < durable.read_state(checkpoint)["progress"]["step"] < 18
    code, _, err = call(command(home, tmp_path / "killed", *options, "--resume", "--epochs", "2"), capsys)
    assert (code, "was started with epochs 6.0, not 2.0" in err) == (1, True)
    tune(home, tmp_path / "killed", capsys, *options, "--resume")
    tune(home, tmp_path / "whole", capsys, *options)
    ours, expected = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("killed", "whole"))
    for name, tensor in expected.items():  # another process may use another number of threads, and round differently
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-3)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=str)
def test_a_signal_keeps_a_checkpoint_and_names_resume(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:  # fmt: skip
    options = ("--epochs", "4", "--eval-share", "0")
    step = RunLog.step

    def signal_in_step_2(self: RunLog, row: dict[str, float]) -> None:
        step(self, row)
        if row["step"] == 2:
            os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "step", signal_in_step_2)
        code, _, err = call(command(home, tmp_path / "a", *options), capsys)
    assert code == 130
    assert "stopped after step 2 of 12" in err
    assert "--resume" in err
    assert "after step 2" in tune(home, tmp_path / "a", capsys, *options, "--resume")
    tune(home, tmp_path / "whole", capsys, *options)
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "whole")


def test_defaults_follow_from_the_data_and_the_model() -> None:
    nano, few = Schedule.of(TrainingConfig(), 19, 256), Schedule.of(TrainingConfig(), 3, 896)
    assert (nano.batch_size, nano.epochs) == (4, 20.0)  # 5 steps an epoch, 100 in all
    assert nano.lr == pytest.approx(1.7e-3, rel=0.02)
    assert (few.batch_size, few.epochs, few.lr) == (1, 34.0, 4e-5)
    large = Schedule.of(TrainingConfig(), 10_000, 1536)
    assert (large.batch_size, large.epochs, large.lr) == (16, 1.0, 4e-5)
    given = Schedule.of(TrainingConfig(lr=1e-2, epochs=0.5, batch_size=2), 19, 256)
    assert given == Schedule(lr=1e-2, epochs=0.5, batch_size=2)


def test_too_little_is_warned_about(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tune(home, tmp_path / "a", capsys, "--max-steps", "2", "--lr", "1e-9")
    assert "11 conversations are few" in out
    assert "2 steps are few" in out
    out = tune(home, tmp_path / "b", capsys, "--max-steps", "6", "--batch-size", "11", "--lr", "1e-9")
    assert "The loss hardly fell" in out


def test_invalid_settings_and_data_are_refused_before_training(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(*options: str, output: Path = tmp_path / "a") -> str:
        code, _, err = call(command(home, output, *options), capsys)
        assert code == 1
        assert not (output / "run" / "metrics.jsonl").exists()
        return err

    assert "rank is 0" in refusal("--rank", "0")
    assert "target is brain" in refusal("--target", "brain")
    assert "lr is nan" in refusal("--lr", "nan")
    assert "dtype is 'float16'" in refusal("--dtype", "float16")
    assert "patience is given" in refusal("--patience", "1", "--eval-share", "0")
    assert "device is 'mars'" in refusal("--device", "mars", output=tmp_path / "b")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x").touch()
    assert "is not an empty folder" in refusal(output=tmp_path / "c")
    bad = write_lines(tmp_path / "bad.jsonl", ["{", text_line("a", "b"), "[]"])
    err = refusal("--data", str(bad), output=tmp_path / "d")
    assert f"{bad}:1: The line is not valid JSON" in err
    assert f"{bad}:3: The line must be" in err
    assert "2 bad lines" in err
    monkeypatch.setitem(sys.modules, "peft", None)
    assert "pip install 'ternvl[finetune]'" in refusal(output=tmp_path / "e")


def test_a_learning_rate_that_diverges_is_reported(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(command(home, tmp_path / "a", "--lr", "1", "--alpha", "1e30", "--epochs", "20"), capsys)
    assert code == 1
    assert "diverged" in err


def test_a_finished_adapter_is_not_overwritten(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tune(home, tmp_path / "a", capsys, "--max-steps", "1")
    before = weights_of(tmp_path / "a")
    for option in ([], ["--resume"]):
        code, _, err = call(command(home, tmp_path / "a", "--max-steps", "1", *option), capsys)
        assert (code, "holds an adapter already" in err) == (1, True)
    assert weights_of(tmp_path / "a") == before


def test_bfloat16_weights_train_a_float32_adapter(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tune(home, tmp_path / "a", capsys, "--dtype", "bfloat16", "--epochs", "8", "--eval-share", "0")
    tensors: dict[str, Any] = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    losses = [row["loss"] for row in read_rows(tmp_path / "a" / "run" / "metrics.jsonl")]
    assert losses[-1] < 0.7 * losses[0]
