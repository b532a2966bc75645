"""The types of command-line values: functions from a word to a value, whose errors argparse reports.

Does not import torch.
"""

import argparse
import os
from collections.abc import Callable
from typing import Any

from models.configs import DATA_SETS

SWITCH = {"0": 0, "no": 0, "off": 0, "false": 0, "1": 1, "yes": 1, "on": 1, "true": 1}


def number_type(kind: type, low: float, high: float | None = None, open_low: bool = False) -> Callable[[str], Any]:
    """An argparse type: an int or a finite float in [low, high], or in (low, high] with `open_low`."""
    if high is None:
        high = 2**31 - 1 if kind is int else float("inf")
    bounds = f"{'above' if open_low else 'at least'} {low:g}" + (
        f" and at most {high:g}" if high < float("inf") else ""
    )
    expected = f"expected {'a whole' if kind is int else 'a'} number {bounds}"

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"found {text!r}, {expected}") from None
        # NaN fails every comparison, so this form also refuses NaN.
        if not ((value > low if open_low else value >= low) and value <= high and abs(value) != float("inf")):
            raise argparse.ArgumentTypeError(f"found {text!r}, {expected}")
        return value

    return parse


WHOLE = number_type(int, 1)
POSITIVE = number_type(float, 0, open_low=True)
SEED = number_type(int, 0, 2**63 - 1)


def variance_type(text: str) -> float | str:
    """An argparse type: "train" or a positive number."""
    return text if text == "train" else POSITIVE(text)


def path_type(text: str) -> str:
    """An argparse type: a path, converted to an absolute path; "" stays "".

    Runs store and sweeps compare absolute paths, which do not depend on the current folder.
    """
    return os.path.abspath(text) if text else ""


def data_type(text: str) -> str:
    """An argparse type: the name of a data set, or the path of an npz file or a folder, made absolute."""
    if text in DATA_SETS:
        return text
    if not (text.endswith(".npz") or os.sep in text or os.path.isdir(text)):
        names = ", ".join(DATA_SETS)
        raise argparse.ArgumentTypeError(f"found {text!r}, expected one of {names}, a file PATH.npz, or a folder")
    return path_type(text)


def aug_type(text: str) -> int | str:
    """An argparse type: "affine" or a switch."""
    return text if text == "affine" else switch_type(text, "0, 1 or affine")


def switch_type(text: str, expected: str = "0 or 1") -> int:
    """An argparse type: 0 or 1, or as people write it in YAML: no, off, false, yes, on, true."""
    if text.lower() not in SWITCH:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected {expected}")
    return SWITCH[text.lower()]


ON_OFF = {"type": switch_type, "choices": (0, 1), "default": 0}  # of an option that is a switch
