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
    """The images of these classes, relabelled from 0."""
    images, labels = part
    chosen = np.isin(labels, classes)
    return images[chosen], labels[chosen] - classes.start


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


def parse_parts(files: Mapping[str, bytes], label: str) -> list[Part]:
    """Training and test part from the contents of MNIST's four files, by name. Raises ValueError."""
    parts = []
    for part in ("train", "t10k"):
        images = parse_idx(files[f"{part}-images-idx3-ubyte"], f"{label} {part} images")
        labels = parse_idx(files[f"{part}-labels-idx1-ubyte"], f"{label} {part} labels")
        if images.ndim != 3 or labels.shape != images.shape[:1] or not len(labels):
            found = f"found images {images.shape} and labels {labels.shape}"
            raise ValueError(f"{label} {part}: {found}, expected (n, h, w) and (n,)")
        parts.append((images[:, None], labels.astype(np.int64)))
    return parts


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
