"""Colour data sets of 32x32 images. torchvision fetches missing files and checks their MD5 sums."""

import contextlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data.idx import Part


def read(parts: Sequence[Callable], label: str, files: str) -> list[Any]:
    """Call torchvision's classes in `parts`. Raises ValueError where a file can be neither read nor fetched."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return [part(download=True) for part in parts]
    except Exception as error:  # failed downloads and damaged files raise many kinds of errors
        reason = " ".join(str(error).split())
        raise ValueError(f"{label}: cannot be fetched or read ({reason}); put {files}") from None


def read_cifar(root: Path, name: str) -> tuple[Part, Part]:
    """CIFAR-10 or CIFAR-100, by the name of torchvision's class."""
    from torchvision import datasets

    cls = getattr(datasets, name)
    files = f"{cls.filename} in {root}"
    train, test = read([partial(cls, root, train=train) for train in (True, False)], name, files)
    parts = [(np.ascontiguousarray(p.data.transpose(0, 3, 1, 2)), np.array(p.targets, np.int64)) for p in (train, test)]
    return parts[0], parts[1]


def five_classes(parts: tuple[Part, Part], first: int) -> tuple[Part, Part]:
    """The images of the classes first..first + 4, relabelled 0-4."""
    found = []
    for images, labels in parts:
        mine = (labels >= first) & (labels < first + 5)
        found.append((images[mine], labels[mine] - first))
    return found[0], found[1]


def cifar(root: Path) -> tuple[Part, Part]:
    """CIFAR-10: 50,000 training and 10,000 test images of ten classes."""
    return read_cifar(root, "CIFAR10")


def cifar5(root: Path) -> tuple[Part, Part]:
    """The classes 0-4 of CIFAR-10."""
    return five_classes(cifar(root), 0)


def cifar5_rest(root: Path) -> tuple[Part, Part]:
    """The classes 5-9 of CIFAR-10, relabelled 0-4."""
    return five_classes(cifar(root), 5)


def cifar100(root: Path) -> tuple[Part, Part]:
    """CIFAR-100: 50,000 training and 10,000 test images of a hundred classes."""
    return read_cifar(root, "CIFAR100")


def svhn(root: Path) -> tuple[Part, Part]:
    """SVHN's cropped digits: 73,257 training and 26,032 test images."""
    from torchvision import datasets

    folder = root / "svhn"
    files = f"train_32x32.mat and test_32x32.mat in {folder}"
    train, test = read([partial(datasets.SVHN, folder, split=part) for part in ("train", "test")], "SVHN", files)
    return (train.data, train.labels.astype(np.int64)), (test.data, test.labels.astype(np.int64))
