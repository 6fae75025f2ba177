"""`ternvl quantize` and `ternvl verify`: their output, files and exit codes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from ternvl.kernels.stage_types import Format
from ternvl.quant.tries import BOUNDS
from tests.cli.calling import run
from tests.quant.private_cache import private_cache


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return private_cache(monkeypatch, tmp_path)


@pytest.fixture
def own_samples(tmp_path: Path) -> Path:
    folder = tmp_path / "samples"
    folder.mkdir()
    Image.new("RGB", (50, 40), "red").save(folder / "red.png")
    (folder / "text.txt").write_text("What is the capital of Spain?")
    return folder


def test_quantize_converts_once(capsys: pytest.CaptureFixture[str], cache: Path, folder: Path) -> None:
    code, out, err = run(capsys, "quantize", folder)
    (path,) = cache.glob("int8-*.safetensors")
    assert (code, err) == (0, "")
    assert out.startswith(f"Converted: {path} (")
    assert re.search(r"Layers: \d+ float32, \d+ int8\nSmoothed: .+\nLeft unquantised: .+\nWhole model: ", out)
    assert re.search(
        r"^Whole model: diverges by \d\.\d\de-\d\d nats on average on the samples\nLargest", out, re.MULTILINE
    )
    assert len(re.findall(r"^ +\d+\.\d\d%  \S+  \(int8(?:, smoothed)?\)$", out, re.MULTILINE)) == 5
    written = path.stat().st_mtime_ns
    code, again, _ = run(capsys, "quantize", folder)
    assert (code, again) == (0, out.replace("Converted", "Already there"))
    assert path.stat().st_mtime_ns == written
    code, anew, _ = run(capsys, "quantize", folder, "--force")
    assert (code, anew) == (0, out)
    assert path.stat().st_mtime_ns > written


def test_quantize_names_what_does_not_fit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setitem(BOUNDS, Format.INT4, 1e-6)
    _, out, _ = run(capsys, "quantize", folder, "--quantization", "int4")
    assert re.search(
        r"In int8, because int4 exceeded the error bound: 9: language_model\.model\.layers\.0\.qkv \(\d\.\d%\), ", out
    )
    monkeypatch.setitem(BOUNDS, Format.INT8, 1e-6)
    _, out, _ = run(capsys, "quantize", folder)
    assert re.search(r"Left unquantised: 17: vision_model\.encoder\.layers\.0\.qkv \(\d\.\d%\), ", out)
    assert out.endswith("Largest errors: none\n")


def test_quantize_for_ones_own_samples(
    capsys: pytest.CaptureFixture[str], cache: Path, folder: Path, own_samples: Path
) -> None:
    assert run(capsys, "quantize", folder)[0] == 0
    code, out, _ = run(capsys, "quantize", folder, "--calibration", str(own_samples))
    assert (code, out.startswith("Converted")) == (0, True)
    assert len(list(cache.glob("int8-*"))) == 2


@pytest.mark.parametrize("command", ["quantize", "verify"])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{folder}", "--quantization", "int5"], "quantization is 'int5', but must be one of int8, int4"),
        (["{folder}", "--quantization", "none"], "quantization is 'none'"),
        (["no/such/folder"], "no/such/folder"),
        (["{folder}/config.json"], "is a file"),
        (["{folder}", "--calibration", "{folder}"], "at least one image"),
    ],
)
def test_what_goes_wrong_is_one_line(
    capsys: pytest.CaptureFixture[str], folder: Path, command: str, arguments: list[str], says: str
) -> None:
    code, out, err = run(capsys, command, *(argument.format(folder=folder) for argument in arguments))
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("ternvl: ")
    assert says in err


def test_samples_that_cannot_be_read_are_named(
    capsys: pytest.CaptureFixture[str], folder: Path, own_samples: Path
) -> None:
    (own_samples / "broken.jpg").write_bytes(b"no image")
    code, _, err = run(capsys, "quantize", folder, "--calibration", str(own_samples))
    assert (code, "sample broken.jpg" in err) == (1, True)
    (own_samples / "broken.jpg").rename(own_samples / "broken.txt")
    (own_samples / "broken.txt").write_bytes(b"\xff\xfe\xff")
    code, _, err = run(capsys, "quantize", folder, "--calibration", str(own_samples))
    assert (code, "cannot be read" in err) == (1, True)


def test_quantize_needs_a_cache_that_can_be_written(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    code, out, err = run(capsys, "quantize", folder)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "cannot be written" in err
    assert "XDG_CACHE_HOME" in err


def test_verify_compares(capsys: pytest.CaptureFixture[str], tmp_path: Path, own_samples: Path) -> None:
    figures = tmp_path / "figures.json"
    arguments = ["verify", "--calibration", str(own_samples), "--min-top1", "0.9", "--json", str(figures)]
    code, out, err = run(capsys, *arguments)
    assert (code, err) == (0, "")
    written = json.loads(figures.read_text())
    samples = written["samples"]
    assert written["is_met"]
    assert written["min_top1"] == 0.9
    assert samples["all"]["positions"] == samples["pictures"]["positions"] + samples["texts"]["positions"]
    assert samples["texts"]["positions"] > 10
    assert 0 < samples["all"]["kl_mean"] < samples["all"]["kl_max"] < 1
    for name, row in samples.items():
        assert re.search(rf"^{name} +{row['positions']} +{row['top1']:.2%} ", out, re.MULTILINE)
    assert written["largest_layer_errors"][0]["name"] in out


def test_verify_fails_below_the_bound(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from ternvl.quant import tries

    monkeypatch.setattr(tries, "_error", lambda pieces: 0.0)  # the guard measures no error
    monkeypatch.setattr(tries, "pack_int8", lambda layer, smoothing=None, **_: tries.pack_int4(layer, smoothing))
    figures = tmp_path / "figures.json"
    code, out, err = run(capsys, "verify", "--json", str(figures))
    assert code == 1
    assert "pictures" in out
    assert re.fullmatch(
        r"ternvl: The next token agrees at \d+\.\d\d% of the positions, which is below 99\.00%\.\n", err
    )
    assert not json.loads(figures.read_text())["is_met"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--min-top1", "1.5"], "min_top1 is 1.5"),
        (["--min-top1", "nan"], "min_top1 is nan"),
        (["--max-tokens", "0"], "max_tokens is 0"),
        (["--json", "no/such/folder/figures.json"], "no/such/folder/figures.json"),
    ],
)
def test_settings_that_verify_refuses(
    capsys: pytest.CaptureFixture[str], folder: Path, arguments: list[str], says: str
) -> None:
    code, out, err = run(capsys, "verify", folder, *arguments)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert says in err
