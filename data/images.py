"""Somebody's own images, in an npz file or a folder, and their conversion to a network's input.

An npz file has MedMNIST's layout (data/npz.py). A folder has torchvision's ImageFolder layout,

    FOLDER/train/<class>/* and FOLDER/test/<class>/*      or      FOLDER/<class>/*

Its files are read in the order of their names. Files without the ending of an image, and images beside the classes or
in folders of a class, are named on stderr and not read; hidden files are ignored. Transparent pixels become white.
"""

import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional

from data import npz
from data.idx import Part
from data.split import train_test

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
MAX_PIXELS = 10**8  # of an image: a small file can claim to have many more
NAMED = 5  # files left out that are named

Shape = tuple[int, int, int]  # channels, height and width


def fit(images: Tensor, shape: Shape) -> Tensor:
    """Images (n, c, h, w), uint8 with c of 1 or 3, as (n, *shape), converted between grey and colour.

    They are cropped to the shape's aspect, in their middle, then resized, bilinear with antialiasing.
    """
    channels, height, width = shape
    scale = min(images.shape[2] / height, images.shape[3] / width)
    images = functional.center_crop(images, [max(1, round(height * scale)), max(1, round(width * scale))])
    images = functional.resize(images, [height, width], antialias=True)
    if channels != images.shape[1]:
        images = functional.rgb_to_grayscale(images) if channels == 1 else images.expand(-1, channels, -1, -1)
    return images.contiguous()


def class_names(folder: Path) -> list[str]:
    """The classes of a folder, the folders in it or in its train/, in order.

    Raises ValueError for fewer than 2 classes, and for test/ or val/ without train/.
    """
    root = folder / "train" if (folder / "train").is_dir() else folder
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if root == folder and (part := {"test", "val"} & set(names)):
        raise ValueError(f"{root}: found the folder {min(part)} beside the classes, expected these in a folder train")
    if len(names) < 2:
        raise ValueError(f"{root}: found {len(names)} folders, expected one for each of at least 2 classes")
    return names


def image_files(folder: Path, root: Path, deep: bool = False) -> tuple[list[Path], list[Path]]:
    """The images in a folder, with `deep` also in its folders, and the other files in both; by name, no hidden ones.

    Raises ValueError for an image that is a link out of `root`.
    """
    found = sorted(path for path in folder.glob("**/*") if path.is_file())
    found = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    files = [path for path in found if path.suffix.lower() in ENDINGS and (deep or path.parent == folder)]
    for path in files:
        if not path.resolve().is_relative_to(root.resolve()):
            raise ValueError(f"{path}: found a link out of the folder, expected an image")
    return files, sorted(set(found) - set(files))


def read_image(path: Path, shape: Shape) -> Tensor | None:
    """The image as (*shape) in uint8, or None if it is damaged or has 32-bit pixels, whose range is not known.

    Raises ValueError for one of too many pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                size, file_format = image.size, image.format
                if size[0] * size[1] <= MAX_PIXELS:
                    image = ImageOps.exif_transpose(image)
                    if image.mode.startswith("I;16") or (image.mode == "I" and file_format == "PNG"):  # 16 bits
                        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
                    if image.mode in ("I", "F"):
                        return None
                    grey = image.mode in ("1", "L", "LA") or shape[0] == 1
                    if image.has_transparency_data:
                        image = image.convert("RGBA")
                        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
                    pixels = np.array(image.convert("L" if grey else "RGB"))
    except Image.DecompressionBombError:
        size = (MAX_PIXELS, 2)
    except Exception:  # a damaged file raises many kinds of errors
        return None
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"{path}: found more than {MAX_PIXELS} pixels, expected a smaller image")
    return fit(torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1)[None], shape)[0]


class Labelled(NamedTuple):
    """Images of known classes: their files, the images (n, c, h, w) in uint8, and the labels (n,)."""

    files: np.ndarray
    images: np.ndarray
    labels: np.ndarray

    def at(self, index: np.ndarray) -> "Labelled":
        """Those at these indices."""
        return Labelled(*(column[index] for column in self))


def read_images(files: Sequence[Path], shape: Shape) -> tuple[list[int], list[Tensor], list[Path]]:
    """The images by `read_image`, read side by side, with their places among the files; and the damaged files."""
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda path: read_image(path, shape), files))
    places = [i for i, image in enumerate(found) if image is not None]
    damaged = [path for path, image in zip(files, found, strict=True) if image is None]
    return places, [found[i] for i in places], damaged


def read_part(folder: Path, names: Sequence[str], shape: Shape, root: Path) -> tuple[Labelled, list[Path], list[Path]]:
    """The images of the classes, the damaged files, and the other files. Raises ValueError for a class without any."""
    loose = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    found = [image_files(folder / name, root) for name in names]
    files = [(path, label) for label, (own, _) in enumerate(found) for path in own]
    places, images, damaged = read_images([path for path, _ in files], shape)
    missing = sorted(set(range(len(names))) - {files[i][1] for i in places})
    if missing:
        raise ValueError(f"{folder / names[missing[0]]}: found no image, expected one for each class")
    paths, labels = zip(*(files[i] for i in places), strict=True)
    part = Labelled(np.array(paths, dtype=object), torch.stack(images).numpy(), np.array(labels, np.int64))
    return part, damaged, loose + [path for _, others in found for path in others]


def report(folder: Path, damaged: Sequence[Path], others: Sequence[Path]) -> None:
    """Name damaged images, and other files, on stderr."""
    left_out = "images are left out, damaged or of 32-bit pixels"
    for what, paths in ((left_out, damaged), ("other files are not read", others)):
        if paths:
            shown = ", ".join(str(path.relative_to(folder)) for path in paths[:NAMED]) + ", ..." * (len(paths) > NAMED)
            print(f"{folder}: {len(paths)} {what}: {shown}", file=sys.stderr)


def read_any(folder: Path, shape: Shape) -> tuple[list[Path], Tensor]:
    """All images in a folder, with or without folders for classes: the paths in it, and uint8 (n, *shape).

    Damaged images and other files are left out and named on stderr. Raises ValueError for a folder without images.
    """
    files, others = image_files(folder, folder, deep=True)
    places, images, damaged = read_images(files, shape)
    report(folder, damaged, others)
    if not images:
        found = "no image" if folder.is_dir() else "no such folder"
        raise ValueError(f"found {found}, expected one or more images")
    return [files[i].relative_to(folder) for i in places], torch.stack(images)


def read_folder(folder: Path, shape: Shape, test_fraction: float, seed: int) -> list[Labelled]:
    """Training and test part of a folder, as of `load`."""
    names = class_names(folder)
    if not (folder / "train").is_dir():
        whole, damaged, others = read_part(folder, names, shape, folder)
        parts = [whole.at(index) for index in train_test(whole.labels, test_fraction, seed)]
    else:
        part, damaged, others = read_part(folder / "train", names, shape, folder)
        parts = [part, part.at(np.arange(0))]
        if (folder / "test").is_dir():
            if (found := class_names(folder / "test")) != names:
                raise ValueError(f"{folder / 'test'}: found the classes {found}, expected those of train: {names}")
            parts[1], *more = read_part(folder / "test", names, shape, folder)
            damaged, others = damaged + more[0], others + more[1]
    report(folder, damaged, others)
    return parts


def load(path: Path, shape: Shape | None, test_fraction: float, seed: int) -> list[Part]:
    """Training and test part of an npz file or a folder; the test part may be empty.

    The images are converted to `shape`, those of a file only if it is given; a printed line says so. Without train/ in
    a folder, the share `test_fraction` of each class, chosen by `seed`, is for testing. Damaged images and other files
    are left out and named on stderr, and a missing test/ is named there. Raises OSError and ValueError.
    """
    if path.suffix != ".npz":
        parts = [(part.images, part.labels) for part in read_folder(path, shape, test_fraction, seed)]
        found = "its images"
        if not len(parts[1][1]):
            other = "found val/ but no test/" if (path / "val").is_dir() else "found no test/"
            print(f"{path}: {other}, the network is not evaluated", file=sys.stderr)
    else:
        parts = npz.load(path)
        own = parts[0][0].shape[1:]
        if shape is None or own == shape:
            return parts
        parts = [(fit(torch.from_numpy(images), shape).numpy(), labels) for images, labels in parts]
        found = f"images of {own}"
    print(f"{path}: {found} are converted to {shape}")
    return parts
