"""Colour data sets of 32x32 images. torchvision fetches missing files and checks their MD5 sums."""

import contextlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data.idx import Part, of_classes


def fetch(parts: list[Callable], label: str, files: str) -> list[Any]:
    """Call torchvision's classes in `parts`. Raises ValueError where a file can be neither read nor fetched."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return [part(download=True) for part in parts]
    except Exception as error:  # failed downloads and damaged files raise many kinds of errors
        reason = " ".join(str(error).split())
        raise ValueError(f"{label}: cannot be fetched or read ({reason}); put {files}") from None


def read_cifar(root: Path, name: str, classes: range = range(100)) -> list[Part]:
    """Training and test part of torchvision's CIFAR10 or CIFAR100: the images of `classes`, relabelled from 0."""
    from torchvision import datasets

    cls = getattr(datasets, name)
    parts = []
    for part in fetch([partial(cls, root, train=train) for train in (True, False)], name, f"{cls.filename} in {root}"):
        images, labels = of_classes((part.data, np.array(part.targets, np.int64)), classes)
        parts.append((np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels))
    return parts


# Functions of the folder of data sets, each with 50,000 training and 10,000 test images before classes are chosen.
cifar = partial(read_cifar, name="CIFAR10")
cifar5 = partial(read_cifar, name="CIFAR10", classes=range(5))
cifar5_rest = partial(read_cifar, name="CIFAR10", classes=range(5, 10))
cifar100 = partial(read_cifar, name="CIFAR100")


def svhn(root: Path) -> list[Part]:
    """SVHN's cropped digits: 73,257 training and 26,032 test images."""
    from torchvision import datasets

    folder = root / "svhn"
    files = f"train_32x32.mat and test_32x32.mat in {folder}"
    parts = fetch([partial(datasets.SVHN, folder, split=split) for split in ("train", "test")], "SVHN", files)
    return [(part.data, part.labels.astype(np.int64)) for part in parts]
