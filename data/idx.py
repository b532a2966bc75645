"""IDX, the file format of MNIST: a header with the sizes of an array of bytes, then the bytes."""

import gzip
import math
import os
import secrets
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

MAX_BYTES = 64 * 2**20  # limit of the bytes read from a file, above the size of every valid file
Part = tuple[np.ndarray, np.ndarray]  # images (n, channels, height, width) of uint8, and labels (n,) of int64


def of_classes(part: Part, classes: range) -> Part:
    """The images of these classes, relabelled 0, 1, ..."""
    images, labels = part
    chosen = np.isin(labels, classes)
    return images[chosen], (labels[chosen] - classes.start) // classes.step


def idx_bytes(array: np.ndarray) -> bytes:
    """A uint8 array in the IDX format: magic number with the rank, big-endian sizes, data."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + np.ascontiguousarray(array, dtype=np.uint8).tobytes()


def parse_idx(content: bytes, label: str) -> np.ndarray:
    """The uint8 array of rank 1 or 3 in the bytes of an IDX file. Raises ValueError, which starts with `label`."""
    rank = content[3] if content[:4] in (b"\0\0\x08\1", b"\0\0\x08\3") else 0
    start = 4 + 4 * rank
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4))
    data = np.frombuffer(content, np.uint8, offset=min(start, len(content)))
    if rank == 0 or len(content) < start or data.size != math.prod(shape):
        raise ValueError(f"{label}: not an IDX file of bytes: {len(content)} bytes found, header says {shape}")
    return data.reshape(shape)


def part_files(part: str) -> tuple[str, str]:
    """The names of the files of a part's images and labels."""
    return f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"


def parse_part(images: bytes, labels: bytes, label: str) -> Part:
    """A part from the contents of its two files. Raises ValueError, which starts with `label`."""
    pixels, classes = parse_idx(images, f"{label} images"), parse_idx(labels, f"{label} labels")
    if pixels.ndim != 3 or classes.shape != pixels.shape[:1] or not len(classes):
        found = f"found images {pixels.shape} and labels {classes.shape}"
        raise ValueError(f"{label}: {found}, expected (n, h, w) and (n,)")
    return pixels[:, None], classes.astype(np.int64)


def parse_parts(files: Mapping[str, bytes], label: str) -> list[Part]:
    """Training and test part from the contents of MNIST's four files, by name. Raises ValueError."""
    return [parse_part(*(files[name] for name in part_files(part)), f"{label} {part}") for part in ("train", "t10k")]


def read_file(path: Path) -> bytes:
    """The content of a file, unzipped where its name ends in .gz. Raises OSError."""
    if path.suffix != ".gz":
        return path.read_bytes()
    with gzip.open(path) as file:
        try:
            return file.read(MAX_BYTES)
        except (EOFError, zlib.error) as error:
            raise OSError(str(error)) from None


def read_idx_bytes(path: Path) -> bytes:
    """The content of an IDX file at `path` or, gzipped, at `path`.gz. Raises OSError where neither can be read."""
    return read_file(path if path.exists() else Path(f"{path}.gz"))


def write_file(path: Path, content: bytes) -> None:
    """Write a file atomically; missing folders are created. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
