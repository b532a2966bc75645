"""Choice of device and precision, CPU memory, compilation, and random seeds."""

import contextlib
import ctypes
import os
import platform
import random
import sys
from collections.abc import Callable

import numpy as np
import torch

from runs.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed_memory(trim: int = 2**31 - 1, mmap: int = 2**30) -> None:
    """Let this process reuse up to `trim` freed bytes, in blocks of at most `mmap` bytes, if its C library is glibc.

    Freed memory otherwise returns to the system. The system zeroes each page that it hands out again, which takes as
    long as the arithmetic of a layer.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_TRIM_THRESHOLD, trim)
        mallopt(M_MMAP_THRESHOLD, mmap)


def choose_device(name: str) -> torch.device:
    """The device `name`, or for "auto" the first available of cuda, mps, cpu. Raises UserError if not available.

    An empty CUDA_VISIBLE_DEVICES, which a sweep gives to a trial without GPUs, leaves out mps too.

    A process that computes on a CPU keeps the memory that it frees.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        hidden = ("mps",) if os.environ.get("CUDA_VISIBLE_DEVICES") == "" else ()
        name = next(kind for kind, yes in available.items() if yes and kind not in hidden)
    if not available[name]:
        raise UserError(f"--device: found {name}, expected one of {', '.join(k for k, v in available.items() if v)}")
    if name == "cpu":
        keep_freed_memory()
    return torch.device(name)


def processor_name(device: torch.device) -> str:
    """The name of the processor that the device is, as its maker gives it; of a CPU also the widest vectors."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:  # on Linux alone
        found = dict(line.strip().split("\t: ", 1) for line in file if "\t: " in line)
        if "model name" in found:
            return f"{found['model name']}, {torch.backends.cpu.get_cpu_capability()}"
    return platform.processor() or platform.machine()


def seed_all(seed: int) -> None:
    """Seed the generators of torch on every device, of NumPy and of Python."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 natively; other CPUs emulate bfloat16, more slowly than float32."""
    if device.type == "cpu":
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # absent from older versions of torch
        return any(available for name, available in capabilities.items() if "bf16" in name)
    return torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.backends.mps.is_available()


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context of a forward pass in `precision`: "fp32", "bf16", or "auto" for bf16 where it is native.

    Raises UserError for "bf16" on a device without native bfloat16.
    """
    if precision == "bf16" and not has_bfloat16(device):
        raise UserError(
            f"--precision: found bf16, expected fp32 or auto: this {device.type} does not compute in bfloat16"
        )
    enabled = precision == "bf16" or (precision == "auto" and has_bfloat16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def compiled(function: Callable, device: torch.device) -> Callable:
    """`function`, compiled by `torch.compile`. Raises UserError where compilation fails on `device`."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(1, device=device))
    except Exception as error:  # a missing or failing compiler raises many kinds of errors
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"--compile: found 1, expected 0: torch.compile does not work here ({reason})") from None
    return torch.compile(function)
