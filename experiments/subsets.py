"""Images of data sets as npz files in MedMNIST's layout, which the option `--data` takes."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runs.files import atomic_write

if TYPE_CHECKING:
    from utils import DataSet


def write_npz(path: Path, train: "DataSet", test: "DataSet | None" = None) -> None:
    """Write images, on a CPU, and labels to learn from, and those of a test if given, atomically."""
    arrays = {}
    for part, data in {"train": train, "test": test}.items():
        if data is not None:
            images = data.images.permute(0, 2, 3, 1)
            arrays[f"{part}_images"] = (images.squeeze(3) if images.shape[3] == 1 else images).numpy()
            arrays[f"{part}_labels"] = data.labels.numpy()
    with atomic_write(path) as file:
        np.savez_compressed(file, **arrays)


def stored_npz(folder: Path, train: "DataSet", test: "DataSet | None" = None) -> Path:
    """An npz file as of `write_npz`, named by the number of images to learn from and by the content of all; written if
    it does not exist."""
    from runs.checkpoint import fingerprint

    path = folder / f"{len(train.labels)}-{fingerprint([*train, *(test or ())])[:16]}.npz"
    if not path.exists():
        write_npz(path, train, test)
    return path
