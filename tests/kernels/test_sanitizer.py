"""The kernels under sanitizers: no access out of bounds and no undefined operation, at odd sizes.

`sanitizer/driver.cpp` calls them in a process of its own, over buffers of exactly the size they may touch. On x86-64
those for ARM64 are cross-compiled, and run under qemu-aarch64.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ternvl.kernels import build

pytestmark = [
    pytest.mark.timeout(900),  # a busy machine compiles for minutes
    pytest.mark.skipif(not os.environ.get("TERNVL_SANITIZED"), reason="TERNVL_SANITIZED names no instruction set"),
]

DRIVER = Path(__file__).parent / "sanitizer" / "driver.cpp"
FLAGS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-O1", "-g1", "-w")
SHORT = (
    *(
        "linear.x",
        "stage.int8_panels",
        "stage.int4_panels",
        "stage.affine4_panels",
        "stage.y",
        "attention.out",
        "attention_int8.cache",
    ),
    *("tile_attention.qkv", "decode.cache", "lora.a", "lora.scales", "rotate.x", "rms_norm.weight"),
    *("largest.x", "largest.indices", "lora_add.x", "lora_add.out"),
)


SANITIZED = os.environ.get("TERNVL_SANITIZED", "")
"""The instruction sets to try, with commas between them. Compiling one takes half a minute of the processor."""
EMULATOR = ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", "-cpu", "max")


def run(command: Sequence[str], options: str = "detect_leaks=0") -> subprocess.CompletedProcess[str]:
    # Threads that spin while they wait take minutes where others want the processors, too.
    variables = {**os.environ, "ASAN_OPTIONS": options, "OMP_WAIT_POLICY": "passive"}
    return subprocess.run(command, capture_output=True, text=True, env=variables)


def is_emulated(isa: str) -> bool:
    return isa in build.ARM_FLAGS and isa not in build.FLAGS


def compiler_for(isa: str) -> list[str]:
    try:
        compiler = [build.CROSS_COMPILERS["aarch64"]] if is_emulated(isa) else build.find_compiler()
    except build.BuildError as error:
        pytest.skip(str(error))
    return [*compiler, *build.COMMON_FLAGS, "-fopenmp", *FLAGS]


def program(isa: str, driver: Path) -> list[str]:
    return [*(EMULATOR if is_emulated(isa) else ()), str(driver)]


@pytest.fixture(scope="module")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The driver, linked with the kernels, by instruction set."""
    folder = tmp_path_factory.mktemp("sanitizer")
    (folder / "nothing.cpp").write_text("int main() {}\n")
    compilers = {isa: compiler_for(isa) for isa in SANITIZED.split(",")}
    for compiler in compilers.values():
        if run([*compiler, str(folder / "nothing.cpp"), "-o", str(folder / "nothing")]).returncode:
            pytest.skip(f"{compiler[0]} has no sanitizers")

    def compile(isa: str, source: Path) -> str:
        target = folder / f"{isa}-{source.parent.name}-{source.stem}.o"
        flags = (build.X86_FLAGS | build.ARM_FLAGS)[isa]
        done = run([*compilers[isa], *flags, f"-I{build.SOURCES}", "-c", str(source), "-o", str(target)])
        assert done.returncode == 0, done.stderr
        return str(target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs = {isa: [pool.submit(compile, isa, source) for source in (*build.sources(), DRIVER)] for isa in compilers}
        for isa, objects in jobs.items():
            done = run([*compilers[isa], *(job.result() for job in objects), "-o", str(folder / isa)])
            assert done.returncode == 0, done.stderr
    return {isa: folder / isa for isa in jobs}


def test_the_kernels_stay_within_their_buffers(drivers: dict[str, Path]) -> None:
    for isa, driver in drivers.items():
        done = run(program(isa, driver))
        assert (done.returncode, done.stdout) == (0, "all kernels ran\n"), f"{isa}: {done.stderr[:4000]}"


def test_a_buffer_that_is_one_element_short_is_found(drivers: dict[str, Path]) -> None:
    driver = program(*list(drivers.items())[-1])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = list(pool.map(lambda name: run([*driver, name], "detect_leaks=0:symbolize=0"), SHORT))
    for name, done in zip(SHORT, runs, strict=True):
        assert done.returncode, f"{name}: nothing was found"
        assert "AddressSanitizer" in done.stderr, f"{name}: {done.stderr[:4000]}"
