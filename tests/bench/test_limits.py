"""The machine's limits: what the kernels compute, and how a share of a limit is stated."""

from __future__ import annotations

import ctypes
import json

import pytest
import torch

from ternvl.bench import Limits, measure, share
from ternvl.cli import main
from ternvl.errors import ConfigError
from ternvl.kernels.loader import VARIABLE, Int, Int64, Pointer, library

LIMITS = Limits("avx2", 2, read_bytes_per_s=20e9, int8_ops_per_s=1e12, fp32_ops_per_s=2e11)


def function(name: str, *arguments: object) -> object:
    loaded = library()
    if loaded is None:
        pytest.skip("no native kernels here")
    return loaded.function(name, *arguments, result=ctypes.c_double)


@pytest.mark.parametrize("size", [1, 2, 31, 33, 1025, 100_003])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_everything_is_read_once(size: int, threads: int) -> None:
    values = torch.arange(size, dtype=torch.float32) % 7
    read = function("ternvl_read", Pointer, Int64, Int)
    assert read(values.data_ptr(), size, threads) == values.double().sum().item()  # type: ignore[operator]


@pytest.mark.parametrize("name", ["ternvl_peak_int8", "ternvl_peak_fp32"])
def test_operations_are_counted(name: str) -> None:
    peak = function(name, Int64, Int)
    one = peak(1, 1)  # type: ignore[operator]
    assert one > 0
    assert peak(50, 1) == 50 * one  # type: ignore[operator]
    assert peak(50, 2) == 100 * one  # type: ignore[operator]


def test_a_share() -> None:
    text = LIMITS.share(bytes_per_s=17e9, fp32_per_s=1.5e11)
    assert text == "17.0 GB/s read, 85 % of 20.0; 150.0 GFLOP/s of float32, 75 % of 200.0"
    assert LIMITS.share(int8_ops_per_s=5e11) == "500.0 GOP/s of int8, 50 % of 1000.0"
    assert Limits(**LIMITS.as_dict()) == LIMITS  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"num_threads": 0}, {"repeats": 0}, {"memory_bytes": -4}])
def test_numbers_below_one(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="must be at least 1"):
        measure(**wrong)  # type: ignore[arg-type]


def test_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "torch")
    with pytest.raises(ConfigError, match="native kernels"):
        measure()
    assert "native kernels" in share(bytes_per_s=1.0)


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if library() is None:
        pytest.skip("no native kernels here")
    monkeypatch.setattr("ternvl.bench.limits.REPEATS", 1)
    monkeypatch.setattr("ternvl.bench.limits._LEAST_SECONDS", 0)
    with pytest.raises(SystemExit) as ended:
        main(["bench", "limits", "--threads", "1"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    limits = Limits(**json.loads(lines[-1]))
    assert limits.num_threads == 1
    assert "\n".join(lines[:-1]) == limits.table()
    assert min(limits.read_bytes_per_s, limits.int8_ops_per_s, limits.fp32_ops_per_s) > 0
