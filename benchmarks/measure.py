"""Time and memory of one call, of this code or of the textbook's."""

import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from runs.device import keep_freed_memory

SIDES = ("textbook", "ours")
# Bytes: the thresholds `trim` and `mmap` that glibc sets by itself in a process that frees large pieces of memory.
GLIBC_THRESHOLDS = (64 * 2**20, 32 * 2**20)


def wall_time(function: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def memory_status(field: str) -> float:
    """A field of /proc/self/status in MB, such as VmRSS, the resident memory of this process. Raises OSError."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def printed_numbers(argv: list[str]) -> list[float]:
    """The numbers in the last line that `python -m <argv>` prints, in a process of its own."""
    done = subprocess.run([sys.executable, "-m", *argv], check=True, stdout=subprocess.PIPE, text=True)
    return [float(word) for word in done.stdout.splitlines()[-1].split()]


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

    def wall_time(self, side: str) -> float:
        """Seconds of one call of a side. Only ours keeps the memory that it frees, as the scripts do."""
        keep_freed_memory(*(() if side == "ours" else GLIBC_THRESHOLDS))
        return wall_time(getattr(self, side))

    def wall_time_and_memory(self, side: str) -> tuple[float, float]:
        """Seconds of one call of a side, and the MB that it adds to the resident memory at its peak.

        The MB are NaN on a system without Linux's /proc.
        """
        try:
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        except OSError:
            return self.wall_time(side), math.nan
        before = memory_status("VmRSS")
        seconds = self.wall_time(side)
        return seconds, memory_status("VmHWM") - before
