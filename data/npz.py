"""Images and labels in an npz file with MedMNIST's layout.

    train_images, test_images : uint8, (n, height, width) or (n, height, width, 1 or 3)
    train_labels, test_labels : whole numbers from 0 on, (n,) or (n, 1)

Other arrays are ignored. A file without the two test arrays has an empty test part.
"""

import zipfile
from pathlib import Path

import numpy as np

from data.idx import Part

MAX_BYTES = 2**32  # of an unpacked array


def read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """An array of the archive. Raises ValueError, which starts with its name; nothing is unpickled."""
    try:
        if archive.getinfo(f"{name}.npy").file_size > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        with archive.open(f"{name}.npy") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except KeyError:
        raise ValueError(f"{name}: missing, expected an array of MedMNIST's layout") from None
    except Exception as error:  # a damaged file raises many kinds of errors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name}: {reason}, expected an array of numbers") from None


def read_part(archive: zipfile.ZipFile, part: str) -> Part:
    """The images and labels of a part, "train" or "test". Raises ValueError for another layout."""
    images, labels = (read_array(archive, f"{part}_{name}") for name in ("images", "labels"))
    channels = images.shape[3:] or (1,)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or channels[0] not in (1, 3) or not images.size:
        found = f"found {images.dtype} of shape {images.shape}"
        raise ValueError(f"{part}_images: {found}, expected uint8 of (n, h, w) or (n, h, w, 3), n > 0")
    if labels.dtype.kind not in "iu" or labels.shape not in ((len(images),), (len(images), 1)):
        found = f"found {labels.dtype} of shape {labels.shape}"
        raise ValueError(f"{part}_labels: {found}, expected whole numbers of ({len(images)},) or ({len(images)}, 1)")
    if labels.min() < 0 or labels.max() >= 2**31:
        raise ValueError(f"{part}_labels: found {labels.min()} to {labels.max()}, expected numbers from 0 on")
    images = images.reshape(*images.shape[:3], *channels)
    # A transposed view of grey images counts as contiguous, but torch would take its strides for channels last.
    images = np.stack([images[..., c] for c in range(channels[0])], 1)
    return images, labels.reshape(-1).astype(np.int64)


def load(path: Path) -> list[Part]:
    """Training and test part of the file. Raises OSError for a missing file, and ValueError for an invalid one."""
    try:
        archive = zipfile.ZipFile(path)
    except OSError:
        raise
    except Exception as error:  # as above
        raise ValueError(f"{error}, expected an npz file") from None
    with archive:
        train = read_part(archive, "train")
        if {"test_images.npy", "test_labels.npy"} & set(archive.namelist()):
            test = read_part(archive, "test")
        else:
            test = train[0][:0], train[1][:0]
    if train[0].shape[1:] != test[0].shape[1:]:
        shapes = [part[0].shape[1:] for part in (train, test)]
        raise ValueError(f"found images of {shapes[0]} and {shapes[1]}, expected one shape in both parts")
    return [train, test]
