"""The kernels for ARM64, cross-compiled and run under qemu-aarch64: against float64, and bit for bit with each other.

`driver.cpp` calls them with seeded numbers and writes what went in and what came out. The same driver runs with this
machine's own libraries, whose integer kernels have the same bits.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ternvl.kernels import build
from ternvl.kernels.attention import paged_attention_reference
from ternvl.kernels.attention_int8 import attention_int8_reference, tile_attention_reference
from ternvl.kernels.rounding import mix

QEMU, SYSROOT = "qemu-aarch64", Path("/usr/aarch64-linux-gnu")
MISSING = [name for name in (build.CROSS_COMPILERS["aarch64"], QEMU) if not shutil.which(name)]
pytestmark = [
    pytest.mark.timeout(900),  # a busy machine compiles for minutes
    pytest.mark.skipif(bool(MISSING), reason=f"{' and '.join(MISSING)} missing (g++-aarch64-linux-gnu, qemu-user)"),
]

CPUS = {"neon": "cortex-a53", "dotprod": "neoverse-n1", "i8mm": "max"}
"""For each instruction set a CPU that has it and none of the later ones."""
KERNELS = Path(__file__).parents[1]
DTYPES = {
    "f4": torch.float32, "i1": torch.int8, "u1": torch.uint8, "u2": torch.bfloat16, "i4": torch.int32, "i8": torch.int64
}  # fmt: skip

CLOSE = 2e-6
"""The largest error against float64, as a share of the largest number of the result."""
ATTENTION, ATTENTION_INT8 = 3e-6, 0.012
"""The same of attention, for which docs/kernels.md has the first; of that over bytes it is a share of the norm."""
LORA, LORA_INT8 = 5e-6, 5e-5
"""The largest error as a share of the sum of the products' sizes."""
DECODED = 2e-6
"""The largest difference between decoders of ARM64 and of this machine, as a share of the largest number."""

Case = dict[str, Tensor]


def read(path: Path) -> dict[str, Case]:
    """The records of a driver by case and name."""
    content, cases, at = bytearray(path.read_bytes()), dict[str, Case](), 0
    while at < len(content):
        end = content.index(b"\n", at)
        name, dtype, *sizes = content[at:end].decode().split(" ")
        shape = torch.Size(int(size) for size in sizes)
        num_bytes = shape.numel() * int(dtype[1])
        values = torch.frombuffer(content, dtype=torch.uint8, offset=end + 1, count=num_bytes).clone()
        case, _, record = name.partition("/")
        cases.setdefault(case, {})[record] = values.view(DTYPES[dtype]).view(shape)
        at = end + 1 + num_bytes
    return cases


def done(*command: str | Path) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "OMP_WAIT_POLICY": "passive"}  # threads that spin keep the others from working
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=variables)


def linked(compiler: list[str], library: Path, target: Path) -> Path:
    """The driver, linked with a library of kernels."""
    flags = (
        "-std=c++17",
        "-O1",
        "-w",
        "-fopenmp",
        f"-I{build.SOURCES}",
        f"-I{KERNELS}",
        f"-Wl,-rpath,{library.parent}",
    )
    made = done(*compiler, *flags, KERNELS / "arm" / "driver.cpp", library, "-o", target)
    assert made.returncode == 0, made.stderr
    return target


def emulated(cpu: str, *command: str | Path) -> subprocess.CompletedProcess[str]:
    return done(QEMU, "-L", SYSROOT, "-cpu", cpu, *command)


@pytest.fixture(scope="module")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("arm")
    libraries = {path.name.partition("-")[0]: path for path in build.build_for("aarch64")}
    compiler = [build.CROSS_COMPILERS["aarch64"]]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = pool.map(lambda isa: linked(compiler, libraries[isa], folder / isa), CPUS)
        return dict(zip(CPUS, made, strict=True))


@pytest.fixture(scope="module")
def computed(drivers: dict[str, Path]) -> dict[str, dict[str, Case]]:
    """What each library of ARM64 computes. Each also says which instruction sets the CPU has."""
    for isa, driver in drivers.items():
        ran = emulated(CPUS[isa], driver, driver.with_suffix(".bin"))
        has = list(CPUS)[: list(CPUS).index(isa) + 1]
        assert (ran.returncode, ran.stdout.split()) == (0, has), ran.stderr
    return {isa: read(driver.with_suffix(".bin")) for isa, driver in drivers.items()}


@pytest.fixture(scope="module")
def cases(computed: dict[str, dict[str, Case]]) -> dict[str, Case]:
    return computed["i8mm"]


def test_the_command_prints_the_libraries(drivers: dict[str, Path]) -> None:
    command = (sys.executable, "-m", "ternvl.kernels.build", "--target")
    built = done(*command, "aarch64")
    assert built.returncode == 0, built.stderr
    assert list(map(Path, built.stdout.split())) == build.build_for("aarch64")
    refused = done(*command, "mips")
    assert (refused.returncode, refused.stderr) == (1, "ternvl: --target is 'mips'; it is one of aarch64.\n")


def test_a_cpu_without_the_instructions_refuses_them(drivers: dict[str, Path], tmp_path: Path) -> None:
    """Otherwise it would prove nothing that each library runs on the least CPU that it is for."""
    for isa, cpu in (("dotprod", CPUS["neon"]), ("i8mm", CPUS["dotprod"])):
        assert emulated(cpu, drivers[isa], tmp_path / "out").returncode == -signal.SIGILL


def test_all_instruction_sets_of_arm_have_the_same_bits(computed: dict[str, dict[str, Case]]) -> None:
    first, *others = computed.values()
    assert sum(map(len, first.values())) > 300
    for other in others:
        assert list(other) == list(first)
        for case, records in first.items():
            for name, values in records.items():
                assert torch.equal(other[case][name], values), f"{case}: {name}"


def test_a_row_alone_has_the_bits_that_it_has_in_company(computed: dict[str, dict[str, Case]]) -> None:
    for isa, found in computed.items():
        pairs = [(case, name) for case, records in found.items() for name in records if f"{name}.alone" in records]
        assert len(pairs) > 70
        for case, name in pairs:
            assert torch.equal(found[case][name], found[case][f"{name}.alone"]), f"{isa} {case}: {name}"


def of(cases: dict[str, Case], start: str) -> dict[str, Case]:
    some = {name: case for name, case in cases.items() if name.startswith(start)}
    assert some, start
    return some


def error(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted).abs().max() / wanted.abs().max())


def test_elements_and_rows(cases: dict[str, Case]) -> None:
    gelu, turned = cases["gelu"], cases["rotate"]
    assert error(gelu["y"], F.gelu(gelu["x"].double())) < CLOSE
    x, half = turned["x"].double(), turned["x"].shape[2] // 2
    swapped = torch.cat((-x[..., half:], x[..., :half]), dim=2)
    cos, sin = (turned[name].double()[:, None, :half].repeat(1, 1, 2) for name in ("cos", "sin"))
    assert error(turned["y"], x * cos + swapped * sin) < CLOSE
    for case in of(cases, "rows").values():
        x = case["x"].double()
        assert error(case["y"], case["weight"].double() * F.rms_norm(x, x.shape[1:], eps=1e-6)) < CLOSE
        assert torch.equal(case["largest"], case["x"].amax(dim=1))
        assert torch.equal(case["indices"], case["x"].argmax(dim=1))


def test_linear_layers(cases: dict[str, Case]) -> None:
    for name, case in of(cases, "linear").items():
        wanted = F.linear(case["x"].double(), case["weight"].double(), case["bias"].double())
        assert error(case["y"], wanted) < CLOSE, name


def in_order(values: Tensor, outputs: int, name: str) -> Tensor:
    """Rows of packed weights in the order of the outputs: for SwiGLU panels of gates and ups alternate."""
    if "-swiglu" not in name:
        return values[:outputs]
    pairs = values.unflatten(0, (-1, 2, 16)).transpose(0, 1).flatten(1, 2)
    return pairs[:, : outputs // 2].flatten(0, 1)


def mixed(case: Case, x: Tensor) -> Tensor:
    """x [M, K] smoothed, and mixed in the blocks of `sanitizer/made.h`."""
    if "smoothing" not in case:
        return x
    num_inputs = x.shape[1]
    return mix(x * case["smoothing"], 0 if num_inputs % 16 else 16 if num_inputs % 64 else 64)


def product(name: str, case: Case, x: Tensor) -> Tensor:
    """x [M, K] float32, after the norm -> [M, N] float64."""
    is_whole, outputs = "-int" in name, case["plain"].shape[1]
    x = x * case["smoothing"] if "smoothing" in case else x
    bias = case["bias"].double() if "bias" in case else torch.zeros(1, dtype=torch.float64)
    if not is_whole:
        return x.double() @ case["weight"].double().T + bias
    weight, scales = (in_order(case[key].double(), outputs, name) for key in ("weight", "scales"))
    bias = in_order(bias, outputs, name) if "bias" in case else bias
    largest = x.abs().amax(dim=1, keepdim=True)
    whole = torch.round(x * (127 / largest)).double()
    if "-int4" in name:
        scales = scales.repeat_interleave(32, dim=1)[:, : x.shape[1]]
    return whole @ (weight * scales.view(outputs, -1)).T * (largest / 127).double() + bias


def clear(name: str, case: Case, x: Tensor) -> Tensor:
    """x [M, K] -> bool [M]: rows without a number so near to a half that its rounding depends on the last bit."""
    if "-int" not in name:
        return torch.ones(len(x), dtype=torch.bool)
    x = mixed(case, x).double()
    whole = x * (127 / x.abs().amax(dim=1, keepdim=True))
    is_clear = ((whole - whole.floor() - 0.5).abs() > 3e-5).all(dim=1)
    assert float(is_clear.float().mean()) > 0.5
    return is_clear


def finished(name: str, case: Case, sums: Tensor) -> Tensor:
    if "-gelu" in name:
        sums = F.gelu(sums)
    if "-swiglu" in name:
        gates, ups = sums.chunk(2, dim=1)
        sums = F.silu(gates) * ups
    return sums + case["residual"] if "residual" in case else sums


def test_stages(cases: dict[str, Case]) -> None:
    for name, case in of(cases, "stage").items():
        x = case["x"].double()
        if "-rms" in name:
            assert error(case["normed"], F.rms_norm(x, x.shape[1:], case["norm_weight"].double(), 1e-6)) < CLOSE
        if "-layer" in name:
            weight, bias = case["norm_weight"].double(), case["norm_bias"].double()
            assert error(case["normed"], F.layer_norm(x, x.shape[1:], weight, bias, 1e-6)) < CLOSE
        rows = case.get("normed", case["x"])
        for got, given, wanted in (
            (case["plain"], case["x"], product(name, case, case["x"])),
            (case["y"], rows, finished(name, case, product(name, case, rows))),
        ):
            is_clear = clear(name, case, given)
            assert error(got[is_clear], wanted[is_clear]) < CLOSE, name


def test_attention(cases: dict[str, Case]) -> None:
    for name, case in of(cases, "attention-").items():
        past = (case["keys"].double(), case["values"].double(), case["tables"], case["starts"], case["lengths"])
        assert error(case["y"], paged_attention_reference(case["q"].double(), *past)) < ATTENTION, name


def test_attention_in_8_bits(cases: dict[str, Case]) -> None:
    def relative(got: Tensor, wanted: Tensor) -> float:
        return float((got - wanted).norm() / wanted.norm())

    for name, case in of(cases, "attention_int8").items():
        past = (case["cache"], case["tables"], case["starts"], case["lengths"])
        wanted = attention_int8_reference(case["q"], *past, causal="causal" in name)
        assert relative(case["y"], wanted) < ATTENTION_INT8, name
    for name, case in of(cases, "tile_attention").items():
        assert relative(case["y"], tile_attention_reference(case["qkv"])) < ATTENTION_INT8, name


def test_adapters(cases: dict[str, Case]) -> None:
    for name, case in of(cases, "lora").items():
        rank, outputs = int(name.rpartition("-")[2]), case["to"].shape[0]
        a = case["a"].double().transpose(1, 2).flatten(0, 1)[:rank] * case["scales"][:rank, None].double()
        b = case["b"].transpose(1, 2)
        b = (b.view(torch.uint8).int() - 128).flatten(2) if b.dtype == torch.int8 else b
        b = b.double().flatten(0, 1)[:outputs, :rank] * case["to"][:, None].double()
        x, before = case["x"].double(), case["before"].double()
        added, sizes = x @ a.T @ b.T, x.abs() @ a.abs().T @ b.abs().T
        got = case["y"].double()[1:, 1:]
        bound = (LORA_INT8 if "-8-" in name else LORA) * (sizes[1:] + before[1:, 1:].abs())
        assert bool(((got - before[1:, 1:] - added[1:]).abs() <= bound).all()), name
        assert torch.equal(case["y"][0], case["before"][0])
        assert torch.equal(case["y"][:, 0], case["before"][:, 0])


def same_everywhere(case: str, name: str) -> bool:
    """Whether even the portable library, which rounds twice in a multiply-add, has the same bits."""
    is_exact = case.startswith(("rotate", "stage-int8-none", "stage-int4-none"))
    is_plain = name.startswith("plain") and case.startswith(("stage-int8-rms", "stage-int4-rms"))  # without a bias
    return is_exact or is_plain or name in ("keys", "values", "cache", "largest", "indices")


def same_with_fma(case: str, name: str) -> bool:
    """Whether libraries of x86-64 that round once in a multiply-add have the same bits: no sum depends on the lanes."""
    return (
        same_everywhere(case, name)
        or name.startswith("plain")
        or case.startswith(("gelu", "linear", "lora", "stage-float32-none", "stage-bfloat16-none"))
    )


@pytest.mark.skipif(build.FLAGS is not build.X86_FLAGS, reason="compares with the libraries for x86-64")
@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_this_machine_has_the_same_bits(isa: str, cases: dict[str, Case], tmp_path: Path) -> None:
    if isa not in build.isas_here():
        pytest.skip(f"this CPU has no {isa}")
    build.build(isa)
    library = build.find(isa)
    assert library is not None
    ran = done(linked(build.find_compiler(), library, tmp_path / isa), tmp_path / "out")
    assert ran.returncode == 0, ran.stderr
    is_same, number = same_everywhere if isa == "portable" else same_with_fma, 0
    for case, records in read(tmp_path / "out").items():
        for name, values in records.items():
            if is_same(case, name):
                number += 1
                assert torch.equal(cases[case][name], values), f"{case}: {name}"
            if case.startswith("decode"):
                assert error(cases[case][name], values.double()) < DECODED, f"{case}: {name}"
    assert number > 50
