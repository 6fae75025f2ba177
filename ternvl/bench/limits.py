"""Measures the machine's limits: memory reads, and multiply-adds on 8-bit integers and on float32, with all threads.

A multiply-add counts as two operations, and its operands stay in registers, so no matrix product can be faster. The
memory that is read is larger than the caches and is read once from end to end.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from ternvl.errors import ConfigError
from ternvl.kernels.loader import Int, Int64, Library, Pointer, library
from ternvl.kernels.memory import allocate, make_huge

MEMORY_BYTES = 512 * 1024**2
REPEATS = 7
_LEAST_SECONDS = 0.05  # duration of one measurement of multiply-adds


@dataclass(frozen=True, slots=True)
class Limits:
    """The measured limits; each rate is the median of several measurements."""

    isa: str
    """The instruction set that the kernels used, spelled as in `TERNVL_KERNELS`."""
    num_threads: int
    read_bytes_per_s: float
    int8_ops_per_s: float
    fp32_ops_per_s: float

    def as_dict(self) -> dict[str, str | int | float]:
        """Return the fields for JSON; `Limits(**fields)` is the inverse."""
        return asdict(self)

    def table(self) -> str:
        """Return the limits as four lines of text."""
        return "\n".join(
            [
                f"{'memory, read':<26}{self.read_bytes_per_s / 1e9:>10.1f} GB/s",
                f"{'products of 8-bit integers':<26}{self.int8_ops_per_s / 1e9:>10.0f} GOP/s",
                f"{'products of float32':<26}{self.fp32_ops_per_s / 1e9:>10.0f} GFLOP/s",
                f"{self.num_threads} threads, {self.isa}",
            ]
        )

    def share(
        self, *, bytes_per_s: float | None = None, int8_ops_per_s: float | None = None, fp32_per_s: float | None = None
    ) -> str:
        """Describe each given rate and its share of the limit, as in "20.1 GB/s read, 73 % of 27.5"."""
        given = [
            (bytes_per_s, self.read_bytes_per_s, "GB/s read"),
            (int8_ops_per_s, self.int8_ops_per_s, "GOP/s of int8"),
            (fp32_per_s, self.fp32_ops_per_s, "GFLOP/s of float32"),
        ]
        return "; ".join(
            f"{reached / 1e9:.1f} {unit}, {reached / limit:.0%} of {limit / 1e9:.1f}"
            for reached, limit, unit in given
            if reached is not None
        ).replace("%", " %")


def measure(num_threads: int | None = None, *, memory_bytes: int = MEMORY_BYTES, repeats: int = REPEATS) -> Limits:
    """Measure the limits, which takes about two seconds; `num_threads` defaults to torch's number of threads.

    Raises ConfigError for numbers below 1, and if the native kernels cannot be used.
    """
    threads = torch.get_num_threads() if num_threads is None else num_threads
    for name, value in (("threads", threads), ("repeats", repeats), ("memory_bytes", memory_bytes)):
        if value < 1:
            raise ConfigError(f"{name} is {value}, but must be at least 1.")
    loaded = library()
    if loaded is None:
        raise ConfigError(
            "The limits are measured by the native kernels, which cannot be used on this machine; the log says why."
        )
    return Limits(
        isa=loaded.isa,
        num_threads=threads,
        read_bytes_per_s=_read_rate(loaded, threads, memory_bytes, repeats),
        int8_ops_per_s=_peak_rate(loaded, "ternvl_peak_int8", threads, repeats),
        fp32_ops_per_s=_peak_rate(loaded, "ternvl_peak_fp32", threads, repeats),
    )


def share(
    *, bytes_per_s: float | None = None, int8_ops_per_s: float | None = None, fp32_per_s: float | None = None
) -> str:
    """Measure the limits and return `Limits.share` as a line to print, or the reason why they cannot be measured."""
    try:
        limits = measure()
    except ConfigError as error:
        return str(error)
    return limits.share(bytes_per_s=bytes_per_s, int8_ops_per_s=int8_ops_per_s, fp32_per_s=fp32_per_s)


def _read_rate(library: Library, threads: int, memory_bytes: int, repeats: int) -> float:
    memory = allocate(memory_bytes // 4 * 4).view(torch.float32).fill_(1)
    make_huge(memory)
    function = library.function("ternvl_read", Pointer, Int64, Int, result=ctypes.c_double)
    rates = []
    for _ in range(repeats):
        seconds, total = _time(lambda: function(memory.data_ptr(), memory.numel(), threads))
        assert total == memory.numel(), total
        rates.append(memory.nbytes / seconds)
    return statistics.median(rates)


def _peak_rate(library: Library, name: str, threads: int, repeats: int) -> float:
    function = library.function(name, Int64, Int, result=ctypes.c_double)

    def run(steps: int) -> tuple[float, float]:
        return _time(lambda: function(steps, threads))

    steps = 100_000
    while run(steps)[0] < _LEAST_SECONDS:
        steps *= 2
    measured = [run(steps) for _ in range(repeats)]
    return statistics.median(num_ops / seconds for seconds, num_ops in measured)


def _time(work: Callable[[], float]) -> tuple[float, float]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result
