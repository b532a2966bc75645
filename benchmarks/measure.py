"""Time and memory of one call, of this code or of the textbook's."""

import math
import multiprocessing
import signal
import timeit
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from runs.device import keep_freed_memory

SIDES = ("textbook", "ours")
# Bytes: the thresholds `trim` and `mmap` that glibc sets by itself in a process that frees large pieces of memory.
GLIBC_THRESHOLDS = (64 * 2**20, 32 * 2**20)


class Comparison(NamedTuple):
    """One computation, done by this code and by the textbook's.

    name : of its row in the table.
    ours, textbook : functions that do it once.
    precision : of ours, "fp32" or "bf16".
    """

    name: str
    ours: Callable[[], object]
    textbook: Callable[[], object]
    precision: str = "fp32"

    def seconds(self, side: str) -> float:
        """The time of one call of a side. Only ours keeps the memory that it frees, as the scripts do."""
        keep_freed_memory(*(() if side == "ours" else GLIBC_THRESHOLDS))
        return timeit.timeit(getattr(self, side), number=1)


def memory_status(field: str) -> float:
    """A field of /proc/self/status in MB, such as VmRSS, the resident memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def seconds_and_memory(side: str, make: Callable[..., Comparison], *arguments: object) -> tuple[float, float]:
    """The time of one call of a side of `make(*arguments)`, and the MB that it adds to the resident memory at its peak.

    The MB are NaN on a system without Linux's /proc.
    """
    comparison = make(*arguments)
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    except OSError:
        return comparison.seconds(side), math.nan
    before = memory_status("VmRSS")
    return comparison.seconds(side), memory_status("VmHWM") - before


def in_new_process(function: Callable, *arguments: object) -> Any:
    """`function(*arguments)` in a process of its own, because the memory that one call frees serves the next call."""
    # Ctrl-C, which the process also gets, ends it at once and without a traceback.
    at_start = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_DFL)}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), **at_start) as pool:
        return pool.submit(function, *arguments).result()
